"""The reference of the file for people, ``docs/configuration.md``, from its declarations.

``python -m twistedproxy.config.reference`` writes the page.
"""

from __future__ import annotations

import os
import types
import typing
from typing import Any

from pydantic.fields import FieldInfo

from twistedproxy.config import caching, compressing, routing, schema, tls
from twistedproxy.config.client_certs import ClientCertificate
from twistedproxy.config.kinds import Kind, Section, ShortForm

PAGE = "docs/configuration.md"

_SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("Top of the file", schema.File),
    ("[listen]", schema.Listen),
    ("listen.http and listen.https, table form", schema.HttpListener),
    ("[workers]", schema.Workers),
    ("[admin]", schema.Admin),
    ("[admin.tokens.NAME]", schema.Token),
    ("[timeouts]", schema.Timeouts),
    ("[pools.NAME]", schema.Pool),
    ("pools.NAME.servers, table form", schema.Server),
    ("pools.NAME.health, table form", schema.Health),
    ("pools.NAME.eject", schema.Eject),
    ("pools.NAME.retry", schema.Retry),
    ("pools.NAME.queue", schema.Queue),
    ("pools.NAME.keepalive", schema.Keepalive),
    ("pools.NAME.tls", tls.ServerTls),
    ('[sites."HOST"]', schema.Site),
    ("tls, of a site", tls.SiteTls),
    ('"/PATH" of a site, table form', schema.Route),
    ('[[sites."HOST".rules]]: all keys of a route, and', routing.Rule),
    ("when, of a rule", routing.When),
    ("client_cert, of when and of a test", ClientCertificate),
    ("respond, of a route", routing.Respond),
    ("rewrite, of a route", routing.Rewrite),
    ("headers, of a route; [headers.NAME]", routing.Headers),
    ("headers.request and headers.response", routing.Edits),
    ("[compress.NAME]", compressing.Compress),
    ("compress.NAME.level", compressing.Levels),
    ("cache, of a site or a route", caching.RouteCache),
    ("[cache]", caching.Cache),
    ("sticky, of a pool or a split", routing.Sticky),
    ("mirror, of a route", routing.Mirror),
    ('[tcp."ADDRESS"]', schema.TcpListener),
    ("tls, of a TCP listener", tls.ListenerTls),
    ("[certificates]", tls.Certificates),
    ("certificates.acme; [certificates.directories.NAME]", tls.Acme),
    ("certificates.files", tls.KeyPair),
    ("[logs]", schema.Logs),
    ("logs.access", schema.AccessLog),
    ("logs.events", schema.EventLog),
    ("[[tests]]", routing.Test),
    ("tests.expect", routing.Expect),
)

_TOP = """# The configuration file

Generated from the declarations in `twistedproxy/config/schema.py` by `python -m twistedproxy.config.reference`; do not edit.
`revproxy schema` prints the same as JSON Schema, for editors.

One TOML file. An unknown key is an error; all problems are reported at once, with their lines. No limit can be switched off.

**Values.** *Duration*: one number and `ms s m h d`, such as `"1.5s"`. *Size*: `B kB MB GB` (powers of 1000), `KiB MiB GiB` (powers of
1024). *Rate*: `"500B/s"`, `/m`, `/h`. *Listen address*: `"IP:PORT"`, `"localhost:PORT"`, `"[IPv6]:PORT"`, `":PORT"` (all addresses, IPv4
and IPv6) or `"unix:PATH"`; port 0 picks a free one. *Server*: `"ADDRESS [weight=0..1000] [max_connections=N] [backup]"`.
*Names*: letters, digits, `.`, `_`, `-`. Relative file names are relative to the file.

**Placeholders** inside any text: `${env:NAME}`, `${env:NAME:-default}`, `${file:path}`; `$${` is a literal `${`. They are filled in after
the file is parsed, then converted to the key's kind, and every output shows them as written.

**Reload** says when a changed value is in force after `SIGHUP` or `POST /api/v1/config/reload`. *live*: for the next request, connection
or check; nothing is closed. *new connections*: for connections made from then on. *restart*: only after a restart.
"""


def reference_markdown() -> str:
    """The text of ``docs/configuration.md``."""
    parts = [_TOP]
    for title, section in _SECTIONS:
        heading = title if title == "Top of the file" else f"`{title}`"
        parts.append(
            f"\n## {heading}\n\n{_paragraphs(section.__doc__ or '')}\n\n| key | kind | default | | reload |\n|---|---|---|---|---|\n"
        )
        parts += [_row(field.alias or name, field) for name, field in section.model_fields.items()]
        if section.later:
            parts.append(f"\nNot supported yet: {', '.join(f'`{name}`' for name in section.later)}.\n")
    return "".join(parts)


def _paragraphs(docstring: str) -> str:
    return "\n".join(line.strip() for line in docstring.strip().splitlines())


def _row(key: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra
    reload = extra.get("x-reload", "") if isinstance(extra, dict) else ""
    name = '"/PATH"' if key == schema.ROUTES else key
    cells = (f"`{name}`", _kind(field), _default(field), field.description or "", str(reload))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _kind(field: FieldInfo) -> str:
    for mark in field.metadata:
        if isinstance(mark, (Kind, ShortForm)):
            return mark.name
    return _kind_of(field.annotation)


def _kind_of(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        marks = [m.name for m in parts[1:] if isinstance(m, (Kind, ShortForm))]
        return marks[0] if marks else _kind_of(parts[0])
    if origin is tuple:
        return f"list of: {_kind_of(parts[0])}"
    if origin is dict:
        return f"table of: {_kind_of(parts[1])}"
    if origin in (typing.Union, types.UnionType):
        return _kind_of(parts[0])
    return "table"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    if field.default is None or field.default == {}:
        return ""
    return f"`{_toml(field.default)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value)


def main() -> None:
    """Write the page into the checkout this package lies in."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with open(os.path.join(root, PAGE), "w", encoding="utf-8") as file:
        file.write(reference_markdown())


if __name__ == "__main__":
    main()
