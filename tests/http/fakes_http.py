"""A whole HTTP front end in one process: real listener, front, router and pool on loopback; raw clients and scripted servers.

Loaded by path from `conftest.py`, which gives each test case that says ``uses_bed = True`` a `Bed` as ``self.bed``. Everything is turned by
hand (see ``tests/net/fakes_net.py``): nothing happens unless a test waits for something, and deadlines pass by `Bed.travel`.
"""

import importlib.util
import random
import socket
import time
from collections import namedtuple
from pathlib import Path

from twistedproxy.config.model import Address, HttpListener, Pool, Retry, Route, Server, Site, Timeouts
from twistedproxy.http.destination import Destination
from twistedproxy.http.front import HttpFront
from twistedproxy.http.head import Limits, parse_request, parse_response
from twistedproxy.http.routes import Router
from twistedproxy.net.connector import Attempt
from twistedproxy.net.listener import Listener
from twistedproxy.net.splice import PIPES
from twistedproxy.net.transport import Transport
from twistedproxy.observability.metrics import Metrics
from twistedproxy.pool.pool import Pool as RunningPool

_spec = importlib.util.spec_from_file_location("fakes_net", Path(__file__).parents[1] / "net" / "fakes_net.py")
fakes_net = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakes_net)

LIMITS = Limits()

Line = namedtuple(
    "Line",
    "client_ip head status bytes_sent bytes_received site pool server duration attempts cause phase request_id listener",
)


class Log:
    """An access log that keeps its lines."""

    def __init__(self):
        self.lines = []

    def log_http(self, *line):
        self.lines.append(Line(*line))


class Message:
    """What a peer received: one request or response."""

    def __init__(self, start, fields, body=b"", trailers=()):
        self.start = start
        self.fields = fields
        self.body = body
        self.trailers = list(trailers)

    @property
    def status(self):
        return int(self.start.split(b" ")[1])

    @property
    def method(self):
        return self.start.split(b" ")[0]

    @property
    def target(self):
        return self.start.split(b" ")[1]

    def all(self, name):
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def get(self, name):
        """The only value of a field, or None; two of them are never right here."""
        values = self.all(name)
        assert len(values) <= 1, f"{name!r} came {len(values)} times: {values}"
        return values[0] if values else None

    def __repr__(self):
        return f"<{self.start!r} {self.fields} {len(self.body)} bytes>"


class Peer:
    """A raw socket of a test: sends what it is told, writes down what it gets."""

    def __init__(self, bed, sock):
        self.bed = bed
        self.sock = bed.loop.keep(sock)
        sock.setblocking(False)
        self.received = bytearray()
        self.at = 0
        self.is_ended = False
        self.is_reset = False

    # Reading

    def pump(self):
        while not (self.is_ended or self.is_reset):
            try:
                data = self.sock.recv(1 << 18)
            except BlockingIOError:
                return
            except ConnectionResetError:
                self.is_reset = True
                return
            if data:
                self.received += data
            else:
                self.is_ended = True

    def until(self, condition, what):
        def check():
            self.pump()
            return condition()

        try:
            self.bed.loop.until(check, what)
        except AssertionError as e:
            raise AssertionError(f"{e}; received and not consumed: {bytes(self.received[self.at :])[:300]!r}") from None

    @property
    def rest(self):
        """Received and not consumed."""
        return bytes(self.received[self.at :])

    def take(self, count):
        self.until(lambda: len(self.received) - self.at >= count or self.is_over, f"{count} bytes")
        data = bytes(self.received[self.at : self.at + count])
        self.at += len(data)
        assert len(data) == count, f"the connection ended after {len(data)} of {count} bytes"
        return data

    def through(self, mark):
        self.until(lambda: self.received.find(mark, self.at) >= 0 or self.is_over, f"{mark!r}")
        end = self.received.find(mark, self.at)
        assert end >= 0, f"the connection ended ({'reset' if self.is_reset else 'closed'}) without {mark!r}: {self.rest[:500]!r}"
        data = bytes(self.received[self.at : end + len(mark)])
        self.at = end + len(mark)
        return data

    def head(self):
        start, *lines = self.through(b"\r\n\r\n")[:-4].split(b"\r\n")
        return Message(start, [tuple(line.split(b": ", 1)) for line in lines])

    def request(self):
        """The next request with its body."""
        message = self.head()
        return self._with_body(message, False)

    def response(self, to=b"GET"):
        """The next response with its body; framing that nobody but the end of the connection gives needs that end to be clean."""
        message = self.head()
        if to == b"HEAD" or message.status < 200 or message.status in (204, 304):
            return message
        return self._with_body(message, True)

    def _with_body(self, message, may_end):
        length, coding = message.get(b"Content-Length"), message.get(b"Transfer-Encoding")
        assert length is None or coding is None, message
        if coding is not None:
            assert coding == b"chunked"
            while size := int(self.through(b"\r\n"), 16):
                message.body += self.take(size)
                assert self.take(2) == b"\r\n"
            while line := self.through(b"\r\n")[:-2]:
                message.trailers.append(tuple(line.split(b": ", 1)))
        elif length is not None:
            message.body = self.take(int(length))
        elif may_end:
            self.ends()
            message.body = self.rest
            self.at = len(self.received)
        return message

    @property
    def is_over(self):
        return self.is_ended or self.is_reset

    def ends(self):
        """Wait until the other side has closed in order."""
        self.until(lambda: self.is_over, "the end of the connection")
        assert self.is_ended, "the connection was reset"

    def breaks(self):
        """Wait until the other side has reset or closed."""
        self.until(lambda: self.is_over, "the connection to break")

    def is_silent(self, turns=5):
        """Nothing comes within some turns of the loop, and the connection stands."""
        before = len(self.received)
        self.bed.loop.turns(turns)
        self.pump()
        return len(self.received) == before and not self.is_over

    # Writing and ending

    def send(self, data):
        view = memoryview(data)
        end = time.monotonic() + fakes_net.LIMIT_S
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                assert time.monotonic() < end, f"{len(view)} bytes could not be sent"
                self.bed.loop.turn(0.002)
                self.pump()
        return self

    def send_what_fits(self, data):
        """Send until nothing more is taken for some turns; returns how many bytes were."""
        sent, idle = 0, 0
        while sent < len(data) and idle < 10:
            try:
                sent += self.sock.send(data[sent : sent + 262144])
                idle = 0
            except BlockingIOError:
                idle += 1
            self.bed.loop.turn(0.001)
        return sent

    def trickle(self, data):
        """Every byte on its own."""
        for i in range(len(data)):
            self.send(data[i : i + 1])
            self.bed.loop.turn()
        return self

    def fin(self):
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def close(self):
        self.sock.close()
        self.is_ended = True

    def reset(self):
        self.bed.loop.reset(self.sock)
        self.is_reset = True


