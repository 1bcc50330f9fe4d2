"""Every error that navit raises on purpose, one class per room, so that callers can tell them apart.

A message names the file or key, the value, and the remedy. `navit-loader` and `navit-model` print the message of any
`NavitError` as one line and exit with status 2; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any


class NavitError(Exception):
    """Base of all errors below."""


class ConfigError(NavitError, ValueError):
    """A configuration key or value that is not allowed."""


class IndexFileError(NavitError):
    """An index that is missing, unreadable, empty, or not of this version."""


class PackError(NavitError, ValueError):
    """Lengths or limits that cannot be packed."""


class PlanError(NavitError, ValueError):
    """A plan that its index and configuration do not allow."""


class StateError(NavitError, ValueError):
    """A loader state of another plan, another renderer, or out of range."""


class RenderError(NavitError):
    """A batch that could not be rendered: a passing fault outlasted its retries, or too many images failed."""


class ServiceError(NavitError):
    """A daemon that cannot be reached, or refused a request."""


class ModelError(NavitError, ValueError):
    """A batch, checkpoint or option that the model does not take."""


def needed(module: str, what: str, extra: str) -> Any:
    """A module that only some installations have.

    Args:
        module: its name.
        what: is it needed for, in words.
        extra: of ours that brings it.

    Raises:
        ConfigError: it is not there.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as e:
        if e.name != module:
            raise
        raise ConfigError(f"{what} needs {module}; install it: pip install 'navit[{extra}]'") from None


def reason(error: OSError) -> str:
    """Why a file could not be had, in the system's words, which pyarrow's errors hold amid others."""
    return os.strerror(error.errno) if error.errno else str(error)


def said(error: Exception) -> list[str]:
    """The lines of what another library's error says, but for empty ones; its name where it says nothing."""
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
