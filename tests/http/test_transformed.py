"""Answers whose bodies are changed on their way, on real connections: framing, backpressure, and ends of all sorts."""

from __future__ import annotations

import gzip
import random
import zlib
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Compression, Respond, Route, Site, Use
from twistedproxy.errors import BadResponse
from twistedproxy.http import codings
from twistedproxy.http.destination import Destination
from twistedproxy.http.middleware import compression
from twistedproxy.http.middleware.chain import OneBehindTheOther
from twistedproxy.http.routes import Router

TEXT = b"".join(b"<p>line %d of a page that is worth it</p>\n" % n for n in range(1000))
NOISE = random.Random(3).randbytes(3_000_000)
USE = Use("compress", compression=Compression(("zstd", "br", "gzip"), ("text/*",), 500, (("gzip", 1),), decompress=True))
ROUTE = Route("/", "web", use=(USE,))


def get(*lines: bytes, method: bytes = b"GET", version: bytes = b"1.1", accept: bytes = b"gzip") -> bytes:
    fields = (b"Accept-Encoding: " + accept, *lines) if accept else lines
    return b"%b / HTTP/%b\r\nHost: h\r\n%b\r\n" % (method, version, b"".join([line + b"\r\n" for line in fields]))


def head(*lines: bytes, status: bytes = b"200 OK", kind: bytes = b"text/html") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%b\r\n" % (status, kind, b"".join([line + b"\r\n" for line in lines]))


def sized(body: bytes, *lines: bytes, **how: bytes) -> bytes:
    return head(b"Content-Length: %d" % len(body), *lines, **how) + body


