"""The JSON shapes of the API (contract, section 3), made from snapshots and statistics."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from twistedproxy import __version__
from twistedproxy.admin.caching import figures
from twistedproxy.config import plain
from twistedproxy.config.control import Applied, CertificateView, Entry, Snapshot
from twistedproxy.config.model import Health, Pool, Server, endpoint
from twistedproxy.config.shares import shares as shares_of
from twistedproxy.errors import ConfigurationError


def rfc3339(seconds: float) -> str:
    """Wall-clock seconds since the epoch as UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def status(snapshot: Snapshot, statistics: Mapping[str, Any]) -> dict[str, Any]:
    model = snapshot.model
    open_now = dict(statistics["gauges"]["connections"])
    listeners = [(listener.address, "https" if listener.is_tls else "http") for listener in model.http]
    listeners += [(listener.address, "tcp") for listener in model.tcp]
    return {
        "version": __version__,
        "revision": snapshot.revision,
        "uptime_seconds": round(snapshot.uptime_s, 3),
        "config_file": model.config_file,
        "head_codec": snapshot.head_codec,
        "workers": [plain.encode(worker) for worker in snapshot.workers],
        "listeners": [
            {"address": snapshot.addresses.get(address, address), "kind": kind, "connections": open_now.get(address, 0)}
            for address, kind in listeners
        ],
        "certificates": [certificate(view) for view in snapshot.certificates],
        "upgrade": snapshot.upgrade,
        "cache": figures(statistics),
    }


def certificate(view: CertificateView) -> dict[str, Any]:
    return {
        "used_by": list(view.used_by),
        "source": view.source,
        "names": list(view.names),
        "not_after": rfc3339(view.not_after),
        "issuer": view.issuer,
        "placeholder": view.is_placeholder,
    }


def pool(pool: Pool, snapshot: Snapshot, statistics: Mapping[str, Any]) -> dict[str, Any]:
    waiting = next((n for name, n in statistics["gauges"]["queues"] if name == pool.name), 0)
    shares = shares_of(pool, snapshot.health, snapshot.ejected | snapshot.unresolved)
    active = {address: n for name, address, n in statistics["gauges"]["servers"] if name == pool.name}
    totals = {address: (leases, failures) for name, address, leases, failures in statistics["servers"] if name == pool.name}
    return {
        "name": pool.name,
        "balance": pool.balance,
        "queue": {"waiting": waiting, "size": pool.queue.size},
        "servers": [
            {
                "address": server.address,
                "weight": {"configured": server.weight, "set": server.weight_set, "effective": server.weight_now},
                "state": server.state.value,
                "backup": server.backup,
                "health": _health(pool, server, snapshot),
                "ejected": (pool.name, server.address) in snapshot.ejected,
                "max_connections": pool.limit_of(server),
                "connections": active.get(server.address, 0),
                "requests": totals.get(server.address, (0, 0))[0],
                "failures": totals.get(server.address, (0, 0))[1],
                "share": shares.get(server.address, 0.0),
            }
            for server in pool.servers
        ],
    }


def _health(pool: Pool, server: Server, snapshot: Snapshot) -> dict[str, Any]:
    seen = snapshot.health.get((pool.name, server.address))
    if seen is None and (pool.name, server.address) in snapshot.unresolved:
        return {"status": Health.UNKNOWN.value, "reason": "its host name has no address yet", "since": None}
    if seen is None:
        return {"status": Health.UNKNOWN.value, "reason": "not checked yet" if pool.health else "no health check configured", "since": None}
    return {"status": seen.health.value, "reason": seen.reason, "since": rfc3339(seen.since)}


def applied(result: Applied) -> dict[str, Any]:
    workers = {"total": result.total, "acked": result.acked, "lagging": list(result.lagging)}
    shown: dict[str, Any] = {"revision": result.revision, "workers": workers}
    if result.superseded:
        shown["superseded"] = list(result.superseded)
    if result.notes:
        shown["notes"] = list(result.notes)
    if result.confirm_by is not None:
        shown["confirm_by"] = result.confirm_by
    if result.guard is not None:
        shown["guard"] = plain.encode(result.guard)
    if result.preview is not None:
        shown["preview"] = plain.encode(result.preview)
    return shown


def entry(entry: Entry) -> dict[str, Any]:
    return {
        "revision": entry.revision,
        "at": entry.at,
        "by": entry.by,
        "reason": entry.reason,
        "change": dict(entry.change),
        "undone_by": entry.undone_by,
        "confirm_by": entry.confirm_by,
        "guard": plain.encode(entry.guard),
    }


def config(effective: Mapping[str, Any]) -> dict[str, Any]:
    """The effective configuration; of tokens only who they are for."""
    shown = dict(effective)
    admin = shown.get("admin", {})
    if "tokens" in admin:
        shown["admin"] = {**admin, "tokens": {name: {"role": token["role"]} for name, token in admin["tokens"].items()}}
    return shown


def problems(error: ConfigurationError) -> list[dict[str, Any]]:
    return [{"file": p.file, "line": p.line, "path": p.path, "message": p.message} for p in error.problems]


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `host` is, in whatever spelling the system takes for one (0xa9fea9fe); None for a name."""
    if host == "localhost" or host.endswith(".localhost"):
        return ipaddress.IPv4Address("127.0.0.1")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address
    return address


def is_ourselves(host: str, port: int, listen: str) -> bool:
    """Whether a server there would be the admin side, which listens at `listen`."""
    if not listen:
        return False
    own = endpoint(listen if not listen.startswith(":") else f"[::]{listen}")
    one, other = _ip(host), _ip(own.host)
    if port != own.port or one is None:
        return False
    return one == other or (one.is_loopback and (other is None or other.is_unspecified or other.is_loopback))


def why_not_a_server(host: str) -> str:
    """Why the API does not add a server at this IP address; "" when nothing speaks against it.

    Link-local addresses hold the credentials of cloud machines (169.254.169.254): only the file may name them.
    """
    address = _ip(host)
    if address is None:
        return ""
    kinds = {"link-local": address.is_link_local, "unspecified": address.is_unspecified, "multicast": address.is_multicast}
    for kind, is_one in kinds.items():
        if is_one:
            return f"{host} is a {kind} address; the API adds none of these, put it into the configuration file if it is meant"
    return ""
