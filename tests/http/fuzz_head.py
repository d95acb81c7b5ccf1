# ruff: noqa: E501 (rows of samples are read across)
"""Fuzzes the head codecs: native against pure, and both against llhttp (httptools) and h11.

    python tests/http/fuzz_head.py [SECONDS [SEED]]              thorough: every attribute, in pieces, small limits, oracles
    python tests/http/fuzz_head.py swarm HEADS [SEED [FIRST]]    many: native against pure only, round after round from FIRST on

Heads are built from a grammar of plausible and hostile parts and then mutated. Every disagreement between the codecs is a defect. Against the
oracles, one must be explained by a rule of the tables below: where we are stricter or laxer, and why. The tests run both for a
minute; docs/codec.md has the figures of the long run.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import h11
import httptools

from twistedproxy.errors import ProxyError
from twistedproxy.http import _pure
from twistedproxy.http.head import PartialRequest
from twistedproxy.http.refusals import REFUSALS

try:
    from twistedproxy.http import _head
except ImportError:
    _head = None  # type: ignore[assignment]

RULE_OF = {detail: rule for rule, (_, _, detail) in REFUSALS.items()}

_LIMITS = "a limit of ours, which the other does not have or sets elsewhere"
_HOST = "Host decides routing: exactly one, of a form every server reads alike (RT-01)"
_TARGET = "one canonical target for router, ACL, cache and server (RT-03)"
STRICTER: dict[str, dict[str, str]] = {
    "llhttp": {
        "request_line_long": _LIMITS, "field_long": _LIMITS, "head_long": _LIMITS, "fields_many": _LIMITS, "connection_long": _LIMITS,
        "host": _HOST, "host_missing": _HOST, "host_twice": _HOST,
        "target_form": _TARGET, "target_star": _TARGET, "target_connect": _TARGET, "target_fragment": _TARGET, "target_bytes": _TARGET,
        "path_escape": _TARGET, "path_encoded": _TARGET, "path_backslash": _TARGET, "path_overlong": _TARGET, "path_dots": _TARGET,
        "connection_nominates": "a nominated framing field would be dropped here and read there (SM-13)",
        "expectation": "an expectation nobody meets is refused with 417, not left to the server",
        "version": "llhttp takes HTTP/0.9 and HTTP/2.0 for versions; we do not speak them (SM-20)",
        "version_form": "llhttp takes several spaces before the version, and ICE/ and RTSP/ for some methods (SM-20)",
        "no_version": "llhttp speaks HTTP/0.9 (SM-20)",
        "coding": "chunked once, without parameters, and nothing else (SM-04)",
        "coding_unknown": "we implement no other transfer coding (SM-04)",
        "coding_old": "Transfer-Encoding on HTTP/1.0 is how requests are smuggled (SM-04)",
        "bare_lf": "llhttp tolerates LF alone before the request line (SM-05)",
        "bare_cr": "llhttp skips CR before the request line (SM-05)",
        "method": "llhttp skips any number of empty lines before the request line; we skip one",
        "length": "more than 19 digits, or 2^63 and above, is refused (SM-03)",
    },
    "h11": {
        "request_line_long": _LIMITS, "field_long": _LIMITS, "head_long": _LIMITS, "fields_many": _LIMITS, "connection_long": _LIMITS,
        "host": _HOST,
        "target_form": _TARGET, "target_star": _TARGET, "target_connect": _TARGET, "target_fragment": _TARGET,
        "path_escape": _TARGET, "path_encoded": _TARGET, "path_backslash": _TARGET, "path_overlong": _TARGET, "path_dots": _TARGET,
        "connection_nominates": "as above (SM-13)",
        "expectation": "as above",
        "version": "h11 leaves versions such as 0.9 and 2.0 to its caller",
        "method": "h11 has no limit on the length of a method",
        "bare_lf": "h11 takes LF alone as a line end (SM-05)",
        "field_fold": "h11 unfolds obsolete folding (SM-07)",
        "length": "more than 19 digits (h11: 20), or 2^63 and above (SM-03)",
        "length_twice": "h11 takes equal lengths for one (SM-02)",
        "length_and_coding": "h11 lets Transfer-Encoding win (SM-01)",
        "coding_old": "h11 takes it on HTTP/1.0 (SM-04)",
        "coding": "h11 unfolds a value that begins on the next line (SM-07)",
        "field_value": "h11 takes some control characters (SM-07)",
    },
}  # fmt: skip
"""Oracle: {rule by which we refuse what it accepts: why}."""

LAXER: dict[str, str] = {
    "h11": "one CR LF before the request line is skipped (RFC 9112 2.2); h11 does not",
    "llhttp": "any token of at most 32 characters is a method (RFC 9110 16.1); llhttp knows a list",
}
"""Oracle: the one reason for which it may refuse what we accept."""

STRICTER_RESPONSE: dict[str, dict[str, str]] = {
    "llhttp": {
        "field_long": _LIMITS, "head_long": _LIMITS, "fields_many": _LIMITS, "connection_long": _LIMITS, "status_line_long": _LIMITS,
        "status_line": "llhttp takes HTTP/0.9, HTTP/2.0, one-digit statuses and more before the reason; we do not (SM-20)",
        "connection_nominates": "a nominated framing field would be dropped here and read there (SM-13)",
        "coding": "chunked once, without parameters, and nothing else (SM-04)",
        "coding_unknown": "we implement no other transfer coding (SM-04)",
        "coding_twice": "the same (SM-04)",
        "coding_old": "Transfer-Encoding on HTTP/1.0 is not defined (SM-04)",
        "length": "more than 19 digits, or 2^63 and above, is refused (SM-03)",
        "bare_lf": "llhttp tolerates LF alone before the status line (SM-05)",
        "bare_cr": "llhttp skips CR before the status line (SM-05)",
    },
    "h11": {
        "field_long": _LIMITS, "head_long": _LIMITS, "fields_many": _LIMITS, "connection_long": _LIMITS, "status_line_long": _LIMITS,
        "status_line": "h11 takes versions such as 0.9 and 2.0 and statuses from 000 on",
        "connection_nominates": "as above (SM-13)",
        "bare_lf": "h11 takes LF alone as a line end (SM-05)",
        "field_fold": "h11 unfolds obsolete folding (SM-07)",
        "length": "more than 19 digits (h11: 20), or 2^63 and above (SM-03)",
        "length_twice": "h11 takes equal lengths for one (SM-02)",
        "length_and_coding": "h11 lets Transfer-Encoding win (SM-01)",
        "coding_old": "h11 takes it on HTTP/1.0 (SM-04)",
        "field_value": "h11 takes some control characters (SM-07)",
    },
}  # fmt: skip
"""The same for responses."""

LINES = [
    b"GET / HTTP/1.1", b"GET /a/b?c=d HTTP/1.1", b"POST /x HTTP/1.1", b"HEAD /%61/../b HTTP/1.1", b"GET / HTTP/1.0", b"PUT //a/./b HTTP/1.1",
    b"OPTIONS * HTTP/1.1", b"GET http://B.example:81/x?y HTTP/1.1", b"CONNECT b:443 HTTP/1.1", b"GET * HTTP/1.1", b"GET /\xe9 HTTP/1.1",
    b"GET / HTTP/1.2", b"GET / HTTP/2.0", b"GET / HTTP/0.9", b"GET /", b"GET  / HTTP/1.1", b"get / HTTP/1.1", b"GET / http/1.1", b"DELETE /x;y HTTP/1.1",
    b"PATCH /a%2fb HTTP/1.1", b"GET /..;/a HTTP/1.1", b"GET /a%zz HTTP/1.1", b"GET /a#b HTTP/1.1", b"GET /a?b#c HTTP/1.1", b"GET /\\ HTTP/1.1",
    b"GET http://u@h/ HTTP/1.1", b"GET ftp://h/ HTTP/1.1", b"GET /a|b HTTP/1.1", b"GET / ICE/1.0", b"PRI * HTTP/2.0", b"TRACE / HTTP/1.1",
    b"GET /" + b"a" * 300 + b" HTTP/1.1", b"GET /%c0%af HTTP/1.1", b"GET / HTTP/1.1 ", b"OPTIONS http://b HTTP/1.1", b"\r\nGET / HTTP/1.1",
]  # fmt: skip
HOSTS = [
    b"a",
    b"www.Example.com:8080",
    b"h:99999",
    b"[::1]:80",
    b"[::1",
    b"a,b",
    b"u@h",
    b"",
    b"a..b",
    b"a.",
    b"127.0.0.1",
    b"x" * 300,
    b"a_b",
    b"a/b",
]
FIELDS = [
    b"Accept: */*", b"User-Agent: Mozilla/5.0 (X11)", b"Cookie: a=b; c=d", b"X-Forwarded-For: 10.0.0.1", b"x_forwarded_for: 1", b"X-Request-Id: 5",
    b"Content-Length: 5", b"Content-Length: 5, 5", b"Content-Length: +5", b"content-length: 0", b"Content-Length: 99999999999999999999", b"Content_Length: 1",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: Chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity", b"Transfer_Encoding: chunked",
    b"Connection: close", b"Connection: keep-alive", b"Connection: Upgrade", b"Connection: x-a, X-B", b"Connection: host", b"Connection: close, ,\t", b"Connection:",
    b"Connection: te, connection", b"Upgrade: websocket", b"Upgrade: a, b", b"Expect: 100-continue", b"Expect: tea", b"X-A: 1", b"X-B: 2", b"X-A:", b"X: \t y \t", b"X:y",
    b"X : y", b": y", b"X", b" X: y", b"X: \x00", b"X: \xe9", b"X\xe9: y", b"X: a\rb", b"X: a\nb", b"TE: trailers", b"Keep-Alive: 5", b"Via: 1.1 x",
    b"Date: now", b"Server: x", b"Forwarded: for=x", b"X-Real-IP: 1", b"X-Revproxy-X: 1", b"X-Client-Cert: 1", b"x-internal-a: 1", b"X-Internal: 1", b"X-Forwarded-Proto: http",
    b"X-Forwarded-Prefix: /", b"Proxy-Authorization: x", b"Proxy-Connection: x", b"HTTP2-Settings: x", b"Trailer: x", b"X-Rewrite-URL: /", b"X-Original-URL: /",
    b"Long: " + b"v" * 2000, b"Spaces: " + b" " * 300 + b"x" + b" " * 300, b"Referer: http://x/y?z", b"!#$%&'*+-.^_`|~: odd", b"Accept-Encoding: gzip, br",
]  # fmt: skip
HARMLESS = [
    b"Accept: */*", b"User-Agent: Mozilla/5.0 (X11)", b"Cookie: a=b; c=d", b"X-Forwarded-For: 10.0.0.1", b"x_forwarded_for: 1", b"X-Request-Id: 5", b"X-A:",
    b"Content_Length: 1", b"Transfer_Encoding: chunked", b"Connection: close", b"Connection: keep-alive", b"Connection: Upgrade", b"Connection: x-a, X-B, te",
    b"Connection: close, ,\t", b"Upgrade: websocket", b"Expect: 100-continue", b"X-A: 1", b"x-b: 2", b"X: \t y \t", b"X:y", b"X: \xe9", b"TE: trailers", b"Via: 1.1 x",
    b"Forwarded: for=x", b"X-Real-IP: 1", b"X-Revproxy-X: 1", b"X-Forwarded-Prefix: /", b"Spaces: " + b" " * 300 + b"x" + b" " * 300, b"Accept-Encoding: gzip, br",
]  # fmt: skip
STATUS_LINES = [
    b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Not Found", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No Content", b"HTTP/1.1 100 Continue", b"HTTP/1.1 304 x", b"HTTP/1.1 200", b"HTTP/1.1 200 ",
    b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.1 999 ?", b"HTTP/1.1 099 x", b"HTTP/1.1 20 x", b"HTTP/1.1 2000 x", b"HTTP/1.1  200 OK", b"HTTP/1.2 200 OK", b"HTTP/2 200 OK",
    b"HTTP/0.9 200 OK", b"http/1.1 200 OK", b"HTTP/1.1 200 \xe9t\xe9", b"HTTP/1.1 200 a\tb", b"HTTP/1.1 200 a\x00b", b"ICY 200 OK", b" HTTP/1.1 200 OK", b"\r\nHTTP/1.1 200 OK", b"200 OK",
]  # fmt: skip
BITS = [
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b":",
    b"\x00",
    b"\x7f",
    b"\x80",
    b"\xff",
    b",",
    b";",
    b"_",
    b"-",
    b"%",
    b"/",
    b".",
    b"?",
    b"#",
    b"\\",
    b"@",
    b"HTTP/1.1",
    b"1",
]
TAME = [b"a", b"Z", b"-", b"_", b"1", b"0", b"*", b"~", b"^", b" ", b"\xe9", b"aaaaaaaaaaaaaaaa"]


def build(rng: random.Random) -> bytes:
    """One head, more often right than wrong, then a few random cuts, insertions, doublings."""
    lines = [rng.choice(LINES) if rng.random() < 0.4 else b"GET /x HTTP/1.1"]
    if rng.random() < 0.95:
        lines.append(b"Host: " + (rng.choice(HOSTS) if rng.random() < 0.2 else b"h.example"))
    many = rng.choice((0, 1, 2, 3, 5, 8, 12, 25, 110 if rng.random() < 0.1 else 4))
    is_mild = rng.random() < 0.6
    lines += [rng.choice(HARMLESS if is_mild and rng.random() < 0.95 else FIELDS) for _ in range(many)]
    data = b"\r\n".join(lines) + b"\r\n\r\n"
    return mutate(data, rng) if rng.random() < 0.6 else data


def build_response(rng: random.Random) -> bytes:
    """The same for an answer."""
    lines = [rng.choice(STATUS_LINES) if rng.random() < 0.4 else b"HTTP/1.1 200 OK"]
    is_mild = rng.random() < 0.6
    many = rng.choice((0, 1, 2, 3, 5, 8, 12, 25, 210 if rng.random() < 0.1 else 4))
    lines += [rng.choice(HARMLESS if is_mild and rng.random() < 0.95 else FIELDS) for _ in range(many)]
    data = b"\r\n".join(lines) + b"\r\n\r\n"
    return mutate(data, rng) if rng.random() < 0.6 else data


def mutate(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        stop = min(len(data), at + rng.choice((0, 1, 1, 2, 5)))
        way = rng.random()
        if way < 0.5:
            data = data[:at] + rng.choice(BITS) + data[stop:]
        elif way < 0.7:
            data = data[:at] + data[stop:]
        elif way < 0.85:
            data = data[:at] + bytes((rng.randrange(256),)) + data[stop:]
        elif way < 0.95:
            data = data[:at] + data[rng.randrange(len(data) + 1) :]
        else:
            data = data[:at] + data[at:stop] * 3 + data[stop:]
    return data


def portrait(head: Any) -> Any:
    names = ["size", "minor", "content_length", "is_chunked", "wants_close", "upgrade", "kinds"]
    if hasattr(head, "method"):
        names += ["method", "target", "host", "authority", "path", "query", "expects_continue", "is_canonical", "body_length"]
    else:
        names.append("status")
    found: dict[str, Any] = {name: getattr(head, name) for name in names}
    if hasattr(head, "method"):
        found["log"] = head.log_pieces()
    else:
        found["body_length_for"] = [head.body_length_for(method) for method in (b"GET", b"HEAD")]
    found["fields"] = list(head.fields())
    found["written"] = [head.write_h1(None, 1 << bit, (b"x-a", b"cookie"), b"|") for bit in range(14)] + [head.write_h1(b"L", 0, (), b"")]
    found["get"] = [(head.get(name.lower()), head.get_all(name.lower())) for name, _ in found["fields"]]
    return found


def judge(parse: Any, data: bytes, limits: Any) -> Any:
    try:
        head = parse(data, limits)
    except ProxyError as error:
        return type(error).__name__, error.status, error.reason, error.detail
    return None if head is None else portrait(head)


SMALL = (700, 200, 400, 12)


def codecs_differ(data: bytes) -> str | None:
    """How the codecs disagree about `data`, as request and as response, with default and with small limits."""
    if _head is None:
        return None
    for size in ((), SMALL):
        ours, theirs = _head.Limits(*size), _pure.Limits(*size)
        for name in ("parse_request", "parse_response"):
            native, pure = judge(getattr(_head, name), data, ours), judge(getattr(_pure, name), data, theirs)
            if native != pure:
                return f"{name}{size}: native {native!r}\n  pure {pure!r}"
    return None


def pieces_differ(data: bytes, rng: random.Random) -> str | None:
    """How feeding `data` in pieces ends otherwise than parsing it whole."""
    limits = _pure.Limits()
    whole = judge(_pure.parse_request, data, limits)
    partial = PartialRequest(limits, parse=_pure.parse_request)
    seen: Any = None
    at = 0
    try:
        while at < len(data) and seen is None:
            step = rng.choice((1, 1, 2, 5, 40, 1500))
            head = partial.feed(data[at : at + step])
            seen = None if head is None else portrait(head)
            at += step
    except ProxyError as error:
        seen = type(error).__name__, error.status, error.reason, error.detail
    if (seen is None) != (whole is None) or isinstance(seen, dict) != isinstance(whole, dict) or (isinstance(seen, dict) and seen != whole):
        return f"in pieces {seen!r}\n  whole {whole!r}"
    return None


class _Seen:
    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_complete:
            self.headers.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.is_complete = True


def llhttp(data: bytes, is_request: bool = True) -> Any:
    """(method and target, or status, then fields) when llhttp takes `data` for a head, None for more to come, else its error."""
    seen = _Seen()
    parser = httptools.HttpRequestParser(seen) if is_request else httptools.HttpResponseParser(seen)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        if not seen.is_complete:
            return f"{type(error).__name__}: {error}"
    if not seen.is_complete:
        return None
    return (parser.get_method(), seen.url, seen.headers) if is_request else (parser.get_status_code(), seen.headers)


def h11_says(data: bytes, is_request: bool = True) -> Any:
    """The same for h11."""
    connection = h11.Connection(h11.SERVER if is_request else h11.CLIENT, max_incomplete_event_size=1 << 20)
    if not is_request:
        connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a"), ("Upgrade", "websocket"), ("Connection", "upgrade")]))
        connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        return f"RemoteProtocolError: {error}"
    if isinstance(event, h11.Request):
        return bytes(event.method), bytes(event.target), list(event.headers.raw_items())
    if isinstance(event, (h11.Response, h11.InformationalResponse)):
        return event.status_code, list(event.headers.raw_items())
    return None


def oracle_differs(name: str, says: Any, ours: Any, data: bytes, is_request: bool = True) -> str | None:
    """How an oracle disagrees with us in a way no table explains."""
    if isinstance(ours, tuple):
        rule = RULE_OF[ours[3].removeprefix("bad response head: ")]
        table = (STRICTER if is_request else STRICTER_RESPONSE)[name]
        return f"{name} accepts what we refuse by {rule}" if isinstance(says, tuple) and rule not in table else None
    if ours is None:
        return f"{name} is satisfied where we wait for more: {says!r}" if isinstance(says, tuple) else None
    if isinstance(says, tuple):
        have = ours["fields"]
        if name == "h11":  # it hands out this one value in lower case
            have = [(n, v.lower() if n.lower() == b"transfer-encoding" else v) for n, v in have]
        we = (ours["method"], ours["target"], have) if is_request else (ours["status"], have)
        return None if says == we else f"{name} reads {says!r}\n  we read {we!r}"
    if is_request and name == "h11" and data.startswith(b"\r\n"):
        return None  # LAXER
    if is_request and name == "llhttp" and isinstance(says, str) and says.startswith("HttpParserInvalidMethodError"):
        return None  # LAXER
    return f"{name} does not accept what we accept: {says!r}"


def check(data: bytes, rng: random.Random) -> str | None:
    """The first defect that `data`, a request, shows, or None."""
    found = codecs_differ(data) or pieces_differ(data, rng)
    if found is None:
        ours = judge(_pure.parse_request, data, _pure.Limits())
        found = oracle_differs("llhttp", llhttp(data), ours, data) or oracle_differs("h11", h11_says(data), ours, data)
    return found


def check_response(data: bytes) -> str | None:
    """The same for a response."""
    found = codecs_differ(data)
    if found is None:
        ours = judge(_pure.parse_response, data, None)
        for name, says in (("llhttp", llhttp), ("h11", h11_says)):
            found = found or oracle_differs(name, says(data, False), ours, data, False)
    return found


# Many heads, native against pure: what decides routing and framing, and what is written

_DROPPED = 4 | 8 | 16 | 32 | 64 | 2048 | 4096
"""What a stranger's request loses on its way."""


