"""Listening sockets for life: bound once by the supervisor, lent to whichever worker is alive.

How it works
    Each configured address has a fixed list of sockets. TCP has one per worker slot (SO_REUSEPORT: the kernel spreads new
    connections over them), a unix path has one. They stay open while the address is configured, so a connection that the
    kernel has queued survives the death of the worker that would have accepted it (faults: LC-06). `assign` says who accepts
    on which socket: the slot with the socket's number; while that one is away, the live worker with the fewest sockets of
    the address; slots beyond the number of sockets share them.

    The real sockets set SO_REUSEPORT and would happily join a port that somebody else uses the same way. So a probe binds
    first without it, which fails whenever anybody listens there.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twistedproxy.config.model import Address, Endpoint, Model, endpoint
from twistedproxy.errors import Problem

BACKLOG = 4096
UNIX_MODE = 0o660
"""File mode of a unix socket whose listener names none."""

SocketKey = tuple[str, int]
"""Configured address and number of the socket in its list."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A listener as configured."""

    address: Address
    kind: str
    """``http`` or ``tcp``."""
    key: str
    """Where it stands in the configuration, for the operator."""
    mode: int | None = None


@dataclass(slots=True)
class _Bound:
    wanted: Wanted
    address: str
    """As bound: port 0 replaced by the one that was picked."""
    sockets: tuple[socket.socket, ...]
    inode: int | None = None
    """Of a unix socket's file, so that only our own is removed at the end."""

    def close(self) -> None:
        for each in self.sockets:
            each.close()
        path = endpoint(self.address).host
        if self.inode is not None and _inode(path) == self.inode:
            os.unlink(path)

    def own(self) -> None:
        """From now on the file of a unix socket goes with it."""
        if endpoint(self.address).family == socket.AF_UNIX:
            self.inode = _inode(endpoint(self.address).host)


def wanted_listeners(model: Model) -> list[Wanted]:
    plain = [item for item in model.http if not item.is_tls]
    secure = [item for item in model.http if item.is_tls]
    http = [Wanted(item.address, "http", f"listen.http[{n}]", item.mode) for n, item in enumerate(plain)]
    http += [Wanted(item.address, "https", f"listen.https[{n}]", item.mode) for n, item in enumerate(secure)]
    return http + [Wanted(item.address, "tcp", f'tcp."{item.address}"', item.mode) for item in model.tcp]


def assign(sockets_per_address: Mapping[str, int], live_slots: Iterable[int]) -> dict[SocketKey, tuple[int, ...]]:
    """Which slots accept on which socket; without live slots: nobody on any.

    A live slot's own socket is its alone unless there are more slots than sockets, so a worker that dies or comes back moves
    no socket but its own and those it was lent.
    """
    live = sorted(set(live_slots))
    result: dict[SocketKey, tuple[int, ...]] = {}
    for address, count in sockets_per_address.items():
        held = dict.fromkeys(live, 0)
        orphans = []
        for index in range(count):
            owners = tuple(slot for slot in live if slot % count == index)
            result[address, index] = owners
            if not owners:
                orphans.append(index)
            for slot in owners:
                held[slot] += 1
        for index in orphans:
            if live:
                borrower = min(live, key=lambda slot: (held[slot], slot))
                held[borrower] += 1
                result[address, index] = (borrower,)
    return result


class Staged:
    """New listening sockets, bound and not yet in use: `commit` makes them ours, `abandon` closes them."""

    def __init__(self, owner: Sockets, new: Mapping[str, _Bound], kept: Mapping[str, Wanted]) -> None:
        self._owner = owner
        self._new = new
        self._kept = kept

    def abandon(self) -> None:
        for bound in self._new.values():
            bound.close()

    def commit(self) -> list[_Bound]:
        """Returns what is not wanted any more: to be closed once the workers have let go of it."""
        return self._owner._replace(self._new, self._kept)


