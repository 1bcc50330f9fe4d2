"""All tests that need a GPU, each a row. In: `tests/`, marked `gpu`. Out: passed, failed or skipped, with the reason.

python bench/day/correct.py --out FILE [--seconds N]
"""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from tempfile import TemporaryDirectory

from rows import HERE, Rows, need_gpu

ROOT = HERE.parents[1]


def main() -> None:
    rows = Rows.begin(__doc__)
    need_gpu(rows, "tests marked gpu")
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        # -P: an installed wheel, which has the engine, goes before the sources beside the tests, which may not.
        command = [sys.executable, "-P", "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", "--override-ini=timeout=0", "--override-ini=filterwarnings=default"]
        # By their text, since others want packages that such a machine may lack; `DEVICES` holds the mark for some of them.
        texts = {p: p.read_text() for p in sorted((ROOT / "tests").rglob("test_*.py"))}
        marked = [p for p, text in texts.items() if "mark.gpu" in text or "DEVICES" in text]
        try:
            ran = subprocess.run([*command, *map(str, marked)], cwd=ROOT, timeout=max(rows.left - 3, 1), check=False)
            rows.add("pytest -m gpu", status=ran.returncode)
        except subprocess.TimeoutExpired:
            rows.add("pytest -m gpu", failed=f"not done within {rows.left:.0f} s of its limit")
        if not report.exists():
            return
        for case in ET.parse(report).getroot().iter("testcase"):
            name = f"{case.get('classname', '').rpartition('.')[2]}: {case.get('name')}"
            seconds = float(case.get("time") or 0)
            bad = [*case.findall("failure"), *case.findall("error")]
            skipped = case.find("skipped")
            if bad:
                rows.add(name, failed=" ".join((bad[0].get("message") or "").split())[:600], seconds=seconds)
            elif skipped is not None:
                rows.add(name, skipped=skipped.get("message") or "", seconds=seconds)
            else:
                rows.add(name, passed=True, seconds=seconds)


if __name__ == "__main__":
    main()
