"""What may be done with an answer, told from its head alone."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.codings import MOST_OPEN, NO_MORE, Effort
from twistedproxy.http.head import parse_response
from twistedproxy.http.messages import LocalResponse
from twistedproxy.http.middleware.compression import AS_IT_IS, Compression, Plan, as_planned

TYPES = ("text/*", "application/json", "+xml")


def response(*lines: bytes, status: bytes = b"200 OK") -> Any:
    head = parse_response(b"\r\n".join((b"HTTP/1.1 " + status, *lines, b"", b"")))
    assert head is not None
    return head


class Request:
    """As much of a request as the hooks look at."""

    def __init__(self, *fields: tuple[bytes, bytes]) -> None:
        self._fields = fields

    def get_all(self, name: bytes) -> list[bytes]:
        return [value for given, value in self._fields if given == name]


def exchange(*fields: tuple[bytes, bytes], size: int = -1, method: bytes = b"GET") -> Any:
    made: list[Any] = []
    return SimpleNamespace(
        head=Request(*fields),
        method=method,
        answer_size=size,
        effort=Effort(Counter(), Counter()),
        transforms=made,
        transform_by=made.append,
    )


class PlanTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ours = Compression(("zstd", "br", "gzip"), TYPES, 500)
        self.both = Compression(("zstd", "br", "gzip"), TYPES, 500, decompress=True)

    def test_types(self) -> None:
        """By whole name, by the part before the slash, by the end; parameters and case do not count."""
        for kind, is_wanted in (
            (b"text/html", True), (b"TEXT/plain; charset=utf-8", True), (b"application/json;q=1", True), (b"image/svg+xml", True),
            (b"application/problem+json", False), (b"texts/html", False), (b"image/png", False), (b"", False),
            (b"application/jsonp", False), (b"x" * 500, False),
        ):  # fmt: skip
            for _ in "12":
                plan = self.ours.plan(b"gzip", response(b"Content-Type: " + kind), 1000)
                self.assertEqual(plan is not None, is_wanted, kind)
        everything = Compression(types=("*/*",))
        self.assertEqual(everything.plan(b"gzip", response(b"Content-Type: a/b"), 5000), Plan("", "gzip"))

    def test_remembered_types_are_bounded(self) -> None:
        """A server that never says the same twice does not make the worker grow."""
        for n in range(1000):
            self.ours.plan(b"gzip", response(b"Content-Type: text/x%d" % n), 1000)
        self.assertLessEqual(len(self.ours._types), 256)

    def test_a_part_says_that_the_whole_varies(self) -> None:
        """It stays as it is, but caches that keep parts must not give it to whoever holds the compressed whole."""
        text, status = b"Content-Type: text/html", b"206 Partial Content"
        part = b"Content-Range: bytes 0-3/%d"
        for lines, varies in (
            ((text, part % 1000), True), ((text, b"Content-Range: bytes 0-3/*", b"Vary: Cookie"), True),
            ((b"Content-Type: multipart/byteranges; boundary=x",), True), ((text, part % 499), False),
            ((b"Content-Type: image/png", part % 1000), False), ((text, part % 1000, b"Content-Encoding: gzip"), False),
            ((text, part % 1000, b"Cache-Control: no-transform"), False),
            ((text, b"Content-Range: bytes 0-3/" + b"9" * 5000), True),
        ):  # fmt: skip
            made = exchange((b"accept-encoding", b"gzip"))
            head = self.ours.on_response(made, response(*lines, status=status))
            self.assertEqual(b"Accept-Encoding" in b",".join(head.get_all(b"vary")), varies, lines)
            self.assertEqual(made.transforms, [])
        coded = response(text, part % 1000, b"Content-Encoding: gzip", status=status)
        self.assertEqual(self.both.on_response(exchange(), coded).get(b"vary"), b"Accept-Encoding")

    def test_what_is_left_alone(self) -> None:
        """None, so that not even Vary is touched."""
        text = b"Content-Type: text/html"
        for head, size in (
            (response(text), 499),
            (response(text), 0),
            (response(text, status=b"204 No Content"), -1),
            (response(text, status=b"205 Reset Content"), -1),
            (response(text, status=b"206 Partial Content"), 9999),
            (response(text, b"Content-Range: bytes */9"), 9999),
            (response(text, b"Content-Encoding: gzip"), 9999),
            (response(text, b"Content-Encoding: aes128gcm"), 9999),
            (response(text, b"Cache-Control: max-age=1, No-Transform"), 9999),
        ):
            self.assertIsNone(self.ours.plan(b"gzip", head, size), list(head.fields()))
        for lines in ((b"gzip, br",), (b"gzip", b"gzip"), (b"deflate",)):
            head = response(text, *(b"Content-Encoding: " + line for line in lines))
            self.assertIsNone(self.both.plan(b"", head, 9999))  # two of them, or one that we do not know

    def test_what_would_differ_for_others(self) -> None:
        """A client that wants nothing gets Vary all the same: a cache must not give this to somebody who asks for gzip, nor the reverse."""
        self.assertEqual(self.ours.plan(b"", response(b"Content-Type: text/html"), -1), AS_IT_IS)
        self.assertEqual(self.ours.plan(b"gzip;q=0", response(b"Content-Type: text/html"), -1), AS_IT_IS)
        self.assertEqual(self.ours.plan(b"br", response(b"Content-Type: text/html", b"Content-Encoding: identity"), -1), Plan("", "br"))
        packed = response(b"Content-Type: text/html", b"Content-Encoding: X-GZip")
        self.assertEqual(self.both.plan(b"gzip", packed, -1), AS_IT_IS)
        self.assertEqual(self.both.plan(b"", packed, -1), Plan("gzip"))
        self.assertEqual(self.both.plan(b"br", packed, -1), Plan("gzip", "br"))
        self.assertEqual(self.both.plan(b"br", response(b"Content-Type: a/b", b"Content-Encoding: gzip"), -1), Plan("gzip"))

    def test_fields(self) -> None:
        """Vary once, weak ETag, nothing that speaks of bytes which nobody gets."""
        lines = (b'ETag: "a"', b"Accept-Ranges: bytes", b"Digest: x", b"Repr-Digest: y", b"Content-Digest: z", b"Content-MD5: m",
                 b"Content-Length: 5", b"Last-Modified: then", b"Vary: Cookie", b"vary: Origin")  # fmt: skip
        out = dict(as_planned(Plan("", "br"), response(*lines)).fields())
        self.assertEqual(out, {b"ETag": b'W/"a"', b"Last-Modified": b"then", b"Vary": b"Cookie, Origin, Accept-Encoding",
                               b"Content-Encoding": b"br"})  # fmt: skip
        for varies in (b"Accept-Encoding", b"cookie,ACCEPT-ENCODING", b"*"):
            head = response(b'ETag: W/"a"', b"Vary: " + varies)
            self.assertIs(as_planned(AS_IT_IS, head), head)
            self.assertEqual(as_planned(Plan("", "br"), head).get_all(b"vary"), [varies])
            self.assertEqual(as_planned(Plan("", "br"), head).get(b"etag"), b'W/"a"')
        undone = as_planned(Plan("gzip"), response(b"Content-Encoding: gzip", b"Content-Type: a/b"))
        self.assertEqual(list(undone.fields()), [(b"Content-Type", b"a/b"), (b"Vary", b"Accept-Encoding")])


class HookTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ours = Compression(("br", "gzip"), TYPES, 500)
        self.text = response(b"Content-Type: text/html", b"Content-Length: 9999")

    def test_all_lines_of_accept_encoding_count(self) -> None:
        """A field may be written as several."""
        one = exchange((b"accept-encoding", b"gzip;q=0.5"), (b"accept-encoding", b"br"), size=9999)
        self.assertEqual(self.ours.on_response(one, self.text).get(b"content-encoding"), b"br")
        self.assertEqual(len(one.transforms), 1)

    def test_a_304_for_what_was_compressed(self) -> None:
        """Its ETag is the weak one that the client holds, so that what it keeps stays known by one name; others are not touched."""
        fresh = response(b'ETag: "a"', status=b"304 Not Modified")
        weak = exchange((b"if-none-match", b'"x", W/"a"'), (b"accept-encoding", b"gzip"))
        out = self.ours.on_response(weak, fresh)
        self.assertEqual((out.get(b"etag"), out.get(b"vary")), (b'W/"a"', b"Accept-Encoding"))
        self.assertIs(self.ours.on_response(exchange((b"if-none-match", b'"a"')), fresh), fresh)

    def test_no_transform_of_the_client(self) -> None:
        """RFC 9111 5.2.1.6."""
        asked = exchange((b"accept-encoding", b"gzip"), (b"cache-control", b"no-transform"), size=9999)
        self.assertIs(self.ours.on_response(asked, self.text), self.text)
        local = LocalResponse(200, b"x" * 9999, ((b"Content-Type", b"text/html"),))
        self.assertIs(self.ours.on_local(asked, local), local)

    def test_head_has_the_fields_only(self) -> None:
        """No coder is made for a body that does not come."""
        asked = exchange((b"accept-encoding", b"gzip"), size=9999, method=b"HEAD")
        out = self.ours.on_response(asked, self.text)
        self.assertEqual((out.get(b"content-encoding"), out.get(b"content-length"), asked.transforms), (b"gzip", None, []))

    def test_load(self) -> None:
        """An overloaded worker, or one with too many coders at work, sends things as they are; Vary is there all the same."""
        local = LocalResponse(200, b"x" * 9999, ((b"Content-Type", b"text/html"),))
        for name, value in (("ease", NO_MORE), ("open", MOST_OPEN)):
            asked = exchange((b"accept-encoding", b"gzip"), size=9999)
            setattr(asked.effort, name, value)
            out = self.ours.on_response(asked, self.text)
            self.assertEqual((out.get(b"content-encoding"), out.get(b"vary"), asked.transforms), (None, b"Accept-Encoding", []))
            self.assertEqual(self.ours.on_local(asked, local).body, local.body)
            self.assertEqual(sum(asked.effort.eased.values()), 2)

    def test_codings_that_are_not_installed(self) -> None:
        """What the machine lacks is not offered."""
        self.assertEqual(Compression(("gzip",), TYPES).plan(b"br, zstd", self.text, -1), AS_IT_IS)
