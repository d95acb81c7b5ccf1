"""Sites, routes, rules and the file's own tests, key by key: the part of `schema` about where an HTTP request goes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from twistedproxy.config import kinds, patterns, values
from twistedproxy.config.basics import LIVE, ROUTES, Networks, Retry, Timeouts, text_value
from twistedproxy.config.caching import RouteCacheOrTtl
from twistedproxy.config.client_certs import ClientCertificate
from twistedproxy.config.kinds import Json, Kind, Origin, Section, ShortForm, key
from twistedproxy.config.tls import SiteTlsOrText

USES = ("security_headers", "compress")
"""Built-ins that `use` names bare."""
USES_LATER = ("limits", "auth")
_FRAMING = frozenset(
    {"connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"}
)
_MOST_FIELDS = 64
REDIRECTS = (301, 302, 303, 307, 308)


# Kinds of value that only sites have


def _kind(name: str, allowed: str, parse: Any, json: Json | None = None) -> Kind:
    def read(value: Any, origin: Origin) -> Any:
        return parse(value)

    return Kind(name, allowed, read, json)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _names(value: Any) -> tuple[str, ...]:
    return tuple(values.parse_token(item) for item in _list(value))


def _fields(value: Any) -> tuple[tuple[str, str], ...]:
    """``{ X-App = "1" }``: a value may be a list in `add`."""
    if not isinstance(value, dict):
        raise ValueError('must be a table of fields such as { X-App = "1" }')
    found: list[tuple[str, str]] = []
    for name, given in value.items():
        _check_field(name)
        for text in _list(given):
            if not values.parse_text(text, "a field's value", 4096).isascii():
                raise ValueError(f"{values.shown(name)}: a field's value is ASCII")
            found.append((name, str(text)))
    if len(found) > _MOST_FIELDS:
        raise ValueError(f"has more than {_MOST_FIELDS} fields")
    return tuple(found)


def _check_field(name: str) -> None:
    values.parse_token(name)
    lower = name.lower()
    if lower in _FRAMING:
        hint = '; use host = "…"' if lower == "host" else ""
        raise ValueError(f"{name} belongs to the connection and cannot be edited{hint}")
    if lower.startswith("x-revproxy-"):
        raise ValueError(f"{name}: names that begin with X-Revproxy- are the proxy's own")


def _field_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError('must be a list of field names such as ["X-Debug"]')
    for name in value:
        _check_field(values.parse_token(name))
    return tuple(value)


def _wanted(value: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """``{ X-Beta = "1" }`` or ``{ X-Beta = ["1", "2"] }`` of a rule."""
    if not isinstance(value, dict):
        raise ValueError('must be a table such as { X-Beta = "1" }; a list of values means any of them, "*" anything')
    if len(value) > _MOST_FIELDS:
        raise ValueError(f"has more than {_MOST_FIELDS} names")
    return tuple(
        (values.parse_text(name, "a name", 128), tuple(str(values.parse_text(v, "a value", 1024)) for v in _list(given)))
        for name, given in value.items()
    )


def _methods(value: Any) -> tuple[str, ...]:
    return tuple(method.upper() for method in _names(value))


def _glob(value: Any) -> str:
    text = values.parse_text(value, 'a path in which * stands for anything, such as "/checkout/*"', 1024)
    if not text.startswith(("/", "*")):
        raise ValueError(f"{values.shown(text)} does not begin with / or *")
    literal = [part if part.startswith("/") else f"/{part}" for part in text.split("*") if part]
    for part in literal:
        values.parse_route_path(part)
    return text


def _target(value: Any) -> str:
    allowed = 'a path such as "/new/" or a URL such as "https://www.example.com/"'
    text = values.parse_text(value, allowed, 2048)
    if not re.match(r"(?:https?|\$\{scheme\})://[^/?#]|/(?![/\\])", text):
        raise ValueError(f"{values.shown(text)} is not {allowed}")
    if any(c in text for c in ' "<>\\^`'):
        raise ValueError(f"{values.shown(text)} has a character that a URL cannot have; percent-encode it")
    return text


def _body(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text in quotes; this is {values.toml_kind(value)}")
    if len(value) > 65536:
        raise ValueError("is longer than 65536 characters")
    values.parse_text("".join(c for c in value[:65536] if c not in "\r\n\t")[:65536], "text", 65536)
    return str(value)


def _host(value: Any) -> str:
    text = values.parse_text(value, 'a host such as "app.internal", or "${host}"', 300)
    return text if "${" in text else values.parse_health_host(text)


def _pattern(value: Any) -> str:
    text = values.parse_text(value, patterns.ALLOWED, patterns.MOST_CHARACTERS)
    patterns.parse_pattern(text)
    return text


def _request_line(value: Any) -> str:
    allowed = '"METHOD URL", such as "GET https://www.example.com/api/x"'
    text = values.parse_text(value, allowed, 4096)
    method, _, url = text.partition(" ")
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_url = False
    if not is_url or not re.fullmatch(r"[!-~]+", url) or "#" in url:
        raise ValueError(f"{values.shown(text)} is not {allowed}")
    values.parse_token(method)
    return text


def _sides(value: Any) -> tuple[tuple[str, int | None], ...]:
    """What a test expects of a split: a list of pools, or a table with their weights."""
    if isinstance(value, dict):
        return tuple((values.parse_name(name), _whole(weight)) for name, weight in value.items())
    return tuple((values.parse_name(name), None) for name in _list(value))


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 1000:
        raise ValueError("a weight is a whole number from 0 to 1000")
    return value


def _strings(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ValueError('must be a table such as { X-Beta = "1" }')
    return tuple((values.parse_token(name), str(values.parse_text(text, "a value", 4096))) for name, text in value.items())


def _uses(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError('must be a list such as ["security_headers"]')
    return tuple(dict.fromkeys(values.parse_text(item, "a name", 200) for item in value))


def _key_of(value: Any) -> str:
    text = values.parse_balance(value)
    if text != "source_ip" and (not text.startswith("hash:") or text == "hash:path"):
        raise ValueError("is not source_ip, hash:header.NAME, hash:cookie.NAME or hash:query.NAME")
    return text


_TABLE: Json = {"type": "object"}
_ARRAY: Json = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Fields = Annotated[tuple[tuple[str, str], ...], _kind("table of fields", "fields and values", _fields, _TABLE)]
FieldNames = Annotated[tuple[str, ...], _kind("list of: field name", "field names", _field_names, {"type": "array"})]
Wanted = Annotated[tuple[tuple[str, tuple[str, ...]], ...], _kind("table of: value or list of values", "names and values", _wanted, _TABLE)]
Methods = Annotated[tuple[str, ...], _kind("list of: method", "methods", _methods, _ARRAY)]
Token = Annotated[str, _kind("name", "one word", values.parse_token)]
_SIDES = Annotated[int, kinds.integer(0, 1000)]


# Tables


class Edits(Section):
    """Edits of one message's header fields. Values may have `${variables}`."""

    set: Fields = key({}, "Put in, in place of whatever is there.", reload=LIVE)
    add: Fields = key({}, "Put in besides what is there; a list adds several.", reload=LIVE)
    remove: FieldNames = key([], "Taken out.", reload=LIVE)


