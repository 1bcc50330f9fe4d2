"""`python -m navit_model`: the command `navit-model`."""

import sys

from .cli import main

sys.exit(main())