class Origin:
    """A server that does nothing by itself."""

    def __init__(self, bed, receive_buffer=0):
        self.bed = bed
        self.sock = bed.loop.listen(receive_buffer=receive_buffer)
        self.sock.setblocking(False)
        self.address = f"127.0.0.1:{self.sock.getsockname()[1]}"
        self.connections = []

    def pump(self):
        while True:
            try:
                sock, _ = self.sock.accept()
            except (BlockingIOError, OSError):
                return
            self.connections.append(Peer(self.bed, sock))

    def accept(self):
        """The next connection made to it."""
        count = len([c for c in self.connections if c in self._taken])
        self.bed.loop.until(lambda: self.pump() or len(self.connections) > count, "a connection to the server")
        peer = self.connections[count]
        self._taken.append(peer)
        return peer

    @property
    def _taken(self):
        return self.__dict__.setdefault("taken", [])

    @property
    def count(self):
        """Connections made so far."""
        self.bed.loop.turns(3)
        self.pump()
        return len(self.connections)

    def stop(self):
        self.sock.close()


class Bed:
    """Proxy, servers, clients."""

    def __init__(self):
        self.loop = fakes_net.Loop()
        self.fronts = []
        self.listeners = []
        self.pools = []
        self.clients = []
        self.origins = []
        self.log = Log()
        self.pipes_lent = PIPES.lent

    # Building

    def origin(self, **how):
        origin = Origin(self, **how)
        self.origins.append(origin)
        return origin

    def proxy(self, *origins, routes=None, timeouts=None, pool=None, route=None, via=None, hosts=("*",), servers=None, **listener):
        """A front on a free port, whose route ``/`` goes to `origins` (one is made when there is none); returns the first."""
        timeouts = timeouts or Timeouts()
        if not origins and servers is None:
            origins = (self.origin(),)
        addresses = servers or [o.address for o in origins]
        pool = dict(pool or {})
        if isinstance(pool.get("retry"), dict):
            pool["retry"] = Retry(**pool["retry"])
        spec = Pool("web", tuple(s if isinstance(s, Server) else Server(Address(s)) for s in addresses), **pool)
        self.pool = RunningPool(spec, seconds=self.loop.seconds, wheel=self.loop.wheel, random=random.Random(1))
        self.pools.append(self.pool)
        self.metrics = Metrics()
        routes = routes or (Route("/", "web", timeouts=timeouts, **(route or {})),)
        site = Site("site", hosts, tuple(routes), via)
        self.router = Router([site], lambda s, r: Destination(s, r, self.pool, self.metrics))
        sock = self.loop.listen()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.port = sock.getsockname()[1]
        self.front = HttpFront(
            HttpListener(Address(f"127.0.0.1:{self.port}"), **listener),
            self.router,
            reactor=self.loop.reactor,
            wheel=self.loop.wheel,
            timeouts=timeouts,
            metrics=self.metrics,
            access_log=self.log,
            on_closed=lambda: listening.connection_closed(),  # noqa: PLW0108  (made below)
        )
        self.fronts.append(self.front)
        listening = Listener(self.loop.reactor, self.front.accept, 1000)
        listening.add_socket(0, sock)
        self.listeners.append(listening)
        return origins[0] if origins else None

    def black_hole(self):
        """An address that neither accepts nor refuses."""
        hole = self.loop.listen(backlog=0)
        for _ in range(4):
            filler = self.loop.keep(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        return f"127.0.0.1:{hole.getsockname()[1]}"

    def client(self, data=b"", receive_buffer=0):
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(self, sock)
        self.clients.append(peer)
        if data:
            peer.send(data)
        return peer

    def start(self, data, **proxy):
        """A proxy, a client that has sent `data`, and the connection that was made to the server for it."""
        origin = self.proxy(**proxy)
        client = self.client(data)
        return client, origin.accept()

    def until(self, condition, what="the condition"):
        self.loop.until(condition, what)

    def travel(self, seconds):
        self.loop.travel(seconds)

    # Looking

    @property
    def connection(self):
        """The front's only connection."""
        (connection,) = self.front._connections
        return connection

    @property
    def leases(self):
        return sum(s.active for s in self.pool.servers)

    @property
    def idle(self):
        """Idle connections to servers."""
        return sum(len(s.idle) for s in self.pool.servers)

    def logged(self, count=1):
        """The last of exactly `count` log lines."""
        self.until(lambda: len(self.log.lines) >= count, f"{count} log lines")
        assert len(self.log.lines) == count, self.log.lines
        return self.log.lines[-1]

    def rejected(self):
        return {reason: n for reason, n in self.metrics.rejected.items() if n}

    # The end of every test

    def finish(self):
        """Everybody hangs up; whatever was taken must have been given back."""
        try:
            for client in self.clients:
                client.close()
            self.until(lambda: self._hang_up() or not any(f.open for f in self.fronts), "all client connections to be closed")
            self.until(lambda: not any(s.active for p in self.pools for s in p.servers), "all leases to be released")
            self.until(lambda: not any(s.idle for p in self.pools for s in p.servers), "all idle connections to be gone")
            self.until(lambda: not self.open_transports(), "all transports to be closed and no connection to be attempted")
            self.until(lambda: not any(p.waiting for p in self.pools), "the queues to be empty")
            assert all(p._budget._now == 0 for p in self.pools), "a retry was not given back"
            assert PIPES.lent == self.pipes_lent, f"{PIPES.lent - self.pipes_lent} pipes are still lent"
            for front in self.fronts:
                assert front.counts.open == 0, front.counts.open
            assert not any(listening.open for listening in self.listeners), [listening.open for listening in self.listeners]
        finally:
            self.loop.close()

    def _hang_up(self):
        for origin in self.origins:
            origin.pump()
            for connection in origin.connections:
                connection.close()
            origin.stop()

    def open_transports(self):
        return [s for s in self.loop.reactor._selectables.values() if isinstance(s, (Transport, Attempt))]


# What tests say often


def get(path=b"/", *lines, host=b"example.com", version=b"1.1"):
    return b"GET %b HTTP/%b\r\nHost: %b\r\n%b\r\n" % (path, version, host, b"".join(line + b"\r\n" for line in lines))


def post(body, *lines, path=b"/", method=b"POST"):
    head = b"%b %b HTTP/1.1\r\nHost: example.com\r\nContent-Length: %d\r\n%b\r\n"
    return head % (method, path, len(body), b"".join(line + b"\r\n" for line in lines)) + body


def post_chunked(*pieces, lines=(), trailers=b""):
    head = b"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n%b\r\n" % b"".join(line + b"\r\n" for line in lines)
    return head + chunked(*pieces, trailers=trailers)


def chunked(*pieces, trailers=b""):
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n%b\r\n" % trailers


def answer(body=b"", *lines, status=b"200 OK", version=b"1.1"):
    return b"HTTP/%b %b\r\nContent-Length: %d\r\n%b\r\n" % (version, status, len(body), b"".join(line + b"\r\n" for line in lines)) + body


def request_head(data):
    head = parse_request(data, LIMITS)
    assert head is not None
    return head


def response_head(data):
    head = parse_response(data)
    assert head is not None
    return head