class Headers(Section):
    """Header edits. The request's are made on the way to the server, the response's on the way to the client."""

    request: Edits = key({}, "Of the request.", reload=LIVE)
    response: Edits = key({}, "Of the response, those made by the proxy included.", reload=LIVE)


class Sticky(Section):
    """Keeping a client where it was. A text `"cookie:NAME"` stands for a table."""

    cookie: Token | None = key(None, "Name of the cookie that remembers.", reload=LIVE)
    by: Annotated[str, _kind("source_ip or hash:…", "a stable hash", _key_of)] | None = key(
        None, "For splits, instead of a cookie: `source_ip`, `hash:header.NAME`, `hash:cookie.NAME` or `hash:query.NAME`.", reload=LIVE
    )
    path: Annotated[str, _kind("path", "a path", values.parse_route_path)] = key("/", "Path of the cookie.", reload=LIVE)
    secure: kinds.Flag | None = key(None, "Send the cookie over TLS only. Default: when the request came by TLS.", reload=LIVE)
    same_site: Annotated[str, kinds.choice("lax", "strict", "none")] = key("lax", "SameSite of the cookie.", reload=LIVE)
    ttl: Annotated[float, kinds.duration("0s", "400d")] = key("0s", "Life of the cookie; 0: until the browser closes.", reload=LIVE)

    @model_validator(mode="after")
    def _is_one_way(self) -> Sticky:
        if (self.cookie is None) == (self.by is None):
            raise ValueError('needs either cookie = "NAME" or, for a split, by = "source_ip" or a hash')
        return self


def sticky_table(value: Any) -> Any:
    """The short form as its table."""
    text = values.parse_text(value, '"cookie:NAME" or a table')
    if text.startswith("cookie:"):
        return {"cookie": values.parse_token(text[7:])}
    if text.startswith(("source_ip", "hash:")):
        return {"by": text}
    raise ValueError(f'{values.shown(text)} is not "cookie:NAME", "source_ip", "hash:header.NAME", "hash:cookie.NAME" or "hash:query.NAME"')