CHUNKED = b"Transfer-Encoding: chunked"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class TransformedTests(SynchronousTestCase):
    uses_bed = True
    bed: Any
    fakes: Any

    def begin(self, request: bytes, receive_buffer: int = 0) -> tuple[Any, Any]:
        """(client, server) after the request."""
        origin = self.bed.proxy(routes=[ROUTE])
        client = self.bed.client(request, receive_buffer)
        server = origin.accept()
        self.seen = server.request()
        return client, server

    def ask(self, request: bytes, answer: bytes, to: bytes = b"GET") -> Any:
        client, server = self.begin(request)
        server.send(answer)
        return client.response(to)

    def send_rest(self, client: Any, server: Any, data: bytes) -> None:
        """All of it, while the client reads."""
        idle = 0
        while data:
            client.pump()
            sent = server.send_what_fits(data[:1_000_000])
            data = data[sent:]
            idle = 0 if sent else idle + 1
            self.assertLess(idle, 50, "the server is not read any more")

    # Framing

    def test_a_small_answer_keeps_a_length(self) -> None:
        """Complete when it comes: compressed at once, with its Content-Length, and the connections live on."""
        client, server = self.begin(get())
        self.assertEqual(self.seen.get(b"Accept-Encoding"), b"gzip")  # the server may do it itself
        for _ in range(2):
            server.send(sized(TEXT[:9000], b'ETag: "e"', b"Accept-Ranges: bytes"))
            got = client.response()
            self.assertEqual(gzip.decompress(got.body), TEXT[:9000])
            self.assertEqual((got.get(b"Content-Length"), got.get(b"Transfer-Encoding")), (b"%d" % len(got.body), None))
            self.assertEqual((got.get(b"ETag"), got.get(b"Vary"), got.get(b"Accept-Ranges")), (b'W/"e"', b"Accept-Encoding", None))
            client.send(get())
            server.request()
        server.send(sized(b"tiny"))
        self.assertEqual(client.response().body, b"tiny")
        line = self.bed.logged(3)
        self.assertEqual(line.bytes_sent, 4)
        self.assertLess(self.bed.log.lines[0].bytes_sent, 2000)
        self.assertEqual(self.bed.front.effort.open, 0)
        (coded_in, coded_out) = (self.bed.metrics.coded[("compress", "gzip", way)] for way in ("in", "out"))
        self.assertEqual((coded_in, coded_out), (18000, sum(line.bytes_sent for line in self.bed.log.lines[:2])))

    def test_a_large_answer_goes_out_in_chunks(self) -> None:
        """Its length is not known any more; it is not spliced past the coder, and the server's connection is kept."""
        client, server = self.begin(get())
        body = TEXT * 40 + NOISE[:500_000]
        server.send(sized(body))
        got = client.response()
        self.assertEqual((got.get(b"Transfer-Encoding"), got.get(b"Content-Length")), (b"chunked", None))
        self.assertEqual(zlib.decompress(got.body, 31), body)
        self.bed.until(lambda: self.bed.idle == 1, "the server's connection to be kept")
        self.assertEqual(self.bed.logged().bytes_sent, len(got.body))

    def test_trailers_go_on(self) -> None:
        """But for those that are digests of bytes which the client does not get."""
        trailers = b"X-Sum: 1\r\nContent-MD5: x\r\nRepr-Digest: y\r\n"
        whole = head(CHUNKED) + chunk(TEXT) + b"0\r\n" + trailers + b"\r\n"
        got = self.ask(get(), whole)
        self.assertEqual((zlib.decompress(got.body, 31), got.trailers), (TEXT, [(b"X-Sum", b"1")]))
        client, server = self.begin(get())
        server.send(head(CHUNKED) + chunk(TEXT[:5000]))
        client.through(b"\r\n\r\n")
        client.at = 0
        server.send(chunk(TEXT[5000:]) + b"0\r\n" + trailers + b"\r\n")
        got = client.response()
        self.assertEqual((zlib.decompress(got.body, 31), got.trailers), (TEXT, [(b"X-Sum", b"1")]))

    def test_chunks_that_are_complete_get_a_length(self) -> None:
        """A short answer in chunks that came as a whole."""
        got = self.ask(get(), head(CHUNKED) + chunk(TEXT) + b"0\r\n\r\n")
        self.assertEqual((zlib.decompress(got.body, 31), got.get(b"Content-Length")), (TEXT, b"%d" % len(got.body)))

    def test_until_the_server_closes(self) -> None:
        """A body that only the end of the server's connection ends."""
        client, server = self.begin(get())
        server.send(head() + TEXT)
        server.fin()
        self.assertEqual(zlib.decompress(client.response().body, 31), TEXT)

    def test_http_1_0(self) -> None:
        """A client without chunks: a length where there is one, else the end of the connection."""
        got = self.ask(get(version=b"1.0"), sized(TEXT[:4000]))
        self.assertEqual((zlib.decompress(got.body, 31), got.get(b"Content-Length")), (TEXT[:4000], b"%d" % len(got.body)))
        client, server = self.begin(get(version=b"1.0"))
        server.send(head(CHUNKED) + chunk(TEXT[:4000]))
        client.until(lambda: b"\r\n\r\n" in client.received, "the head")
        server.send(chunk(TEXT) + b"0\r\n\r\n")
        got = client.response()
        self.assertEqual((got.get(b"Transfer-Encoding"), zlib.decompress(got.body, 31)), (None, TEXT[:4000] + TEXT))

    def test_head_says_what_get_would(self) -> None:
        """The same fields, but for a length that nobody knows yet; and no body."""
        fields = (b'ETag: "e"', b"Accept-Ranges: bytes", b"Vary: Origin")
        whole = self.ask(get(), sized(TEXT, *fields))
        got = self.ask(get(method=b"HEAD"), head(b"Content-Length: %d" % len(TEXT), *fields), b"HEAD")
        without = [name for name, _ in got.fields]
        self.assertEqual([pair for pair in whole.fields if pair[0] in without], got.fields)
        self.assertEqual((got.get(b"Content-Encoding"), got.get(b"Content-Length")), (b"gzip", None))
        self.assertEqual(got.get(b"Vary"), b"Origin, Accept-Encoding")
        got = self.ask(get(method=b"HEAD"), head(b"Content-Length: 10"), b"HEAD")
        self.assertEqual((got.get(b"Content-Encoding"), got.get(b"Content-Length")), (None, b"10"))

    def test_left_alone(self) -> None:
        """204, 304, what is compressed already, and what must not be transformed: field by field as the server sent it; a part only says
        that the whole may come in another form."""
        packed = gzip.compress(TEXT)
        answers = (
            (b"GET", head(status=b"204 No Content")),
            (b"GET", head(b'ETag: "e"', status=b"304 Not Modified")),
            (b"GET", sized(TEXT, b"Cache-Control: public, no-transform")),
            (b"GET", sized(TEXT, kind=b"image/png")),
        )
        for method, answer in answers:
            got = self.ask(get(method=method), answer)
            self.assertEqual([b"%b: %b" % field for field in got.fields], answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:], got)
        got = self.ask(get(), sized(TEXT, b"Content-Range: bytes 0-%d/99999" % (len(TEXT) - 1), status=b"206 Partial Content"))
        self.assertEqual((got.body, got.all(b"Content-Encoding"), got.all(b"Vary")), (TEXT, [], [b"Accept-Encoding"]))
        got = self.ask(get(), sized(packed, b"Content-Encoding: gzip"))
        self.assertEqual((got.body, got.all(b"Content-Encoding")), (packed, [b"gzip"]))
        got = self.ask(get(b"Cache-Control: no-transform"), sized(TEXT))
        self.assertEqual(got.body, TEXT)

    def test_an_interim_answer_before_it(self) -> None:
        """103 goes on at once, the answer behind it is compressed."""
        client, server = self.begin(get())
        server.send(b"HTTP/1.1 103 Early Hints\r\nLink: </s>\r\n\r\n" + sized(TEXT))
        self.assertEqual(client.head().status, 103)
        self.assertEqual(zlib.decompress(client.response().body, 31), TEXT)

    # Time

    def test_events_come_one_by_one(self) -> None:
        """Each is readable before the server has sent the next."""
        for accept, reader in ((b"gzip", zlib.decompressobj(31).decompress), (b"br", codings.decoder("br").decompress)):
            client, server = self.begin(get(accept=accept))
            server.send(head(CHUNKED, kind=b"text/event-stream"))
            self.assertEqual(client.head().get(b"Content-Encoding"), accept)
            for n in range(3):
                event = b"data: %d\n\n" % n
                server.send(chunk(event))
                self.assertEqual(reader(client.take(int(client.through(b"\r\n"), 16))), event)
                client.take(2)
            server.send(b"0\r\n\r\n")
            client.through(b"0\r\n\r\n")

    def test_a_slow_client_stops_the_server(self) -> None:
        """Nothing piles up while the client does not read, and all of it arrives when it does."""
        client, server = self.begin(get(), receive_buffer=4096)
        body = NOISE * 6
        server.send(head(b"Content-Length: %d" % len(body)))
        sent = server.send_what_fits(body)
        self.assertLess(sent, len(body))
        self.assertLess(self.bed.connection.transport.buffered, 1_000_000)
        client.until(lambda: client.received, "something")
        self.send_rest(client, server, body[sent:])
        self.assertTrue(zlib.decompress(client.response().body, 31) == body)

    def test_a_little_that_stands_for_much(self) -> None:
        """Decompressed for a client that is slow: the worker holds a bounded part of it, whether the server stays or goes."""
        large = NOISE[:3000] * 5000
        for goes in (False, True):
            client, server = self.begin(get(accept=b""), receive_buffer=4096)
            server.send(sized(gzip.compress(large), b"Content-Encoding: gzip"))
            self.bed.until(lambda: self.bed.front._connections and self.bed.connection.transport.is_full, "the client to be behind")
            self.bed.loop.turns(5)
            self.assertLess(self.bed.connection.transport.buffered, 1_000_000)
            if goes:
                server.reset()
                self.bed.loop.turns(5)
            got = client.response()
            self.assertEqual((got.body == large, got.get(b"Content-Encoding"), got.get(b"Vary")), (True, None, b"Accept-Encoding"))
            self.assertEqual(self.bed.logged(1 + goes).cause.value, "ok")
            client.close()

    def test_a_client_that_leaves(self) -> None:
        """In the middle of it: the server is let go, and the coder given back."""
        client, server = self.begin(get())
        server.send(head(CHUNKED) + chunk(TEXT))
        client.until(lambda: client.received, "something")
        self.assertEqual(self.bed.front.effort.open, 1)
        client.reset()
        server.breaks()
        self.assertEqual(self.bed.front.effort.open, 0)

    # Decompression

    def test_for_those_who_cannot(self) -> None:
        """The server has only a compressed form: who cannot read it gets it plain, or in the coding that he can read."""
        for coding, packed in (("gzip", gzip.compress(TEXT)), ("br", self.packed("br")), ("zstd", self.packed("zstd"))):
            fields = (b"Content-Encoding: " + coding.encode(), b'ETag: "e"', b"Content-MD5: x")
            got = self.ask(get(accept=b""), sized(packed, *fields))
            self.assertEqual((got.body, got.get(b"Content-Encoding"), got.get(b"ETag"), got.get(b"Content-MD5")),
                             (TEXT, None, b'W/"e"', None))  # fmt: skip
            got = self.ask(get(accept=coding.encode()), sized(packed, *fields))
            self.assertEqual((got.body, got.get(b"ETag"), got.get(b"Vary")), (packed, b'"e"', b"Accept-Encoding"))
        got = self.ask(get(), sized(self.packed("br"), b"Content-Encoding: br"))
        self.assertEqual((got.get(b"Content-Encoding"), zlib.decompress(got.body, 31)), (b"gzip", TEXT))

    def packed(self, coding: str) -> bytes:
        coder = codings.encoder(coding, 3)
        return coder.compress(TEXT) + coder.finish()

    # Failures

    def test_a_broken_body(self) -> None:
        """502 before the head; behind it the client sees that the answer was cut, and it is counted."""
        got = self.ask(get(accept=b""), sized(b"this is no gzip at all", b"Content-Encoding: gzip"))
        self.assertEqual(got.status, 502)
        self.assertEqual(self.bed.rejected(), {"bad_response": 1})
        packed = gzip.compress(NOISE[:200_000])
        for version in (b"1.1", b"1.0"):
            client, server = self.begin(get(accept=b"", version=version))
            server.send(head(b"Content-Encoding: gzip", CHUNKED) + chunk(packed[:150_000]))
            client.until(lambda c=client: len(c.received) > 100_000, "the first part")
            server.send(chunk(b"junk" * 50_000) + b"0\r\n\r\n")
            client.breaks()
            self.assertFalse(client.received.endswith(b"0\r\n\r\n"))
            self.assertEqual(client.is_reset, version == b"1.0")  # which has no other way to tell that something is missing
            self.assertEqual(self.bed.rejected(), {"bad_response": 1})
            self.assertEqual(self.bed.front.effort.open, 0)

    def test_a_coder_that_fails(self) -> None:
        """Before the head it is a 500 that is itself readable; later the connection breaks. Both are counted."""

        class Broken:
            def compress(self, data: bytes) -> bytes:
                raise codings.CodingFailed("out of order")

        self.patch(codings, "encoder", lambda *a, **k: Broken())
        got = self.ask(get(b"Accept: text/html"), sized(TEXT))
        self.assertEqual((got.status, got.get(b"Content-Encoding")), (500, None))
        self.assertEqual(self.bed.rejected(), {"compression": 1})
        client, server = self.begin(get())
        server.send(head(CHUNKED))
        client.head()
        server.send(chunk(TEXT))
        client.breaks()
        self.assertEqual((client.rest, self.bed.rejected()), (b"", {"compression": 1}))

    def test_an_answer_that_was_not_good_enough(self) -> None:
        """A 503 is tried again elsewhere: what was made of it is thrown away, the second answer is compressed once."""
        one, two = self.bed.origin(), self.bed.origin()
        self.bed.proxy(one, two, routes=[ROUTE], pool={"retry": {"tries": 1, "on": ("503",)}})
        client = self.bed.client(get())
        self.bed.until(lambda: one.pump() or two.pump() or one.connections or two.connections, "a server")
        first, second = (one, two) if one.connections else (two, one)
        for origin, status, body in ((first, b"503 No", b"no" * 400), (second, b"200 OK", TEXT)):
            server = origin.accept()
            server.request()
            server.send(sized(body, status=status))
        self.assertEqual(zlib.decompress(client.response().body, 31), TEXT)
        self.assertEqual(self.bed.front.effort.open, 0)

    def test_then_one_that_needs_nothing(self) -> None:
        """The second answer is none that is compressed: it goes its plain way to a slow client, and does not wait for what is gone."""
        one, two = self.bed.origin(), self.bed.origin()
        self.bed.proxy(one, two, routes=[ROUTE], pool={"retry": {"tries": 1, "on": ("503",)}})
        client = self.bed.client(get(), receive_buffer=4096)
        self.bed.until(lambda: one.pump() or two.pump() or one.connections or two.connections, "a server")
        first, second = (one, two) if one.connections else (two, one)
        server = first.accept()
        server.request()
        server.send(sized(b"no" * 400, status=b"503 No"))
        server = second.accept()
        server.request()
        body = NOISE * 4
        server.send(head(CHUNKED, kind=b"image/png"))
        message = chunk(body) + b"0\r\n\r\n"
        sent = server.send_what_fits(message)
        self.assertLess(sent, len(message))
        self.send_rest(client, server, message[sent:])
        self.assertTrue(client.response().body == body)

    # Answers made here

    def test_local_answers(self) -> None:
        """A page that the file itself holds is compressed when it is large enough, for HEAD with the length that GET has."""
        self.bed.proxy()
        body = TEXT[:6000].decode()
        route = Route("/", respond=Respond(200, body, "text/html"), use=(USE,))
        self.bed.front.router = Router([Site("s", ("*",), (route,))], lambda s, r: Destination(s, r, self.bed.pool, self.bed.metrics))
        got = self.bed.client(get()).response()
        self.assertEqual((zlib.decompress(got.body, 31).decode(), got.get(b"Vary")), (body, b"Accept-Encoding"))
        again = self.bed.client(get(method=b"HEAD")).response(b"HEAD")
        self.assertEqual(again.get(b"Content-Length"), got.get(b"Content-Length"))
        self.assertEqual(self.bed.client(get(accept=b"")).response().body.decode(), body)


class BehindTests(SynchronousTestCase):
    def test_two_transforms_are_one(self) -> None:
        """Undone, then done anew; what the first is behind with, both are."""
        effort = codings.Effort()
        undo = compression.Decompressing("gzip", effort)
        redo = compression.Compressing("gzip", codings.encoder("gzip", 1), effort, flushes=True)
        both = OneBehindTheOther(undo, redo)
        large = TEXT * 50
        out = both.data(gzip.compress(large))
        self.assertTrue(both.is_behind)
        while both.is_behind:
            out += both.data(b"")
        self.assertEqual(gzip.decompress(out + both.end()), large)
        both.close()
        self.assertEqual(effort.open, 0)
        self.assertEqual((effort.counts[("decompress", "gzip", "out")], effort.counts[("compress", "gzip", "in")]), (len(large),) * 2)
        cut = compression.Decompressing("gzip", effort)
        cut.data(gzip.compress(TEXT)[:-3])
        self.assertRaises(BadResponse, cut.end)
