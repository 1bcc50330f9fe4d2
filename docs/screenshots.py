"""Makes the pictures of the documentation, `docs/pictures/*.png`, from real runs: what a reader gets is what is shown.

In: nothing (photos from packages, see `examples/photos.py`), and Chromium (`CHROMIUM` names another than that of the PATH).
Out: the preview, the plan, the page of an index, the report of a run, and `top` at a daemon with two trainers. Each has less
than 200 kB. What is measured, such as images a second, differs from time to time; all else is the same.

    python docs/screenshots.py            # all, some four minutes
    python docs/screenshots.py index top  # these
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
PICTURES = DOCS / "pictures"
MOST_BYTES = 200_000
WIDTH = 1200

sys.path.insert(0, str(DOCS.parent / "examples"))

PLAN = """
[data]
index = "photos.arrow"
batch_size = 2
[plan]
sequence_length = 512
max_tokens = 100
max_images = 64
[plan.drop]
kind = "constant"
rate = 0.3
[render]
threads = 1
failure_limit = 1.0
"""


def command(package: str, *args: object) -> list[str]:
    """A command line of `navit_loader` or `navit_model` in this interpreter."""
    return [sys.executable, "-m", package, *map(str, args)]


def run(package: str, *args: object) -> None:
    """Runs it in the folder of this process."""
    subprocess.run(command(package, *args), check=True)


def photos() -> None:
    """The photos and their index, once."""
    if not Path("photos.arrow").exists():
        from photos import write

        write(Path("photos"))
        run("navit_loader", "index", "photos", "-o", "photos.arrow")
        Path("plan.toml").write_text(PLAN, encoding="utf-8")


def preview() -> None:
    """Real packed sequences."""
    photos()
    run("navit_loader", "preview", "photos.arrow", "plan.toml", "-o", "preview.html", "--sequences", 1)
    shoot(Path("preview.html"), "preview", 620)


def plan() -> None:
    """What a plan comes to."""
    photos()
    run("navit_loader", "plan", "photos.arrow", "plan.toml", "--html", "plan.html")
    shoot(Path("plan.html"), "plan", 1010)


def index() -> None:
    """The page of an index, light and dark, and its lower half."""
    photos()
    run("navit_loader", "report", "photos.arrow", "-o", "index.html")
    shoot(Path("index.html"), "index-report", 1250)
    shoot(Path("index.html"), "index-report-dark", 1250, dark=True)
    shoot(Path("index.html"), "index-report-phone", 900, width=390)
    shoot(Path("index.html"), "index-report-broken", 900, after="Broken files")


def report() -> None:
    """The report of a run."""
    photos()
    small = ["model.width=64", "model.depth=4", "model.heads=2", "train.steps=200"]
    run("navit_model", "fit", "photos", "-o", "run", "--tokens", 36, *small)
    run("navit_model", "report", "run", "run/scores.json")
    shoot(Path("run/report.html"), "run-report", 1300)
    shoot(Path("run/report.html"), "run-report-mistakes", 620, after="Worst mistakes")


def top() -> None:
    """A daemon with two trainers, one of which it cannot keep busy."""
    from rich.console import Console
    from rich.text import Text

    from navit_loader import RemoteLoader
    from navit_loader.commands.top import Watch

    photos()
    line = command("navit_loader", "serve", "plan.toml", "--bind", "tcp://127.0.0.1:0", "--metrics", "127.0.0.1:0")
    daemon = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    stop = threading.Event()

    def train(endpoint: str, pause: Callable[[], float]) -> None:
        with RemoteLoader([endpoint], prefetch=2) as loader:
            while not stop.is_set():
                for _ in loader:
                    if stop.wait(pause()):
                        return

    try:
        assert daemon.stdout is not None
        metrics, endpoint = (re.search(r"\w+://\S+", daemon.stdout.readline()).group() for _ in range(2))  # type: ignore[union-attr]
        began = time.monotonic()
        # The second is busy at first, and then waits.
        pauses = (lambda: 0.5, lambda: 0.3 if time.monotonic() - began < 50 else 0.0)
        threads = [threading.Thread(target=train, args=(endpoint, pause)) for pause in pauses]
        for thread in threads:
            thread.start()
        address = metrics.removeprefix("http://").removesuffix("/metrics")
        watch = Watch([address])
        for _ in range(100):
            time.sleep(1)
            watch.look()
        console = Console(record=True, width=126, file=open(os.devnull, "w", encoding="utf-8"), force_terminal=True)  # noqa: SIM115
        console.print(Text(f"$ navit-loader top {address}", "bold"))
        console.print(watch.table(126))
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        daemon.terminate()
        daemon.wait()
    from rich._export_format import CONSOLE_SVG_FORMAT

    # Its fonts come from the network; one of this machine does.
    form = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
        "Fira Code", "DejaVu Sans Mono"
    )
    svg = console.export_svg(title="navit-loader top", code_format=form, unique_id="top")
    Path("top.html").write_text(f'<!doctype html><body style="margin:0">{svg}</body>', encoding="utf-8")
    shoot(Path("top.html"), "top", 0)


def shoot(page: Path, name: str, height: int, *, width: int = WIDTH, dark: bool = False, after: str = "") -> None:
    """Takes a picture of a page.

    Args:
        page: the file.
        name: of the picture.
        height: pixels; 0 takes what a drawing on the page needs.
        width: of the window.
        dark: for a reader whose screen is.
        after: a heading that the picture begins with.
    """
    whole = page.read_text(encoding="utf-8")
    if height == 0:
        box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', whole)
        assert box is not None
        height = round(width * float(box[2]) / float(box[1]))
    if after:
        # All that is before it, but for the head.
        start = whole.index("<main>") + len("<main>")
        at = whole.index(f"<section><h2>{after}", start)
        whole = whole[:start] + whole[at:]
    copy = page.with_suffix(f".{name}.html").resolve()
    copy.write_text(whole, encoding="utf-8")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("there is no Chromium on the PATH; install it, or name one by CHROMIUM=/path/to/it")
    with tempfile.TemporaryDirectory() as profile:
        # --no-sandbox: it runs as root in containers, and sees pages of our own alone.
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        options += ["--blink-settings=preferredColorScheme=0"] if dark else []
        options += [f"--window-size={width},{height}", f"--screenshot={Path(f'{name}.png').resolve()}", copy.as_uri()]
        subprocess.run([chromium, *options], check=True, capture_output=True, timeout=120)
    # 256 colours are plenty for a page with a few photos, and a third of the bytes.
    picture = Image.open(f"{name}.png").convert("RGB")
    for colours in (256, 128, 64):
        small = picture.quantize(colours, dither=Image.Dither.NONE)
        small.save(PICTURES / f"{name}.png", optimize=True)
        if (PICTURES / f"{name}.png").stat().st_size < MOST_BYTES:
            break
    else:
        sys.exit(f"{name}.png has more than {MOST_BYTES:,} bytes; show less")
    print(f"{PICTURES / name}.png", (PICTURES / f"{name}.png").stat().st_size, "bytes", flush=True)


def main() -> None:
    """Command line of this file."""
    known = {each.__name__: each for each in (preview, plan, index, report, top)}
    if unknown := set(sys.argv[1:]) - known.keys():
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    PICTURES.mkdir(exist_ok=True)
    # The name stands on the pages, so it is the same each time.
    folder = Path(tempfile.gettempdir(), "navit")
    try:
        folder.mkdir()
    except FileExistsError:
        sys.exit(f"{folder} exists; take it away, since the pictures are made there")
    try:
        os.chdir(folder)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(DOCS.parent.resolve()), os.environ.get("PYTHONPATH", "")])
        for name in sys.argv[1:] or known:
            known[name]()
    finally:
        os.chdir(DOCS)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