StickyOrText = Annotated[Sticky, ShortForm("cookie, hash or table", 'a cookie such as "cookie:ab"', sticky_table, {"type": "string"})]


class Mirror(Section):
    """A copy of requests goes to another pool, whose answers the client never sees."""

    pool: kinds.Name = key(..., "The pool that gets the copies.", reload=LIVE)
    percent: Annotated[float, kinds.fraction(0, 100)] = key(100, "Share of the requests.", reload=LIVE)
    compare: kinds.Flag = key(
        False, "Compare status, fields and body with the real answer; `/api/v1/mirrors` shows the differences.", reload=LIVE
    )
    methods: Methods = key([], "Only these methods; empty: all. What is copied is done twice.", reload=LIVE)
    headers: Annotated[tuple[str, ...], _kind("list of: field name", "field names", _names, {"type": "array"})] = key(
        ["Content-Type"], "Response fields that are compared.", reload=LIVE
    )


class Respond(Section):
    """An answer made here."""

    status: Annotated[int, kinds.integer(200, 599)] = key(200, "Its status.", reload=LIVE)
    body: Annotated[str, _kind("text", "text", _body)] = key("", "Its body; may have `${variables}`.", reload=LIVE)
    content_type: kinds.Text = key("text/plain; charset=utf-8", "Its Content-Type.", reload=LIVE)


class Rewrite(Section):
    """A new path by a regular expression that cannot hang: two repetitions at most, none inside another, no choice inside one."""

    match: Annotated[str, _kind("regular expression", patterns.ALLOWED, _pattern)] = key(
        ..., "Searched in the canonical path; what does not match goes on as it is.", reload=LIVE
    )
    to: kinds.Text = key(..., "The new path, with `$1` to `$9` for groups; after a `?`, more query.", reload=LIVE)

    @model_validator(mode="after")
    def _groups_exist(self) -> Rewrite:
        groups = patterns.parse_pattern(self.match).groups
        for digit in re.findall(r"\$([0-9])", self.to.replace("$$", "")):
            if int(digit) > groups or digit == "0":
                raise ValueError(f"to uses ${digit}, but match has {groups} groups, $1 and so on")
        if not self.to.startswith(("/", "$")) or not self.to.isascii() or " " in self.to:
            raise ValueError("to must begin with / (or a group that does) and have neither spaces nor characters outside ASCII")
        return self


class Route(Section):
    """What happens to requests below a path. A text stands for a table with this `pool`. Exactly one of the first four keys."""

    later: ClassVar[tuple[str, ...]] = ("auth", "limits", "maintenance", "maintenance_allow")

    pool: kinds.Name | None = key(None, "The pool that serves it.", reload=LIVE)
    split: dict[kinds.Name, _SIDES] = key(
        {}, "Pools with their parts, relative to one another: `{ web = 95, web-canary = 5 }`.", reload=LIVE, max_length=16
    )
    redirect: Annotated[str, _kind("path or URL", "a path or a URL", _target)] | None = key(
        None, "Send the client there; the rest of the path and the query are kept unless `${path}` or `${query}` place them.", reload=LIVE
    )
    respond: Respond | None = key(None, "Answer here.", reload=LIVE)
    status: Annotated[int, kinds.integer(301, 308)] | None = key(
        None, "Of a redirect: 301, 302, 303, 307 or 308, the default.", reload=LIVE
    )
    strip: kinds.Flag = key(
        False, "Remove the matched prefix; what is left begins with `/`. `Location` and cookies of answers get it back.", reload=LIVE
    )
    rewrite: Rewrite | None = key(None, "Change the path.", reload=LIVE)
    host: Annotated[str, _kind("host", "a host", _host)] | None = key(
        None, "Host for the server in place of the client's; may have `${variables}`.", reload=LIVE
    )
    headers: Headers = key({}, "Header edits, after those of `use`.", reload=LIVE)
    use: Annotated[tuple[str, ...], _kind("list of: name", "names", _uses, {"type": "array"})] | None = key(
        None,
        'Built-ins (`"security_headers"`, `"compress"`) and presets (`"headers.NAME"`, `"compress.NAME"`), outermost first, after those of'
        " the site; `[]`: none at all.",
        reload=LIVE,
    )
    sticky: StickyOrText | None = key(None, "Keep a client on its side of the split.", reload=LIVE)
    mirror: Mirror | None = key(None, "Copy requests to another pool.", reload=LIVE)
    cache: RouteCacheOrTtl = key(
        None,
        "Keep answers and give them again: a duration, a table, or `{}` to follow the server's fields. Default: the site's.",
        reload=LIVE,
    )
    retry: Retry | None = key(
        None, "In place of the pool's, as a whole; only `budget` cannot be said here, it is the pool's own.", reload=LIVE
    )
    max_body: Annotated[int, kinds.size("1B", "1024GiB")] | None = key(
        None, "The largest request body; more is answered 413. Default: the site's.", reload=LIVE
    )
    timeouts: Timeouts | None = key(None, "Differing from the site's.", reload=LIVE)