class Sockets:
    """All listening sockets of this process family.

    `tune` sets the TCP options that accepted sockets inherit; `warn` gets sentences for the operator; `handed` are sockets that somebody
    else bound for us, by address; `inherited` those of the supervisor that we shall replace, by configured address, with the bound one.
    """

    def __init__(
        self,
        slots: int,
        tune: Callable[[socket.socket], None],
        warn: Callable[[str], None],
        handed: Mapping[str, socket.socket] | None = None,
        inherited: Mapping[str, tuple[str, tuple[socket.socket, ...]]] | None = None,
    ) -> None:
        self.handed = handed or {}
        self._inherited = dict(inherited or {})
        self._slots = slots
        self._tune = tune
        self._warn = warn
        self._bound: dict[str, _Bound] = {}

    @property
    def addresses(self) -> dict[str, str]:
        """Configured address to the bound one."""
        return {configured: bound.address for configured, bound in self._bound.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Sockets per configured address."""
        return {configured: len(bound.sockets) for configured, bound in self._bound.items()}

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """(configured address, kind), as `Configure` tells the workers."""
        return [(configured, bound.wanted.kind) for configured, bound in self._bound.items()]

    def descriptor(self, key: SocketKey) -> int:
        address, index = key
        return self._bound[address].sockets[index].fileno()

    def bind(self, wanted: Sequence[Wanted]) -> list[Problem]:
        """Bind everything, or nothing: the problems say what stands in the way."""
        problems = [p for p in map(self._obstacle, wanted) if p is not None]
        for item in () if problems else wanted:
            try:
                self._bound[item.address] = self._bind_one(item)
            except OSError as e:
                problems.append(_problem(item, e))
        if problems:
            self.close()
        elif wanted:
            self._check_backlog()
        return problems

    def close(self) -> None:
        for bound in self._bound.values():
            bound.close()
        self._bound.clear()

    def own(self) -> None:
        """What was inherited is ours now; what the configuration does not name any more is closed."""
        for bound in self._bound.values():
            if bound.wanted.address in self._inherited:
                bound.own()
        for configured, (address, sockets) in self._inherited.items():
            left = _Bound(Wanted(Address(configured), "", ""), address, sockets)
            if configured not in self._bound:
                left.own()
            left.close()
        self._inherited.clear()

    def disown(self) -> None:
        """A successor has them all: our copies may be closed, the files of unix sockets stay."""
        for bound in self._bound.values():
            bound.inode = None

    @property
    def descriptors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """By configured address: the bound one, and the sockets."""
        return {each: (bound.address, tuple(s.fileno() for s in bound.sockets)) for each, bound in self._bound.items()}

    def stage(self, wanted: Sequence[Wanted], slots: int) -> Staged | list[Problem]:
        """Bind what is new in `wanted`; the problems say what stands in the way, and then nothing is kept."""
        self._slots = slots
        kept: dict[str, Wanted] = {item.address: item for item in wanted if item.address in self._bound}
        items = [item for item in wanted if item.address not in kept]
        problems = [p for p in map(self._obstacle, items) if p is not None]
        new: dict[str, _Bound] = {}
        for item in () if problems else items:
            try:
                new[item.address] = self._bind_one(item)
            except OSError as e:
                problems.append(_problem(item, e))
        staged = Staged(self, new, kept)
        if problems:
            staged.abandon()
            return problems
        return staged

    def _replace(self, new: Mapping[str, _Bound], kept: Mapping[str, Wanted]) -> list[_Bound]:
        removed = [bound for address, bound in self._bound.items() if address not in kept]
        remaining = {address: bound for address, bound in self._bound.items() if address in kept}
        for address, bound in remaining.items():
            if bound.inode is not None and kept[address].mode != bound.wanted.mode:
                mode = kept[address].mode
                os.chmod(endpoint(bound.address).host, UNIX_MODE if mode is None else mode)
            bound.wanted = kept[address]
        self._bound = {**remaining, **new}
        return removed

    def _obstacle(self, item: Wanted) -> Problem | None:
        target = _resolve(item.address)
        if str(target) in self.handed or item.address in self._inherited:
            return None
        try:
            if target.family == socket.AF_UNIX:
                return _clear_path(item, target.host)
            ours = [*(bound.address for bound in self._bound.values()), *(address for address, _ in self._inherited.values())]
            if target.port and any(endpoint(address).port == target.port for address in ours):
                return None  # the port is ours already, under another address
            with _tcp_socket(target) as probe:
                probe.bind(target.sockaddr)
        except OSError as e:
            return _problem(item, e, target)
        return None

    def _bind_one(self, item: Wanted) -> _Bound:
        if item.address in self._inherited:
            address, passed = self._inherited[item.address]
            return _Bound(item, address, tuple(each.dup() for each in passed))
        target = _resolve(item.address)
        if str(target) in self.handed:
            # A copy, so that the listener may leave the configuration and come back.
            return _Bound(item, str(target), (self.handed[str(target)].dup(),))
        if target.family == socket.AF_UNIX:
            return self._bind_unix(item, target.host)
        sockets: list[socket.socket] = []
        try:
            for _ in range(self._slots):
                each = _tcp_socket(target)
                sockets.append(each)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                self._tune(each)
                each.bind(target.sockaddr)
                target = Endpoint(target.family, target.host, each.getsockname()[1])
            for each in sockets:
                each.listen(BACKLOG)
        except OSError:
            for each in sockets:
                each.close()
            raise
        return _Bound(item, str(target), tuple(sockets))

    def _bind_unix(self, item: Wanted, path: str) -> _Bound:
        each = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        each.setblocking(False)
        before = os.umask(0o177)
        try:
            each.bind(path)
        except OSError:
            each.close()
            raise
        finally:
            os.umask(before)
        os.chmod(path, UNIX_MODE if item.mode is None else item.mode)
        each.listen(BACKLOG)
        return _Bound(item, item.address, (each,), _inode(path))

    def _check_backlog(self) -> None:
        try:
            limit = int(Path("/proc/sys/net/core/somaxconn").read_text())
        except (OSError, ValueError):
            return
        if limit < BACKLOG:
            self._warn(
                f"the kernel limits the listen backlog to {limit} (wanted: {BACKLOG}); bursts of new connections may wait or be refused: "
                f"sysctl -w net.core.somaxconn={BACKLOG}"
            )


def bind_plain(address: Address, key: str, backlog: int = 64) -> tuple[socket.socket | None, Problem | None]:
    """One ordinary listening socket, for the admin side; a unix socket's file is for this user alone, whatever the umask."""
    item = Wanted(address, "admin", key)
    target = _resolve(address)
    is_unix = target.family == socket.AF_UNIX
    if is_unix and (obstacle := _clear_path(item, target.host)) is not None:
        return None, obstacle
    each = _tcp_socket(target)
    try:
        if is_unix:
            # Linux gives the file the mode of the unbound socket, so that there is no moment in which others may open it.
            os.fchmod(each.fileno(), 0o600)
        each.bind(target.sockaddr)
        each.listen(backlog)
    except OSError as e:
        each.close()
        return None, _problem(item, e, target)
    return each, None


def _tcp_socket(target: Endpoint) -> socket.socket:
    each = socket.socket(target.family, socket.SOCK_STREAM)
    each.setblocking(False)
    each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if target.family == socket.AF_INET6:
        each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if target.host == "::" else 1)
    return each


