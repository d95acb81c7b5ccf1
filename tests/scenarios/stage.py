"""Where a scenario is played: a whole data plane, scripted servers behind it, raw clients in front, and what must hold at the end.

How it works
    `Inside` runs the real `Worker` of the proxy in this process: its own event loop turned by hand, real sockets on loopback, a clock
    that can be moved on. Nothing happens unless somebody waits for it, so a scenario runs the same way every time.
    `Outside` plays the same scenario against a running proxy process; only its clock cannot be moved.
    Peers (`Peer`) do nothing by themselves. An `Origin` may be told to answer by itself (`answer_with`), and writes down what it saw.
"""

from __future__ import annotations

import gc
import os
import random
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from peers import HOST, LIMIT_S, OK, Broken, Origin, Peer
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from twistedproxy.config.changes import Ejected
from twistedproxy.config.loader import parse
from twistedproxy.net.reactor import ProxyReactor
from twistedproxy.net.splice import PIPES
from twistedproxy.pool.pool import Pool
from twistedproxy.supervisor.passive import PassiveFailures
from twistedproxy.worker.service import Worker

LAG_S = 0.05
"""Oracle O4: no turn of the event loop takes more CPU time."""
DEFAULT_PROXY = """
[pools.web]
servers = [SERVERS]
[sites."*"]
"/" = "web"
"""


class Stage:
    """What both kinds have in common."""

    can_travel = False

    def __init__(self) -> None:
        self.origins: dict[str, Origin] = {}
        self.clients: list[Peer] = []
        self.port = 0
        self.tcp_port = 0
        self._canary: Peer | None = None
        self._canaries = 0

    def turn(self, wait: float = 0.0) -> None:
        raise NotImplementedError

    def until(self, condition: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + LIMIT_S
        while True:
            for origin in self.origins.values():
                origin.pump()
            if condition():
                return
            if time.monotonic() > end:
                raise Broken(f"not within {LIMIT_S:g} s: {what}")
            self.turn(0.002)

    def client(self, port: int = 0, receive_buffer: int = 0) -> Peer:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect((HOST, port or self.port))
        peer = Peer(self, sock)
        self.clients.append(peer)
        return peer

    def canary(self) -> None:
        """Oracle O2: a bystander on a connection of its own gets its own answer. Also a barrier: what was sent before has arrived."""
        self._canaries += 1
        path = b"/canary/%d" % self._canaries
        if self._canary is None or self._canary.is_over:
            self._canary = self.client()
        peer = self._canary
        peer.send(b"GET %b HTTP/1.1\r\nHost: canary.example\r\n\r\n" % path)
        head, body = peer.message()
        if not head.startswith(b"HTTP/1.1 200 ") or body != path or peer.rest:
            raise Broken(f"O2: the canary asked for {path!r} and got {head!r} {body!r} {peer.rest!r}")
        if b"onnection: close" in head:
            peer.close()

    def take_seen(self, origin: Origin) -> list[bytes]:
        """What the server saw since last asked, the canary's requests apart."""
        seen, origin.seen = origin.seen, []
        return [request for request in seen if b" /canary/" not in request[:40]]

    def counter(self, reason: str) -> int:
        raise NotImplementedError


def black_hole() -> list[socket.socket]:
    """A listening socket (the first) whose queue is full, so that the kernel answers no further SYN."""
    listening = socket.socket()
    listening.bind((HOST, 0))
    listening.listen(0)
    held = [listening]
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listening.getsockname())
        held.append(sock)
    return held


class Log:
    """An access log that keeps (status, cause/phase) of every line."""

    dropped = 0

    def __init__(self) -> None:
        self.lines: list[tuple[int, str, int]] = []

    def log_http(self, *line: Any) -> None:
        self._add(line[2], line[10], line[11], line[9])

    def log_tcp(self, *line: Any) -> None:
        self._add(0, line[7], line[8], 0)

    def _add(self, status: int, cause: Any, phase: Any, attempts: int) -> None:
        self.lines.append((status, f"{cause.value}/{phase.value if phase is not None else '-'}", attempts))

    def flush(self) -> None: ...

    def close(self) -> None: ...