class When(Section):
    """What a rule asks; all keys must match. `*` in values stands for anything, `/` included; names ignore case."""

    path: Annotated[str, _kind("path with *", 'a path such as "/checkout/*"', _glob)] | None = key(None, "The canonical path.", reload=LIVE)
    method: Methods = key([], "Any of these.", reload=LIVE)
    header: Wanted = key({}, "Request fields, each with a value or a list of which any may match.", reload=LIVE)
    cookie: Wanted = key({}, "Cookies.", reload=LIVE)
    query: Wanted = key({}, "Query parameters, decoded.", reload=LIVE)
    client: Networks = key((), "Networks of the client.", reload=LIVE, max_length=10_000)
    client_cert: ClientCertificate | None = key(None, "The certificate that the client shows.", reload=LIVE)


class Rule(Route):
    """A route chosen by more than its path. Rules are asked in their order, before all paths; the first that matches is taken."""

    when: When = key(..., "What the request must be like.", reload=LIVE)


RouteOrPool = Annotated[
    Route, ShortForm("pool or table", "the name of a pool", lambda v: {"pool": text_value(v, "the name of a pool")}, {"type": "string"})
]


def gather_routes(table: Any) -> Any:
    """Move the quoted path keys of a site to where its routes are declared."""
    if not isinstance(table, dict):
        return table
    routes = {k: v for k, v in table.items() if k.startswith(("/", "=/"))}
    return {k: v for k, v in table.items() if k not in routes} | {ROUTES: routes}


class Site(Section):
    """A host, with routes: quoted keys that begin with `/` or `=/`. The longest path wins, order never matters.

    `"/x/"` matches everything below `/x/`, `"/x"` matches `/x` and everything below, `"=/x"` exactly `/x`. Hosts: an exact name
    wins over `*.suffix` (any number of labels), that over `*`; case, a trailing dot and the port are ignored.
    """

    later: ClassVar[tuple[str, ...]] = (
        "sticky", "headers", "host", "rewrite", "redirect", "respond", "auth", "limits", "http2",
    )  # fmt: skip

    names: tuple[kinds.Host, ...] = key((), "More hosts of this site.", reload=LIVE, max_length=1000)
    tls: SiteTlsOrText = key(None, 'HTTPS: `"auto"`, `"files"`, or a table with `cert` and `key`.', reload=LIVE)
    redirect_http: kinds.Flag | None = key(
        None, "Plain HTTP is sent on to HTTPS, with 308 and the first HTTPS listener's port. Default: true with `tls`.", reload=LIVE
    )
    via: kinds.Via = key(False, "A name to send in `Via`; `false`: no such header.", reload=LIVE)
    max_body: Annotated[int, kinds.size("1B", "1024GiB")] = key(
        "100MiB", "The largest request body, for all routes; more is answered 413.", reload=LIVE
    )
    timeouts: Timeouts | None = key(None, "Differing from `[timeouts]`, for all routes.", reload=LIVE)
    use: Annotated[tuple[str, ...], _kind("list of: name", "names", _uses, {"type": "array"})] = key(
        [],
        'Built-ins (`"security_headers"`, `"compress"`) and presets (`"headers.NAME"`, `"compress.NAME"`) for all routes, outermost first.',
        reload=LIVE,
    )
    cache: RouteCacheOrTtl = key(None, "For all routes that ask a pool and say nothing of their own; see there.", reload=LIVE)
    maintenance: kinds.Flag = key(False, "Answer 503 with Retry-After to everybody but `maintenance_allow`.", reload=LIVE)
    maintenance_allow: Networks = key((), "Networks that are served during maintenance.", reload=LIVE, max_length=10_000)
    rules: tuple[Rule, ...] = key((), "Routes chosen by more than the path, asked first, in their order.", reload=LIVE, max_length=1000)
    routes: dict[str, RouteOrPool] = key({}, "A pool's name or a table.", reload=LIVE, alias=ROUTES, max_length=10_000)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        json = handler.resolve_ref_schema(handler(schema))
        routes = json["properties"].pop(ROUTES)
        json["patternProperties"] = {"^=?/": routes["additionalProperties"]}
        return json


