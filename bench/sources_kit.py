"""Rendering from each kind of source: files, tars, Parquet, and a web server that answers late.

In: photographs that it writes in every container. Out: images per second of each, in rounds that alternate, so that what
else the machine does touches all alike. The server is nginx with the module echo (Debian: libnginx-mod-http-echo), which
waits before it serves; its processor time is read from /proc.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from corpus import make

from navit_loader import LoaderConfig, PackedLoader, build_index
from navit_loader.config import Order

UNIQUE = 400
"""Photographs that differ; the data set repeats them."""
GROUP = 100
"""Rows of a row group, as Hugging Face's `datasets` writes images; each is one page."""
MODULE = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")
SEARCHED = os.environ["PATH"] + ":/usr/sbin"


@dataclass(frozen=True, slots=True)
class Run:
    """One pass over all images.

    Attributes:
        seconds: from the first batch's request to the last batch.
        cpu: seconds of this process's processor time.
        served: the same of the server.
        images: images rendered.
    """

    seconds: float
    cpu: float
    served: float
    images: int


def write(folder: Path, count: int) -> dict[str, Path]:
    """The same images as files, a tar, and Parquet as Hugging Face writes it (snappy) and uncompressed; indexes of each."""
    photographs = make(UNIQUE, 0.2, 0.35)
    names = [f"{i:06d}.jpg" for i in range(count)]
    data = [photographs[i % UNIQUE] for i in range(count)]
    (folder / "files").mkdir(parents=True)
    for name, content in zip(names, data, strict=True):
        (folder / "files" / name).write_bytes(content)
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name, content in zip(names, data, strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for kind in ("snappy", "none"):
        with pq.ParquetWriter(
            folder / f"{kind}.parquet", pa.schema([("image", image)]), compression=kind, use_dictionary=False
        ) as writer:
            for start in range(0, count, GROUP):
                part = slice(start, start + GROUP)
                rows = [{"bytes": d, "path": n} for d, n in zip(data[part], names[part], strict=True)]
                writer.write_table(pa.table({"image": pa.array(rows, image)}))
    found = {}
    for name in ("files", "x.tar", "snappy.parquet", "none.parquet"):
        found[name] = folder / f"{name}.arrow"
        build_index(folder / name, found[name])
    return found


def config(kind: Literal["permutation", "blocks"]) -> LoaderConfig:
    """The paper's sizes, sequences of 1,024 tokens, as many threads as cores."""
    base = LoaderConfig()
    order = Order(kind=kind, block=256, window=8)
    return replace(base, plan=replace(base.plan, order=order))


def render(index: Path, kind: Literal["permutation", "blocks"], server: int = 0) -> Run:
    """One epoch with a fresh loader, so that nothing is left of the run before. `server` is nginx's process id."""
    with PackedLoader(index, config(kind), rank=0, world_size=1) as loader:
        served, cpu, start = _busy(server), time.process_time(), time.perf_counter()
        images = sum(batch.num_images for batch in loader)
        return Run(time.perf_counter() - start, time.process_time() - cpu, _busy(server) - served, images)


def _busy(pid: int) -> float:
    """Seconds of processor time of a process and its children."""
    if not pid:
        return 0.0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ticks = 0
    for each in (str(pid), *children):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def nginx(folder: Path, late_ms: int = 0) -> Iterator[tuple[str, int, Path]]:
    """Serves a folder, each answer `late_ms` milliseconds late; yields its address, its process id, and a log with a line for
    each answer: the range that was asked for, and the bytes sent. `missing` says what keeps it from running."""
    found, home, port = shutil.which("nginx", path=SEARCHED), folder / "nginx", free_port()
    home.mkdir()
    paths = "".join(f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    late = f"location / {{ echo_sleep {late_ms / 1000}; echo_exec @file; }} location @file {{ }}" if late_ms else ""
    (home / "nginx.conf").write_text(
        f"{f'load_module {MODULE};' if late_ms else ''} daemon off; pid {home}/pid; error_log stderr; worker_processes 1;"
        f"{'user root;' if os.getuid() == 0 else ''} events {{}} http {{ log_format sent '$http_range $body_bytes_sent'; "
        f"access_log {home}/sent sent; {paths} sendfile on; server {{ listen 127.0.0.1:{port}; root {folder}; {late} }} }}"
    )
    command = [str(found), "-p", str(home), "-c", str(home / "nginx.conf")]
    with (home / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            for _ in range(100):
                if server.poll() is not None:
                    raise SystemExit((home / "log").read_text())
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", server.pid, home / "sent"
        finally:
            server.terminate()


def missing(late: bool) -> str:
    """What `nginx` would need, on Debian; nothing where it can run."""
    if shutil.which("nginx", path=SEARCHED) is None:
        return "no nginx; on Debian: apt-get install nginx-light"
    return "no module echo; on Debian: apt-get install libnginx-mod-http-echo" if late and not MODULE.exists() else ""
