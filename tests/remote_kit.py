"""Servers that the tests of remote sources start on loopback: S3 by moto, nginx, and one that misbehaves as it is told."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(command: list[str], port: int, log: Path) -> Iterator[None]:
    """A server process, from the moment it answers."""
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            for _ in range(600):
                assert server.poll() is None, log.read_text()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


@contextmanager
def s3_server(folder: Path) -> Iterator[Any]:
    """An S3-compatible server with an empty bucket `navit`; yields a boto3 client. Sets the environment for it."""
    import boto3

    port = free_port()
    environment = {
        "AWS_ENDPOINT": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    }  # fmt: skip
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    try:
        with process(command, port, folder / "moto.log"):
            client = boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT"], region_name="us-east-1")
            client.create_bucket(Bucket="navit")
            yield client
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextmanager
def nginx(folder: Path) -> Iterator[str]:
    """Serves a folder by nginx; yields its address."""
    found = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if found is None:
        pytest.skip("nginx is not installed; on Debian: apt-get install nginx-light")
    port, home = free_port(), folder / "nginx"
    home.mkdir()
    paths = "".join(f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (home / "nginx.conf").write_text(
        f"daemon off; pid {home}/pid; error_log stderr; worker_processes 1;{'user root;' if os.getuid() == 0 else ''}"
        f"events {{}} http {{ access_log off; {paths} server {{ listen 127.0.0.1:{port}; root {folder}; }} }}"
    )
    with process([found, "-p", str(home), "-c", str(home / "nginx.conf")], port, home / "log"):
        yield f"http://127.0.0.1:{port}"


class Faulty(http.server.ThreadingHTTPServer):
    """Serves a folder with ranges over HTTP, except for what `faults` says of the next requests.

    Attributes:
        faults: for each of the next GETs: a status to answer with, `cut` (the body ends early), `whole` (the range is
            ignored), `ok`. Empty means all is well.
        always: the fault of every GET after those.
        gets: the GETs so far.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.faults, self.always, self.gets = root, deque[Any](), "ok", 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        fault: Any = "ok"
        if body:
            with self.server.lock:
                self.server.gets += 1
                fault = self.server.faults.popleft() if self.server.faults else self.server.always
        path = self.server.root / self.path.lstrip("/")
        if isinstance(fault, int) or not path.is_file():
            self.send_response(fault if isinstance(fault, int) else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        size, status, extra = len(data), 200, None
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and fault != "whole":
            first, last = int(asked[1]), min(int(asked[2]), size - 1)
            if first >= size:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data, status, extra = data[first : last + 1], 206, f"bytes {first}-{last}/{size}"
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        if extra:
            self.send_header("Content-Range", extra)
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
            if fault == "cut":
                self.close_connection = True
