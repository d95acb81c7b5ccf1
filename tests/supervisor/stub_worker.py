"""A worker that speaks the words and does as it is told: started by the tests of fleet and supervisor.

It accepts on its sockets and answers each connection with its slot and process id. Words in the environment variable STUB
make it misbehave: ``die`` right at the start, ``mute-apply`` never answers `Apply`, ``hang-drain`` ignores `Drain`.
A connection that sends ``hang`` stops the whole process; one that sends ``fail`` reports five failures.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any

if "die" in os.environ.get("STUB", "").split():
    sys.exit("no such plugin")

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, ServerFactory
from twisted.internet.task import LoopingCall

from twistedproxy.ipc import commands
from twistedproxy.observability.metrics import Metrics

reactor: Any = global_reactor
SLOT = int(sys.argv[sys.argv.index("--slot") + 1])
STUB = os.environ.get("STUB", "").split()


class Talk(Protocol):
    def connectionMade(self) -> None:
        self.transport.write(f"{SLOT} {os.getpid()}\n".encode())  # type: ignore[union-attr]
        LINK.metrics.listener("x").total += 1

    def dataReceived(self, data: bytes) -> None:
        if data == b"hang":
            os.kill(os.getpid(), 19)
        elif data == b"fail":
            LINK.callRemote(commands.Failures, transfer=LINK.send_value([["web", "10.0.0.1:80", 5, 5]]))


class Link(commands.Channel):
    def __init__(self) -> None:
        super().__init__()
        self.metrics = Metrics()
        self.revision = -1
        self.ports: dict[tuple[str, int], Any] = {}

    def connectionMade(self) -> None:
        super().connectionMade()
        self.callRemote(commands.Hello, pid=os.getpid(), head_codec="native")
        LoopingCall(self.beat).start(0.2)

    def connectionLost(self, reason: Any = None) -> None:
        super().connectionLost(reason)
        reactor.stop()

    def beat(self) -> None:
        if self.transport.connected:
            self.callRemote(commands.Heartbeat, revision=self.revision, connections=0, requests=0, lag_seconds=0.0)

    @commands.Configure.responder
    def configure(self, transfer: int) -> dict[str, Any]:
        self.revision = self.take_value(transfer)["revision"]
        return {"revision": self.revision}

    @commands.AdoptSocket.responder
    def adopt(self, listener: str, index: int, descriptor: int) -> dict[str, Any]:
        self.ports[listener, index] = reactor.adoptStreamPort(descriptor, socket.AF_INET, Factory.forProtocol(Talk))
        os.close(descriptor)
        return {}

    @commands.ReturnSocket.responder
    def give_back(self, listener: str, index: int) -> dict[str, Any]:
        self.ports.pop((listener, index)).stopListening()
        return {}

    @commands.Apply.responder
    def apply_change(self, revision: int, transfer: int) -> Any:
        self.take_value(transfer)
        if "mute-apply" in STUB:
            return Deferred()
        self.revision = revision
        return {"revision": revision}

    @commands.Observe.responder
    def observe(self, transfer: int) -> dict[str, Any]:
        self.take_value(transfer)
        return {}

    @commands.Collect.responder
    def collect(self) -> dict[str, Any]:
        self.callRemote(commands.Statistics, transfer=self.send_value(self.metrics.to_plain()))
        return {}

    @commands.Drain.responder
    def drain(self) -> dict[str, Any]:
        if "hang-drain" not in STUB:
            reactor.callLater(0.05, reactor.stop)
        return {}


class One(ServerFactory):
    noisy = False

    def buildProtocol(self, addr: Any) -> Link:
        return LINK


LINK = Link()
reactor.seconds = time.monotonic
reactor.adoptStreamConnection(3, socket.AF_UNIX, One())
os.close(3)
reactor.run()
