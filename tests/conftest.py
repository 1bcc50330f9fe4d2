"""Which of the tests marked `slow` run: a fourth of them, the same ones each time; all of them with `--whole`, or where tests
are asked for by name. `make test` runs the part, `make test-whole` all."""

from __future__ import annotations

import zlib

import pytest

PART = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run all tests that are marked slow, not a fourth of them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    named = config.option.keyword or any("::" in str(arg) for arg in config.args)
    if named or config.getoption("--whole"):
        return
    left = [item for item in items if "slow" in item.keywords and zlib.crc32(item.nodeid.encode()) % PART]
    if left:
        config.hook.pytest_deselected(items=left)
        gone = set(left)
        items[:] = [item for item in items if item not in gone]
