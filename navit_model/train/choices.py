"""What `navit-model fit` chose for a run, read back, and how the run can learn on.

In: a run's folder (`fit.toml`, `log.jsonl`). Out: its keys with their reasons, and a command. Apart from `recipe`, which
chooses, and from the report, since `fit` says the command too.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from navit_loader.suggest import Choice

from .log import read_log


def longer(out: Path, wanted: str = "") -> str:
    """The command that trains on from the weights of a finished `fit`, so many steps as `wanted`, or as it had; empty where
    there is no such run. The schedule begins anew: one that ended at nothing would learn nothing more."""
    path = out / "fit.toml"
    steps = [e["step"] for e in read_log(out) if e["kind"] == "train"]
    had = next((choice.value for choice in chosen_in(out) if choice.key == "train.steps"), "")
    if not steps or str(steps[-1]) != had:
        return ""
    here, there, config = (shlex.quote(str(each)) for each in (out, f"{out}-longer", path))
    return f"navit-model finetune {here} {config} train.out={there} train.steps={wanted or had}"


def chosen_in(out: Path) -> list[Choice]:
    """What `navit-model fit` chose, key by key, as TOML, with its reasons; nothing for other runs."""
    found, section = [], ""
    try:
        lines = (out / "fit.toml").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    for line in lines:
        if line.startswith("["):
            section = line.strip("[]")
        elif " = " in line and not line.startswith("#"):
            # Reasons hold no two spaces in a row, so that the last mark is theirs.
            said, _, why = line.rpartition("  # ")
            key, _, value = (said or why).partition(" = ")
            found.append(Choice(f"{section}.{key}", value.strip(), why if said else ""))
    return found
