"""What systemd gives us and wants to hear: sockets it listens on already, readiness, the watchdog (sd_notify(3), sd_listen_fds(3)).

Without systemd all of it is absent and nothing happens.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

from twisted.internet.endpoints import _SystemdParser
from twisted.logger import Logger

from twistedproxy.config.model import Endpoint

FIRST_FD = 3


def listening_sockets(environ: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """Sockets that were handed over, by their address; the words about them are taken out, so that no child believes they are its."""
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    found: dict[str, socket.socket] = {}
    if pid == str(os.getpid()) and count.isascii() and count.isdigit():
        descriptors = list(range(FIRST_FD, FIRST_FD + int(count)))
    else:
        # Twisted's endpoints take the words out of the environment when they are imported, which twistd has done by now.
        descriptors = _SystemdParser._sddaemon.inheritedDescriptors()
    for fd in descriptors:
        handed = socket.socket(fileno=fd)
        os.set_inheritable(fd, False)
        handed.setblocking(False)
        found[address_of(handed)] = handed
    return found


def address_of(sock: socket.socket) -> str:
    """As `Endpoint` writes it."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return str(Endpoint(sock.family, name))
    return str(Endpoint(sock.family, name[0], name[1]))


class Notifier:
    """Tells the service manager how we are; silent where there is none."""

    log = Logger()

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        path = environ.pop("NOTIFY_SOCKET", "")
        usec = environ.get("WATCHDOG_USEC", "")
        self.words = {"NOTIFY_SOCKET": path} | ({"WATCHDOG_USEC": usec} if usec else {}) if path else {}
        """What a successor needs in its environment."""
        self._path = "\0" + path[1:] if path.startswith("@") else path
        pid, period = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
        is_ours = pid in ("", str(os.getpid())) and period.isascii() and period.isdigit()
        self.watchdog_s = int(period) / 1_000_000 / 2 if is_ours and self._path else None
        """How often to say `alive`; None: nobody listens for it."""
        self._has_failed = False

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=finishing what is open")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def hand_over(self, pid: int) -> None:
        """Our successor is the main process from now on; we say no more, which could be taken for its words."""
        self._send(f"MAINPID={pid}")
        self._path = ""

    def _send(self, words: str) -> None:
        if not self._path:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(words.encode(), self._path)
        except OSError as e:
            if not self._has_failed:
                self._has_failed = True
                self.log.error("systemd cannot be told how we are: {why}", why=str(e))