class _NoChance(random.Random):
    """Round robin begins with the first server."""

    def random(self) -> float:
        return 0.0

    def randrange(self, *bounds: int) -> int:  # type: ignore[override]
        return 0


class _Reports:
    """Stands for the supervisor: ejections are decided as it does."""

    def __init__(self, stage: Inside) -> None:
        self.stage = stage

    def heartbeat(self, *words: Any) -> None: ...

    def statistics(self, totals: Mapping[str, Any]) -> None: ...

    def failures(self, rows: Any) -> None:
        ejected: list[Ejected] = self.stage.passive.add(rows)
        self.stage.worker.observe(ejected)
        self.stage.ejected += [e.server for e in ejected]


class Inside(Stage):
    """The data plane in this process."""

    can_travel = True

    def __init__(
        self,
        proxy: str = DEFAULT_PROXY,
        servers: tuple[str, ...] = ("server",),
        listener: str = "",
        tcp: str = "",
        receive_buffers: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        gc.collect()
        gc.freeze()  # as a worker does; what the test program itself holds is not the proxy's time
        self._skipped = 0.0
        self.lag = 0.0
        self.failures: list[str] = []
        globalLogPublisher.addObserver(self._saw)
        self._hole: list[socket.socket] = []
        self._fds = len(os.listdir("/proc/self/fd"))
        self._pipes = PIPES.lent
        self.origins = {name: Origin(self, name, (receive_buffers or {}).get(name, 0)) for name in servers}
        listening = [self._listening() for _ in range(2 if tcp else 1)]
        self.port = listening[0].getsockname()[1]
        text = f'[listen]\nhttp = [{{ address = "{HOST}:{self.port}"{", " + listener if listener else ""} }}]\n'
        if tcp:
            self.tcp_port = listening[1].getsockname()[1]
            text += f'[tcp."{HOST}:{self.tcp_port}"]\n{tcp}\n'
        names = ", ".join(f'"{origin.address}"' for origin in self.origins.values())
        text += proxy.replace("SERVERS", names)
        for name, origin in self.origins.items():
            text = text.replace("{" + name + "}", origin.address)
        if "{hole}" in text:
            self._hole = black_hole()
            text = text.replace("{hole}", "{}:{}".format(*self._hole[0].getsockname()))
        self.reactor: Any = ProxyReactor()
        self.reactor.seconds = self.seconds
        self.model = parse(text, base_dir="/tmp", state_dir_default="/tmp", has_ipv6=False)
        self.passive = PassiveFailures(self.seconds)
        self.passive.update(self.model)
        self.ejected: list[str] = []
        self.is_finished = False
        self.worker = Worker(self.reactor, _Reports(self), finished=self._finished)
        self.worker._random = _NoChance()
        self.worker.configure(self.model, 1)
        self.log = self.worker._access_log = Log()  # type: ignore[assignment]
        for place in self.worker.places.values():
            place.front.access_log = self.log  # type: ignore[union-attr]
        for sock in listening:
            self.worker.adopt_socket("{}:{}".format(*sock.getsockname()), 0, sock.detach())

    def _finished(self) -> None:
        self.is_finished = True

    def _saw(self, event: Mapping[str, Any]) -> None:
        failure = event.get("log_failure")
        if isinstance(failure, Failure):
            self.failures.append(failure.getTraceback())

    @staticmethod
    def _listening() -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, 0))
        sock.listen(512)
        return sock

    def seconds(self) -> float:
        return time.monotonic() + self._skipped

    def turn(self, wait: float = 0.0) -> None:
        reactor = self.reactor
        began = time.thread_time()
        reactor.runUntilCurrent()
        due = reactor.timeout()
        reactor.doPoll(wait if due is None else min(due, wait))
        reactor.runUntilCurrent()
        took = time.thread_time() - began
        self.lag = max(self.lag, took)

    def travel(self, seconds: float) -> None:
        """Let the proxy's clock run ahead, tick by tick."""
        self.until_quiet()
        end = self._skipped + seconds
        while self._skipped < end:
            self._skipped = min(self._skipped + 0.05, end)
            self.turn()
            for origin in self.origins.values():
                origin.pump()
        self.until_quiet()

    def until_quiet(self) -> None:
        for _ in range(4):
            self.turn(0.001)
            for origin in self.origins.values():
                origin.pump()

    def counter(self, reason: str) -> int:
        return self.worker.metrics.rejected[reason]

    def retries(self, reason: str) -> int:
        return sum(n for (_, why), n in self.worker.metrics.retries.items() if why == reason)

    @property
    def pools(self) -> list[Pool]:
        return list(self.worker.pools.values())

    @property
    def leases(self) -> int:
        return sum(s.active for p in self.pools for s in p.servers)

    @property
    def idle(self) -> int:
        return sum(len(s.idle) for p in self.pools for s in p.servers)

    def transports(self) -> list[Any]:
        return [s for s in self.reactor._selectables.values() if hasattr(s, "buffered")]

    def finish(self) -> None:
        """Everybody leaves; then oracles O3 (nothing is held any more), O4 (the loop was never blocked), O5 (no traceback)."""
        try:
            for client in self.clients:
                client.close()
            self.until(lambda: not self.worker.open, "O3: all client connections to be closed")
            self.until(lambda: not self.leases, "O3: all leases to be released")
            for origin in self.origins.values():
                origin.close()
            self.until(lambda: not self.idle and not self.transports(), "O3: all server connections to be closed")
            if any(p.waiting or p._budget._now for p in self.pools):
                raise Broken("O3: somebody is still in a queue or holds a retry")
            if PIPES.lent != self._pipes:
                raise Broken(f"O3: {PIPES.lent - self._pipes} pipes are still lent")
            open_now = [c.open for c in self.worker.metrics._listeners.values() if c.open]
            if open_now:
                raise Broken(f"O3: the gauge of open connections says {open_now}")
            self.worker.drain(0.0)
            self.until(lambda: self.is_finished, "O3: the worker to finish")
            late = [call for call in self.reactor.getDelayedCalls() if call.active()]
            if late:
                raise Broken(f"O3: delayed calls are left: {late}")
            if len(wheel := self.worker.wheel):
                armed = [t for bucket in wheel._buckets.values() for t in bucket if t.deadline < float("inf")]
                if armed:
                    raise Broken(f"O3: deadlines are left: {armed}")
            if self.failures:
                raise Broken("O5: a traceback was logged:\n" + self.failures[0])
            if self.lag > LAG_S:
                raise Broken(f"O4: one turn of the event loop took {self.lag * 1000:.0f} ms of CPU")
        finally:
            self.close()
        PIPES.close_idle()
        fds = len(os.listdir("/proc/self/fd"))
        if fds > self._fds:
            raise Broken(f"O3: {fds - self._fds} descriptors are left open")

    def close(self) -> None:
        globalLogPublisher.removeObserver(self._saw)
        for peer in self.clients:
            peer.close()
        for origin in self.origins.values():
            origin.close()
        for sock in self._hole:
            sock.close()
        for selectable in self.reactor.removeAll():
            sock = getattr(selectable, "sock", None)
            if sock is not None:
                sock.close()
        for call in self.reactor.getDelayedCalls():
            call.cancel()
        waker = self.reactor.waker
        if waker is not None:
            waker.connectionLost(None)
        self.reactor._poller.close()


class Outside(Stage):
    """A running proxy: `ask` gives its metrics text, `port` its HTTP listener; `origin` is the one server behind it."""

    def __init__(self, port: int, origin_name: str, metrics: Callable[[], str]) -> None:
        super().__init__()
        self.port = port
        self._metrics = metrics
        self.origins = {origin_name: Origin(self, origin_name)}

    def canary_now(self) -> None:
        """The first exchange, with an answer by itself: from here on there is a pooled connection."""
        for origin in self.origins.values():
            origin.answer = OK
        self.canary()

    def leave(self) -> None:
        """All clients and servers' connections go."""
        for peer in (*self.clients, *(c for origin in self.origins.values() for c in origin.connections)):
            peer.close()

    def turn(self, wait: float = 0.0) -> None:
        time.sleep(0.0005)

    def counter(self, reason: str) -> int:
        found = re.search(rf'revproxy_rejected_total{{reason="{reason}"}} ([0-9.e+]+)', self._metrics())
        return int(float(found[1])) if found else 0
