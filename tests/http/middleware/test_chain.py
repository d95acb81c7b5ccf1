"""Hooks and edits of heads."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.head import parse_response
from twistedproxy.http.messages import LocalResponse
from twistedproxy.http.middleware.chain import Chain, EditedHead, Edits, Outgoing, ReplacedFields

HEAD = b"HTTP/1.1 200 OK\r\nServer: s\r\nX-A: 1\r\nContent-Length: 0\r\n\r\n"


def line(name: bytes, value: bytes) -> Any:
    return name, lambda exchange: value


def written(head: Any) -> list[bytes]:
    return head.write_h1(None, 0, (), b"\r\n").split(b"\r\n")[1:-2]  # type: ignore[no-any-return]


class ChainTests(SynchronousTestCase):
    def head(self) -> Any:
        return parse_response(HEAD)

    def test_only_hooks_that_exist_are_called_in_onion_order(self) -> None:
        """Requests outermost first, responses the other way round; a missing hook costs nothing."""

        class In:
            def on_request(self, exchange: Any) -> None: ...

        class Both(In):
            def on_response(self, exchange: Any, head: Any) -> Any: ...

        outer, inner, empty = Both(), Both(), In()
        chain = Chain([outer, empty, inner])
        self.assertEqual([hook.__self__ for hook in chain.on_request], [outer, empty, inner])  # type: ignore[attr-defined]
        self.assertEqual([hook.__self__ for hook in chain.on_response], [inner, outer])  # type: ignore[attr-defined]
        self.assertEqual((chain.on_local, bool(Chain([]))), ([], False))

    def test_edits(self) -> None:
        """Put replaces, add goes besides, remove takes out, default fills a gap, and line breaks never get through."""
        edits = Edits(
            [line(b"X-A", b"2\r\nX-Evil: 1")], [line(b"X-B", b"3")], [b"server"], [line(b"X-C", b"4"), line(b"content-length", b"9")]
        )
        head: Any = EditedHead(self.head(), edits, None)
        self.assertEqual(written(head), [b"Content-Length: 0", b"X-A: 2X-Evil: 1", b"X-B: 3", b"X-C: 4"])
        self.assertEqual((head.get(b"x-b"), head.get(b"server"), head.status), (b"3", None, 200))
        self.assertEqual(head.get_all(b"x-a"), [b"2\r\nX-Evil: 1"])
        self.assertEqual([name for name, _ in head.fields()], [b"Content-Length", b"X-A", b"X-B", b"X-C"])

    def test_the_outer_edit_has_the_last_word(self) -> None:
        """Edits of edits: the outer one replaces and removes what the inner one put, its defaults see what the inner one says."""
        inner: Any = EditedHead(self.head(), Edits([line(b"X-A", b"inner"), line(b"X-B", b"inner")]), None)
        outer: Any = EditedHead(inner, Edits([line(b"X-A", b"outer")], default=[line(b"X-B", b"default")]), None)
        self.assertEqual(written(outer), [b"Server: s", b"Content-Length: 0", b"X-B: inner", b"X-A: outer"])

    def test_edits_of_what_we_set_ourselves(self) -> None:
        """X-Forwarded fields come behind the message's own, and are edited all the same."""
        edits = Edits(remove=[b"x-forwarded-for"])
        tail = b"X-Forwarded-For: 1\r\nX-Forwarded-Proto: http\r\nX-Request-Id: i\r\n\r\n"
        self.assertEqual(edits.tail(tail), b"X-Forwarded-Proto: http\r\nX-Request-Id: i\r\n\r\n")
        self.assertIs(Edits(remove=[b"x-a"]).tail(tail), tail)

    def test_answers_made_here_are_edited_too(self) -> None:
        """The same edits, on a local answer."""
        edits = Edits([line(b"X-A", b"2")], default=[line(b"X-B", b"d")])
        local = edits.local(None, LocalResponse(200, b"", ((b"X-A", b"1"), (b"X-B", b"b"))))
        self.assertEqual(local.fields, ((b"X-B", b"b"), (b"X-A", b"2")))

    def test_replaced_fields(self) -> None:
        """Other values under the same names; everything else is the head's own."""
        head: Any = ReplacedFields(self.head(), {b"x-a": ((b"X-A", b"9"), (b"X-A", b"8"))})
        self.assertEqual((head.get(b"x-a"), head.get_all(b"x-a"), head.get(b"server")), (b"9", [b"9", b"8"], b"s"))
        self.assertEqual(written(head), [b"Server: s", b"Content-Length: 0", b"X-A: 9", b"X-A: 8"])

    def test_outgoing(self) -> None:
        """Path and query are new, the rest is the request's."""
        head: Any = Outgoing(self.head(), b"/x", b"a")
        self.assertEqual((head.path, head.query, head.minor), (b"/x", b"a", 1))