def _resolve(address: str) -> Endpoint:
    """`localhost` becomes its IPv4 address; `[::]` falls back to `0.0.0.0` where the machine has no IPv6."""
    target = endpoint(address)
    if target.family == socket.AF_UNSPEC:
        return Endpoint(socket.AF_INET, "127.0.0.1" if target.host == "localhost" else target.host, target.port)
    if target.host == "::" and target.family == socket.AF_INET6:
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
                probe.bind(("::", 0))
        except OSError:
            return Endpoint(socket.AF_INET, "0.0.0.0", target.port)
    return target


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _clear_path(item: Wanted, path: str) -> Problem | None:
    """Remove a socket file that nobody answers on any more; anything else in the way is a problem."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        if os.path.isdir(os.path.dirname(path)):
            return None
        return Problem(item.key, f"cannot listen on {item.address}: the directory {os.path.dirname(path)} does not exist")
    if not stat.S_ISSOCK(mode):
        return Problem(item.key, f"cannot listen on {item.address}: {path} exists and is not a socket; move it away or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return None
        except OSError as e:
            return _problem(item, e)
    return Problem(item.key, f"cannot listen on {item.address}: another program answers on it; stop that program or choose another path")


_ADVICE = {
    errno.EADDRNOTAVAIL: "this machine has no such address; choose one of its own, or `:PORT` for all",
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE, unix paths a writable directory",
}


def _problem(item: Wanted, error: OSError, target: Endpoint | None = None) -> Problem:
    why = os.strerror(error.errno or 0).lower()
    if error.errno == errno.EADDRINUSE:
        owner = port_owner(target.port) if target else ""
        why = f"the address is taken by {owner or 'another program'}; stop it or choose another port"
    elif error.errno in _ADVICE:
        why = f"{why}: {_ADVICE[error.errno]}"
    return Problem(item.key, f"cannot listen on {item.address}: {why}")


def port_owner(port: int) -> str:
    """Who listens on a TCP port, such as ``nginx (pid 812)``; "" when /proc does not tell."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{columns[9]}]")
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(descriptor) in inodes for descriptor in os.scandir(process / "fd")):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue
    return ""