# Tests


class Expect(Section):
    """What a test expects; only what is said is looked at."""

    pool: kinds.Name | None = key(None, "The pool that gets the request.", reload=LIVE)
    split: Annotated[tuple[tuple[str, int | None], ...], _kind("list of pools or table of weights", "pools", _sides, _ARRAY)] | None = key(
        None, "Exactly these sides can get it.", reload=LIVE
    )
    path: kinds.Text | None = key(None, "The path the server is asked for.", reload=LIVE)
    host: kinds.Text | None = key(None, "The Host the server gets.", reload=LIVE)
    redirect: kinds.Text | None = key(None, "Where the client is sent.", reload=LIVE)
    status: Annotated[int, kinds.integer(100, 599)] | None = key(None, "Status of an answer made by the proxy.", reload=LIVE)
    rule: (
        Annotated[str, _kind('rules[N] or ""', "a rule", lambda v: values.parse_text(v, '"rules[0]" and so on, or "" for none'))] | None
    ) = key(None, 'The rule that decides, such as `"rules[0]"`; `""`: none.', reload=LIVE)
    headers: Annotated[tuple[tuple[str, str], ...], _kind("table of fields", "fields", _strings, _TABLE)] | None = key(
        None, "Fields of the request as the server gets it.", reload=LIVE
    )

    @model_validator(mode="after")
    def _says_something(self) -> Expect:
        if not self.model_fields_set:
            raise ValueError("expects nothing; say any of pool, split, path, host, redirect, status, rule, headers")
        return self


class Test(Section):
    """A request and what must become of it. A configuration or live change that breaks one is refused with the trace."""

    __test__: ClassVar[bool] = False

    request: Annotated[str, _kind('"METHOD URL"', '"METHOD URL"', _request_line)] = key(
        ..., "The request line, with the whole URL.", reload=LIVE
    )
    headers: Annotated[tuple[tuple[str, str], ...], _kind("table of fields", "fields", _strings, _TABLE)] = key(
        {}, "Its header fields.", reload=LIVE
    )
    client: Annotated[str, _kind("IP address", "an IP address", lambda v: values.parse_network(v).partition("/")[0])] = key(
        "127.0.0.1", "The client's address.", reload=LIVE
    )
    client_cert: ClientCertificate | None = key(None, "The certificate that the client shows; `*` has no meaning here.", reload=LIVE)
    expect: Expect = key(..., "What must become of it.", reload=LIVE)


ANSWERS = ("pool", "split", "redirect", "respond")
_FOR_SERVERS = ("strip", "rewrite", "host", "retry", "mirror", "cache")


def faults(route: Route) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) for what the keys of one route cannot say together; the first key is "" for the whole table."""
    said = [name for name in ANSWERS if getattr(route, name)]
    if len(said) != 1:
        found = f"this says {' and '.join(said)}" if said else "this says none of them"
        yield "", f"needs exactly one of {', '.join(ANSWERS)}; {found}"
        return
    given = route.model_fields_set
    if said[0] in ("redirect", "respond"):
        yield from ((name, f"cannot be used with {said[0]}: no server is asked") for name in _FOR_SERVERS if name in given)
    if route.sticky is not None and said[0] != "split":
        yield "sticky", "is for a split here; to bring clients back to their server put it into the pool"
    if route.status is not None and (said[0] != "redirect" or route.status not in REDIRECTS):
        yield "status", "is for redirect only, and is 301, 302, 303, 307 or 308"
    if route.retry is not None and "budget" in route.retry.model_fields_set:
        yield "retry", "has no budget of its own: the budget is shared by all requests of the pool; say it in the pool's retry"
    if route.strip and route.rewrite is not None:
        yield "strip", "cannot be used with rewrite; let rewrite remove the prefix"
    if route.strip and isinstance(route, Rule) and "*" not in (route.when.path or ""):
        yield "strip", 'removes what stands before the first "*" of when.path; there is none'


def uses_of(site: Site, route: Route) -> tuple[str, ...]:
    """What a route uses, its site's first; of several ways to compress the last, which is the nearest to the route."""
    own = route.use
    names = site.use if own is None else (*site.use, *own) if own else ()
    compress = [name for name in names if name.partition(".")[0] == "compress"][-1:]
    return tuple(name for name in dict.fromkeys(names) if name.partition(".")[0] != "compress" or name in compress)