def sketch_request(parse: Any, data: bytes, limits: Any) -> Any:
    try:
        head = parse(data, limits)
    except ProxyError as error:
        return error.detail
    if head is None:
        return None
    return (
        head.size, head.minor, head.kinds, head.body_length, head.content_length, head.wants_close, head.upgrade, head.method, head.target, head.host,
        head.authority, head.path, head.query, head.expects_continue, head.is_canonical, head.write_h1(None, _DROPPED, (), b"|"), head.write_h1(b"-", 0, (b"x-a",), b""),
    )  # fmt: skip


def sketch_response(parse: Any, data: bytes, limits: Any) -> Any:
    try:
        head = parse(data, limits)
    except ProxyError as error:
        return error.detail
    if head is None:
        return None
    return (
        head.size, head.minor, head.kinds, head.body_length_for(b"GET"), head.content_length, head.wants_close, head.upgrade, head.status,
        head.write_h1(None, _DROPPED, (), b"|"), head.write_h1(b"-", 0, (b"x-a",), b""),
    )  # fmt: skip


ROUND = 200


def swarm_round(seed: int, number: int, tally: list[int]) -> str | None:
    """`ROUND` variants of one head through both codecs; `tally` counts heads that were taken, incomplete, refused."""
    assert _head is not None, "the native codec is not built"
    rng = random.Random(f"swarm {seed}:{number}")
    is_request = number % 4 != 3
    name, sketch = ("parse_request", sketch_request) if is_request else ("parse_response", sketch_response)
    native, pure = getattr(_head, name), getattr(_pure, name)
    size = SMALL if number % 5 == 0 else ()
    ours, theirs = _head.Limits(*size), _pure.Limits(*size)
    for _ in range(10):  # rather something that is taken before it is changed
        base = build(rng) if is_request else build_response(rng)
        if isinstance(sketch(native, base, ours), tuple):
            break
    data, bits = base, rng.getrandbits
    for i in range(ROUND):
        if i % 4 == 0:
            data = base
        # One cut or insertion more than the last variant had, without the grammar's cost.
        r = bits(40)
        at = (r & 0xFFFF) % (len(data) + 1)
        way = r >> 38
        if way == 0:
            data = data[:at] + data[at + 1 + (r >> 36 & 3) :]
        elif way == 1:
            data = data[:at] + bytes((r >> 16 & 255,)) + data[at + (r >> 37 & 1) :]
        else:
            some = BITS if way == 2 else TAME
            data = data[:at] + some[(r >> 16) % len(some)] + data[at + (r >> 37 & 1) :]
        one, other = sketch(native, data, ours), sketch(pure, data, theirs)
        if one != other:
            return f"{name}{size} of {data!r}:\n  native {one!r}\n  pure   {other!r}"
        tally[1 if one is None else 2 if isinstance(one, str) else 0] += 1
    return None


