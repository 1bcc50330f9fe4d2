"""Who may talk to the daemon: addresses that need no keys, CURVE keys, and the allow-list.

In: a bind address, key files. Out: a refusal that says how to go on, or sockets with keys and a ZAP handler that lets
in the listed keys alone. Loopback and `ipc://` need no keys; the directory of an `ipc://` socket must be closed to
others.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from ..errors import ServiceError
from .log import ServiceLog

SERVER, CLIENT, ALLOW = "server", "client", "allow"


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """The daemon's key pair and the public keys of the clients that may connect."""

    public: bytes
    secret: bytes = field(repr=False)
    allowed: frozenset[bytes]

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> ServerKeys:
        """From a folder made by `navit-loader keys`: `server.key_secret` and `allow/*.key`.

        Raises:
            ServiceError: a missing, unreadable or malformed key file.
        """
        folder = Path(folder)
        public, secret = _pair(folder / f"{SERVER}.key_secret")
        files = sorted((folder / ALLOW).glob("*.key"))
        if not files:
            raise ServiceError(
                f"no client keys in '{folder / ALLOW}'; nobody could connect; make them with navit-loader keys"
            )
        return cls(public, secret, frozenset(_public(f) for f in files))

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Makes a listening socket demand CURVE."""
        socket.curve_server = True
        socket.curve_publickey = self.public
        socket.curve_secretkey = self.secret
        socket.zap_domain = b"navit"


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """A client's key pair and the public key of the daemon it trusts."""

    public: bytes
    secret: bytes = field(repr=False)
    server: bytes

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> ClientKeys:
        """From a folder made by `navit-loader keys`: `client.key_secret` and `server.key`.

        Raises:
            ServiceError: a missing, unreadable or malformed key file.
        """
        folder = Path(folder)
        return cls(*_pair(folder / f"{CLIENT}.key_secret"), _public(folder / f"{SERVER}.key"))

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Makes a connecting socket use CURVE."""
        socket.curve_publickey = self.public
        socket.curve_secretkey = self.secret
        socket.curve_serverkey = self.server


def fresh_keys() -> tuple[ServerKeys, ClientKeys]:
    """Keys of a daemon and of all its clients, in memory alone."""
    (public, secret), client = zmq.curve_keypair(), zmq.curve_keypair()
    return ServerKeys(public, secret, frozenset({client[0]})), ClientKeys(*client, public)


def make_keys(folder: str | Path, clients: list[str]) -> list[Path]:
    """Makes the daemon's key pair, unless there is one, and one pair per client, ready to be copied to their hosts.

    `FOLDER/server/` is for the daemon (`server.key_secret`, `allow/NAME.key`), `FOLDER/NAME/` for each client
    (`client.key_secret`, `server.key`). Secret files are readable by their owner alone.

    Returns:
        The folders, the daemon's first.

    Raises:
        ServiceError: a client of that name has keys already, or a name is not a plain word.
    """
    folder = Path(folder)
    home = folder / SERVER
    for name in clients:
        if not name or name == SERVER or not all(c.isalnum() or c in "-_" for c in name):
            raise ServiceError(f"client name '{name}' is not allowed; use letters, digits, '-' and '_', not '{SERVER}'")
        if (folder / name).exists():
            raise ServiceError(f"'{folder / name}' exists already; choose another name or remove it first")
    (home / ALLOW).mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (home / f"{SERVER}.key_secret").exists():
        _create(home, SERVER)
    made = [home]
    for name in clients:
        own = folder / name
        own.mkdir(mode=0o700)
        _create(own, CLIENT)
        (home / ALLOW / f"{name}.key").write_bytes((own / f"{CLIENT}.key").read_bytes())
        (own / f"{SERVER}.key").write_bytes((home / f"{SERVER}.key").read_bytes())
        made.append(own)
    return made


def _create(folder: Path, name: str) -> None:
    before = os.umask(0o077)
    try:
        zmq.auth.create_certificates(folder, name)
    finally:
        os.umask(before)


def _pair(path: Path) -> tuple[bytes, bytes]:
    public, secret = _load(path)
    if secret is None:
        raise ServiceError(f"'{path}' holds no secret key; make one with navit-loader keys")
    found = path.stat()
    # A secret that is mounted into a pod is root's, and the pod's group reads it.
    lent = stat.S_IRGRP if found.st_uid == 0 and os.geteuid() != 0 else 0
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~lent:
        raise ServiceError(f"'{path}' can be read by others; close it first: chmod 600 '{path}'")
    return public, secret


def _public(path: Path) -> bytes:
    return _load(path)[0]


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = zmq.auth.load_certificate(path)
    except OSError:
        raise ServiceError(f"no key at '{path}'; make keys with navit-loader keys FOLDER --client NAME") from None
    except ValueError as e:
        raise ServiceError(f"'{path}' is not a key file: {e}") from None
    if any(key is not None and len(key) != 40 for key in (public, secret)):
        raise ServiceError(f"'{path}' is not a key file: a key has 40 characters")
    return public, secret


class _Listed:
    """What `ThreadAuthenticator` asks for each key."""

    def __init__(self, allowed: frozenset[bytes], log: ServiceLog) -> None:
        self._allowed, self._log = allowed, log

    def callback(self, domain: str, key: bytes) -> bool:
        listed = key in self._allowed
        self._log.counts["keys_accepted" if listed else "refused_key"] += 1
        if not listed:
            words = f"refused=key key={key.decode('ascii', 'replace')!r} is not on the allow-list"
            self._log.say("refused_key", words, logging.WARNING)
        return listed


def allow_list(context: zmq.Context[zmq.Socket[bytes]], keys: ServerKeys, log: ServiceLog) -> ThreadAuthenticator:
    """Starts the ZAP handler of `context`: the listed keys may connect, all others are refused, logged and counted."""
    auth = ThreadAuthenticator(context)
    auth.start()
    auth.configure_curve_callback("navit", _Listed(keys.allowed, log))
    return auth


def check_address(address: str) -> None:
    """Refuses what is no address. ZeroMQ would take a port modulo 65,536.

    Raises:
        ServiceError: says what an address looks like.
    """
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if address.startswith("tcp://") and host and port.isdecimal() and int(port) <= 65535:
        return
    if not address.startswith("ipc://") or address == "ipc://":
        raise ServiceError(f"address '{address}' is not allowed; use tcp://HOST:PORT, ports to 65535, or ipc://PATH")


def check_bind(address: str, keys: ServerKeys | None) -> None:
    """Refuses an address that others could reach without keys.

    Raises:
        ServiceError: says how to make keys, or how to close the directory.
    """
    check_address(address)
    if address.startswith("ipc://"):
        path = Path(address.removeprefix("ipc://"))
        if str(path).startswith("@"):
            raise ServiceError(
                f"'{address}' can be reached by every user of this host; use ipc://PATH in a closed directory"
            )
        folder = path.parent
        if not folder.is_dir():
            raise ServiceError(
                f"cannot listen on '{address}': no directory '{folder}'; make it first: mkdir -m 700 '{folder}'"
            )
        if folder.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) and keys is None:
            raise ServiceError(f"'{folder}' is open to other users; close it first: chmod 700 '{folder}'")
        return
    if keys is None and not _is_loopback(address):
        raise ServiceError(
            f"'{address}' can be reached from other hosts, and no keys are given; make them with "
            "'navit-loader keys FOLDER --client NAME' and start with --keys FOLDER/server, or bind to tcp://127.0.0.1:PORT"
        )


def _is_loopback(address: str) -> bool:
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
