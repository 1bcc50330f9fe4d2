"""Daemons over copies of a folder that are not equal: the trainer sees the whole one's batches, and is told who lacks what."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from navit_loader import PackedLoader, RemoteLoader, build_index
from navit_loader.errors import ServiceError

from .service_kit import PLAN, Daemon, digest, load, make_images, metrics

Stream = list[tuple[Any, ...]]


class Copies:
    """Copies of one indexed folder, each with its configuration."""

    def __init__(self, root: Path) -> None:
        self.root = root
        make_images(root / "made" / "images", 240)
        build_index(root / "made" / "images", root / "made" / "x.arrow")

    def copy(self, name: str) -> Path:
        """One more; the path of its configuration. What was indexed is away, so each finds its own images."""
        place, made = self.root / name, self.root / "made"
        away = made if made.exists() else self.root / "away"
        shutil.copytree(away, place)
        if made.exists():
            made.rename(self.root / "away")
        config = place / "config.toml"
        config.write_text(
            f'[data]\nbatch_size = 4\nindex = "{place}/x.arrow"\n[render]\nthreads = 1\nfailure_limit = 1.0\n'
            f"[serve]\nheartbeat_s = 0.2\n{PLAN}"
        )
        return config


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    return Copies(tmp_path)


def stream(config: Path) -> Stream:
    with PackedLoader(config=load(config)) as loader:
        return [digest(batch) for batch in loader]


def lose(config: Path, one_in: int = 10, first: int = 0) -> int:
    files = sorted((config.parent / "images").glob("*/*"))[first::one_in]
    for file in files:
        file.unlink()
    return len(files)


def unmount(config: Path) -> Path:
    """Its images are away, and the folder is empty, as that of a disk that is not mounted."""
    images = config.parent / "images"
    images.rename(config.parent / "disk")
    images.mkdir()
    return images


def mount(images: Path) -> None:
    images.rmdir()
    (images.parent / "disk").rename(images)


@pytest.fixture
def daemons() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_what_one_lacks_comes_from_another(
    copies: Copies, daemons: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """Three copies: a tenth of the files gone, none in reach, whole. Each epoch is that of the whole one."""
    holes, empty, whole = copies.copy("holes"), copies.copy("empty"), copies.copy("whole")
    expected = stream(whole)
    lost = lose(holes)
    unmount(empty)
    served = [daemons.enter_context(Daemon(config)) for config in (holes, empty, whole)]
    with caplog.at_level(logging.WARNING), RemoteLoader([d.endpoint for d in served], refresh=False) as loader:
        assert [digest(batch) for batch in loader] == expected
        loader.load_state_dict(loader.state_dict() | {"epoch": 0, "next_sequence": 0})
        assert [digest(batch) for batch in loader] == expected
        assert set(loader.lacking) == {served[0].endpoint} and 0 < loader.lacking[served[0].endpoint] <= 2 * lost
    assert f"endpoint={served[0].endpoint} has masked" in caplog.text
    assert any("not ready" in line and "is its disk mounted?" in line for line in served[1].log)


def test_a_daemon_without_its_images_says_so(copies: Copies, daemons: ExitStack) -> None:
    config = copies.copy("only")
    images = unmount(config)
    daemon = daemons.enter_context(Daemon(config, args=("--metrics", "127.0.0.1:0")))
    with pytest.raises(ServiceError, match=r"not ready: there is no '.*/images/.*is its disk mounted\?"):
        RemoteLoader([daemon.endpoint], connect_timeout_s=1)
    assert metrics(daemon)["navit_ready"] == 0
    mount(images)
    with RemoteLoader([daemon.endpoint]) as loader:
        assert [digest(batch) for batch in loader] == stream(config)
        assert metrics(daemon)["navit_ready"] == 1


@pytest.mark.parametrize("how", ["one", "all"])
def test_a_disk_that_goes_away_and_comes_back_masks_nothing(copies: Copies, daemons: ExitStack, how: str) -> None:
    first, second = copies.copy("first"), copies.copy("second")
    expected = stream(first)
    served = [daemons.enter_context(Daemon(config)) for config in (first, second)]
    with RemoteLoader([d.endpoint for d in served]) as loader:
        found = []
        for n, batch in enumerate(loader):
            found.append(digest(batch))
            if n == 5:
                gone = [unmount(config) for config in ((first,) if how == "one" else (first, second))]
                if how == "all":  # within the same moment for both, before they are asked for more
                    until = time.monotonic() + 20
                    while not all(any("not ready" in x for x in d.log) for d in served) and time.monotonic() < until:
                        time.sleep(0.1)
                    for images in gone:
                        mount(images)
        assert found == expected


def test_what_all_lack_is_asked_for_once(copies: Copies, daemons: ExitStack) -> None:
    first, second = copies.copy("first"), copies.copy("second")
    for config in (first, second):
        lose(config)
    expected = stream(first)
    served = [daemons.enter_context(Daemon(config, args=("--metrics", "127.0.0.1:0"))) for config in (first, second)]
    with RemoteLoader([d.endpoint for d in served]) as loader:
        assert [digest(batch) for batch in loader] == expected
        handed = sum(metrics(daemon)["navit_batches_total"] for daemon in served)
        loader.load_state_dict(loader.state_dict() | {"epoch": 0, "next_sequence": 0})
        assert [digest(batch) for batch in loader] == expected
        assert sum(metrics(daemon)["navit_batches_total"] for daemon in served) - handed == len(expected), (
            "nothing is asked for twice"
        )
        assert not loader.lacking


@pytest.mark.parametrize("other", ["lacks some", "whole"])
def test_one_that_waits_for_its_storage_costs_few_deadlines(copies: Copies, daemons: ExitStack, other: str) -> None:
    """Its files may yet come into reach: it waits for them for longer than its client does, whoever is asked first."""
    first, second = copies.copy("first"), copies.copy("second")
    if other == "lacks some":
        lose(first)
    expected = stream(first)
    for file in sorted((second.parent / "images").glob("*/*")):
        file.unlink()
        os.symlink(file, file)  # too many levels of links: nothing is gone, and nothing can be read
    served = [daemons.enter_context(Daemon(config)) for config in (first, second)]
    with RemoteLoader([d.endpoint for d in served], deadline_s=0.5, timeout_s=60) as loader:
        start = time.monotonic()
        assert [digest(batch) for batch in loader] == expected
        assert time.monotonic() - start < 0.5 * len(expected) / 2
