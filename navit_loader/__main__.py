"""`python -m navit_loader` is the command line `navit-loader`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