def swarm(heads: int, seed: int = 0, first: int = 0) -> int:
    tally = [0, 0, 0]
    failures = 0
    begin = time.monotonic()
    for number in range(first, first + -(-heads // ROUND)):
        found = swarm_round(seed, number, tally)
        if found is not None:
            failures += 1
            print(f"round {number}: {found}", flush=True)
    seconds = time.monotonic() - begin
    total = sum(tally)
    print(
        f"{total} heads in {seconds:.0f} s ({total / seconds:.0f}/s): {tally[0]} taken, {tally[1]} incomplete, {tally[2]} refused; "
        f"{failures} rounds with a disagreement; seed {seed}, rounds {first} to {first + -(-heads // ROUND) - 1}"
    )
    return 1 if failures else 0


def main(seconds: float = 60, seed: int = 0) -> int:
    end = time.monotonic() + seconds
    count = 0
    failures: dict[str, bytes] = {}
    while time.monotonic() < end and len(failures) < 20:
        rng = random.Random(f"{seed}:{count}")
        data = build(rng)
        if count % 4 == 3:
            data = build_response(rng)
            found = check_response(data)
        else:
            found = check(data, rng)
        if found is not None and found[:60] not in failures:
            failures[found[:60]] = data
            print(f"seed {seed}, case {count}: {data!r}\n  {found}\n")
        count += 1
    print(f"{count} heads, {len(failures)} kinds of disagreement, seed {seed}; native codec {'present' if _head else 'absent'}")
    return 1 if failures else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["swarm"]:
        sys.exit(swarm(*map(int, sys.argv[2:5])))
    sys.exit(main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3])))
