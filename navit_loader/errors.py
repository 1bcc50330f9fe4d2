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


class ExtraError(NavitError, ImportError):
    """A package that one of navit's extras brings is not installed; names both."""

    @classmethod
    def of(cls, error: ImportError) -> ExtraError | None:
        """From the import of a package that failed; None where no extra would bring it."""
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            return None
        return cls(f"the package '{package}' is not installed; pip install 'packed-navit[{EXTRAS[package]}]' brings it")


EXTRAS = {
    "huggingface_hub": "model",
    "matplotlib": "model",
    "mlflow": "mlflow",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "pycocotools": "detection",
    "ray": "ray",
    "safetensors": "model",
    "shtab": "completion",
    "scipy": "model",
    "tensorboard": "tensorboard",
    "tokenizers": "captions",
    "torch": "model",
    "wandb": "wandb",
}
"""Packages that are not always installed, by the names they are imported by, and the extra that brings each."""


def needed(package: str) -> Any:
    """A package that only some installations have.

    Raises:
        ExtraError: it is not there.
    """
    try:
        found = import_module(package)
        # Any folder of that name, such as the one that wandb writes, is a package too, of nothing.
        if getattr(found, "__file__", None) is None:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return found
    except ModuleNotFoundError as e:
        raise ExtraError.of(e) or e from None


def reason(error: OSError) -> str:
    """Why a file could not be had, in the system's words, which pyarrow's errors hold amid others."""
    return os.strerror(error.errno) if error.errno else str(error)


def said(error: BaseException) -> list[str]:
    """The lines of what another library's error says, but for empty ones; its name where it says nothing."""
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
