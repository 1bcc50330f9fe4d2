"""The way around the wall that `lint-imports` cannot see: a room that takes a name of a higher one from the package itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import navit_loader
import navit_model


@pytest.mark.parametrize("package", [navit_loader, navit_model])
def test_no_module_takes_what_its_package_gives_to_users(package: object) -> None:
    root = Path(package.__file__).parent  # type: ignore[attr-defined]
    taken = []
    for path in sorted(root.rglob("*.py")):
        depth = len(path.relative_to(root).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "", node.level) in ((root.name, 0), ("", depth)):
                names = {name.name for name in node.names} & {*package.__all__}  # type: ignore[attr-defined]
                taken += [f"{path.relative_to(root)}:{node.lineno} {name}" for name in sorted(names)]
    assert not taken
