"""Live values and the file: what differs, and writing them back with comments and layout kept."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from twistedproxy.config.model import Model, Pool, Server
from twistedproxy.errors import ChangeRefused


def difference(file: Model, running: Model) -> Sequence[Mapping[str, Any]]:
    """Live values that the file does not have: ``{"path", "file", "running"}``; None: it is not there."""
    found: list[Mapping[str, Any]] = []
    for name, pool in running.pools.items():
        in_file = file.pools.get(name)
        if in_file is None:
            found.append({"path": f"pools.{name}", "file": None, "running": "a pool"})
            continue
        before = {server.address: server for server in in_file.servers}
        for server in pool.servers:
            path = f"pools.{name}.{server.address}"
            old = before.pop(server.address, None)
            if old is None:
                found.append({"path": path, "file": None, "running": short_form(server)})
                continue
            for key, one, other in _fields(in_file, old, server):
                if one != other:
                    found.append({"path": f"{path}.{key}", "file": one, "running": other})
        found.extend({"path": f"pools.{name}.{address}", "file": short_form(old), "running": None} for address, old in before.items())
    return [*found, *_of_sites(file, running)]


def _of_sites(file: Model, running: Model) -> Iterator[Mapping[str, Any]]:
    for name, site in running.sites.items():
        before = file.sites.get(name)
        if before is None:
            continue
        if site.is_in_maintenance != before.maintenance:
            yield {"path": f"sites.{name}.maintenance", "file": before.maintenance, "running": site.is_in_maintenance}
        routes = {route.path: route for route in before.all_routes}
        for route in site.all_routes:
            old = routes.get(route.path)
            one = {side.pool: side.weight for side in old.split} if old is not None else None
            other = {side.pool: side.weight_now for side in route.split}
            if one is not None and one != other:
                yield {"path": f"sites.{name}.{route.path}.split", "file": one, "running": other}


def _fields(pool: Pool, old: Server, new: Server) -> Sequence[tuple[str, Any, Any]]:
    return (
        ("weight", old.weight, new.weight_now),
        ("max_connections", pool.limit_of(old), pool.limit_of(new)),
        ("state", old.state.value, new.state.value),
        ("backup", old.backup, new.backup),
    )


def short_form(server: Server) -> str:
    """As the file would write it."""
    words = [str(server.address)]
    if server.weight_now != 1:
        words.append(f"weight={server.weight_now}")
    limit = _limit(server)
    if limit is not None:
        words.append(f"max_connections={limit}")
    if server.backup:
        words.append("backup")
    return " ".join(words)


def _limit(server: Server) -> int | None:
    return server.max_connections if server.max_connections_set is None else server.max_connections_set


def edited(text: str, file: Model, running: Model) -> str:
    """The file's text with the live values in it. States exist only live and are not written."""
    import tomlkit  # noqa: PLC0415 - seldom needed

    document: Any = tomlkit.parse(text)
    for name, pool in running.pools.items():
        in_file = file.pools.get(name)
        is_same = in_file is not None and len(pool.servers) == len(in_file.servers)
        if in_file is None or (is_same and all(_is_same(server, in_file) for server in pool.servers)):
            continue
        servers = document.get("pools", {}).get(name, {}).get("servers")
        if servers is None or len(servers) != len(in_file.servers):
            raise ChangeRefused(409, f"pools.{name}.servers is not a plain list in the file; edit it by hand")
        _edit(servers, in_file, pool)
    for each in _of_sites(file, running):
        _edit_site(document, each)
    return tomlkit.dumps(document)


def _edit_site(document: Any, wanted: Mapping[str, Any]) -> None:
    """Write one live value of a site where the file has the one it replaces."""
    for name, table in document.get("sites", {}).items():
        rest = wanted["path"].removeprefix(f"sites.{name}.")
        if rest == wanted["path"]:
            continue
        if rest == "maintenance":
            table["maintenance"] = wanted["running"]
            return
        key = rest.removesuffix(".split")
        place = table["rules"][int(key[6:-1])] if key.startswith("rules[") else table.get(key)
        if place is not None and "split" in place:
            for pool, weight in wanted["running"].items():
                place["split"][pool] = weight
            return
    raise ChangeRefused(409, f"{wanted['path']} is not written in the file as expected; edit it by hand")


def _is_same(server: Server, file: Pool) -> bool:
    old = file.server(server.address)
    return old is not None and (old.weight, file.limit_of(old), old.backup) == (server.weight_now, file.limit_of(server), server.backup)


def _edit(servers: Any, file: Pool, running: Pool) -> None:
    """Change `servers`, a list of tomlkit, item by item, so that what stays keeps its place and its comments."""
    for index in range(len(file.servers) - 1, -1, -1):
        old = file.servers[index]
        server = running.server(old.address)
        if server is None:
            del servers[index]
        elif not _is_same(server, file):
            _edit_one(servers, index, old, server)
    for server in running.servers:
        if file.server(server.address) is None:
            servers.append(short_form(server))


def _edit_one(servers: Any, index: int, old: Server, server: Server) -> None:
    written = servers[index]
    if isinstance(written, str):
        # The address stays as it is written: it may have a placeholder.
        servers[index] = " ".join([written.split()[0], *short_form(server).split()[1:]])
        return
    if server.weight_now != old.weight:
        written["weight"] = server.weight_now
    limit = _limit(server)
    if limit is not None and limit != old.max_connections:
        written["max_connections"] = limit


def unified_diff(before: str, after: str, path: str) -> str:
    """ "" when nothing differs."""
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), path, path, n=2)
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines)


def write(path: str, expected: str, text: str) -> None:
    """Replace the file in one step, unless somebody edited it meanwhile; mode and owner stay."""
    real = os.path.realpath(path)
    try:
        with open(real, encoding="utf-8-sig", newline="") as file:
            if file.read() != expected:
                raise ChangeRefused(409, f"{path} was edited meanwhile; look again and retry")
        status = os.stat(real)
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(real), prefix=".revproxy-")
        try:
            with open(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, status.st_mode & 0o7777)
            if os.geteuid() == 0:
                os.chown(temporary, status.st_uid, status.st_gid)
            os.rename(temporary, real)
        except BaseException:
            os.unlink(temporary)
            raise
        directory = os.open(os.path.dirname(real), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as e:
        raise ChangeRefused(409, f"{path} cannot be written: {e.strerror}; the service may lack the right to it") from e
