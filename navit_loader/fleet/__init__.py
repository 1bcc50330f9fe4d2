"""What runs on a Ray cluster: daemons, placed, restarted, more where trainers starve and found by name; and offline work.

Takes: configurations, work in parts, and a cluster. Gives: a running fleet, and to clients the addresses and keys of its
daemons, as they come and go; the parts' results (`jobs`). May not know: what a batch or a part is. Batches travel by ZeroMQ
(`service`), never through Ray, which is imported where it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .launched import Fleet, launch

__all__ = ["Fleet", "launch"]


def __getattr__(name: str) -> Any:
    # A trainer comes here too, and needs no engine for that.
    if name not in __all__:
        raise AttributeError(f"module 'navit_loader.fleet' has no attribute '{name}'")
    from . import launched

    return getattr(launched, name)
