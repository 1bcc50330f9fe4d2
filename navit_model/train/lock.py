"""One run, one folder: two runs that write into the same folder would mix their logs and checkpoints unseen.

In: a folder and the name of a lock. Out: a context that holds it. The system lets go of it when the process ends, however it
ends, so a crash leaves nothing to clear away.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from navit_loader.errors import ConfigError


@contextmanager
def hold(folder: Path, name: str = "train") -> Iterator[None]:
    """Holds `folder/.NAME.lock`.

    Raises:
        ConfigError: another process holds it, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f".{name}.lock").open("w")
    except OSError as e:
        raise ConfigError(f"'{folder}' cannot be written ({e.strerror}); choose another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"'{folder}' is in use by another run; wait for it, or choose another folder") from None
        yield
