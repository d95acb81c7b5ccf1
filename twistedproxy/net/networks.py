"""Is this client in one of these networks? Asked once per connection, so answered by comparing integers, and remembered."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

CACHED = 4096
"""Verdicts remembered; all are forgotten when there are more (an attacker may have a /64)."""


class Networks:
    """A set of IPv4 and IPv6 networks. An IPv4 client of an IPv6 socket (``::ffff:10.0.0.1``) counts as the IPv4 client it is."""

    __slots__ = ("_v4", "_v6", "_verdicts")

    def __init__(self, cidrs: Iterable[str] = ()) -> None:
        v4: set[tuple[int, int]] = set()
        v6: set[tuple[int, int]] = set()
        for cidr in cidrs:
            network = ipaddress.ip_network(cidr, strict=False)
            if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
                network = ipaddress.IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
            (v4 if network.version == 4 else v6).add((int(network.network_address), int(network.netmask)))
        self._v4 = tuple(v4)
        self._v6 = tuple(v6)
        self._verdicts: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._v4 or self._v6)

    def contains(self, ip: str) -> bool:
        """Is `ip` in one of the networks? What is no IP (``""``, the peer of a unix socket) is in none."""
        verdict = self._verdicts.get(ip)
        if verdict is None:
            verdict = self._look_up(ip)
            if len(self._verdicts) >= CACHED:
                self._verdicts.clear()
            self._verdicts[ip] = verdict
        return verdict

    def _look_up(self, ip: str) -> bool:
        try:
            if ":" in ip:
                packed = socket.inet_pton(socket.AF_INET6, ip.partition("%")[0])
                if packed.startswith(b"\0" * 10 + b"\xff\xff"):
                    packed = packed[12:]
            else:
                packed = socket.inet_pton(socket.AF_INET, ip)
        except (OSError, ValueError):
            return False
        value = int.from_bytes(packed)
        return any(value & mask == network for network, mask in (self._v4 if len(packed) == 4 else self._v6))
