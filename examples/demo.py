"""`make demo`: from a folder of images to a trained NaViT, through the real commands.

In: nothing but scikit-learn's digits. Out: a table of held-out accuracies beside three classical methods on the same split, and
`OUT/report.html`. The daemon is a process of its own, and the trainer gets every batch from it over ZeroMQ.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import digits
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from navit_loader.errors import NavitError
from navit_model.train import report
from navit_model.train.lock import hold

CONFIG = Path(__file__).with_name("digits.toml")
TOKENS = (16, 25, 36, 49, 64)
READY_S = 60


def say(text: str) -> None:
    """One heading of the demo's output."""
    print(f"\n== {text}", flush=True)


def command(package: str, *args: object) -> list[str]:
    """A command line of `navit_loader` or `navit_model` in this interpreter."""
    return [sys.executable, "-m", package, *map(str, args)]


@contextmanager
def daemon(config: Path) -> Iterator[str]:
    """Starts `navit-loader serve` on a free port and gives its address once it says that it is ready."""
    log = config.with_suffix(".serve.log")
    with log.open("w", encoding="utf-8") as errors:
        line = command("navit_loader", "serve", config, "--bind", "tcp://127.0.0.1:0")
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True)
        late = threading.Timer(READY_S, process.kill)
        late.start()
        try:
            assert process.stdout is not None
            first = process.stdout.readline().strip()
            late.cancel()
            found = re.search(r"tcp://\S+", first)
            if found is None:
                process.wait()
                sys.exit(f"the daemon did not come up within {READY_S} s; its log:\n{log.read_text(encoding='utf-8')}")
            print(first, flush=True)
            yield found[0]
        finally:
            late.cancel()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def baselines() -> dict[str, float]:
    """Accuracies of three classical methods on the same split, from the digits' 8 × 8 pixels."""
    data = load_digits()
    train, heldout = digits.split()
    methods = {
        "3 nearest neighbours": KNeighborsClassifier(3),
        "logistic regression": LogisticRegression(max_iter=1000),
        "support vector machine": SVC(),
    }
    scores = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline need not converge fully
        for name, method in methods.items():
            method.fit(data.data[train] / 16, data.target[train])
            scores[name] = float(method.score(data.data[heldout] / 16, data.target[heldout]))
    return scores


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to")
    parser.add_argument("--steps", type=int, default=1500, help="training steps")
    args = parser.parse_args()
    try:
        with hold(args.out, "demo"):
            demo(args.out, args.steps)
    except NavitError as e:
        sys.exit(f"the demo stopped: {e}")


def demo(out: Path, steps: int) -> None:
    """Runs the whole path in `out`, which this process holds."""
    began = time.monotonic()

    say("scikit-learn's digits as JPEG and PNG files of varied size and aspect ratio")
    counts = digits.write(out / "digits")
    print(f"{counts['train']} for training, {counts['heldout']} held out, in {out / 'digits'}")

    say("index: headers only")
    for name in counts:
        subprocess.run(command("navit_loader", "index", out / "digits" / name, "-o", out / f"{name}.arrow"), check=True)

    say("serve: a daemon in another process plans and renders")
    config = out / "demo.toml"
    text = CONFIG.read_text(encoding="utf-8").replace("runs/digits/run", str(out))
    config.write_text(text.replace("runs/digits/", f"{out}/"), encoding="utf-8")
    for old in (out / "log.jsonl", out / "report.html"):
        old.unlink(missing_ok=True)
    for old in (out / "checkpoints").glob("*/*"):
        old.unlink()
    for old in (out / "checkpoints").glob("*"):
        old.rmdir()
    with daemon(config) as address:
        say("train: a tiny NaViT, every batch over ZeroMQ")
        changes = (f"data.endpoints=['{address}']", f"train.steps={steps}", "train.eval_tokens=[64]")
        subprocess.run(command("navit_model", "train", config, *changes), check=True)

    say("evaluate: held-out digits at several token budgets")
    scores = out / "scores.json"
    subprocess.run(
        command("navit_model", "eval", out, out / "heldout.arrow", "--tokens", *TOKENS, "--json", scores), check=True
    )
    result = json.loads(scores.read_text(encoding="utf-8"))
    if Path(result["checkpoint"]).name != f"step-{steps:08d}":
        sys.exit(f"the demo stopped: it evaluated '{result['checkpoint']}', not the step {steps} that it trained")
    classical = baselines()
    for name, accuracy in classical.items():
        print(f"{name:>24}: {accuracy:.2%}")
    page = report.write(out, baselines=classical, scores=result["scores"])
    print(f"\n{time.monotonic() - began:.0f} s; see {page}")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as e:
        sys.exit(f"the demo stopped: '{' '.join(e.cmd[2:4])}' ended with status {e.returncode}")
    except KeyboardInterrupt:
        sys.exit(130)
