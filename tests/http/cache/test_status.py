"""The Cache-Status field says in the words of RFC 9211 what happened."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.policy import Refused
from twistedproxy.http.cache.status import Forwarded, forwarded, hit, identity, marked
from twistedproxy.http.head import RESPONSE_LIMITS, parse_response


class StatusTests(SynchronousTestCase):
    def test_hit(self) -> None:
        """How long it is still fresh; less than nothing when it is stale."""
        self.assertEqual(hit(52.9), b"Cache-Status: revproxy; hit; ttl=52\r\n")
        self.assertEqual(hit(-0.1, b"edge", "stale-if-error"), b"Cache-Status: edge; hit; ttl=-1; detail=stale-if-error\r\n")
        self.assertEqual(hit(1e30), b"Cache-Status: revproxy; hit; ttl=999999999999\r\n")

    def test_forwarded(self) -> None:
        """Why the server was asked, what it said, and what became of it."""
        self.assertEqual(forwarded(Forwarded.BYPASS), b"Cache-Status: revproxy; fwd=bypass\r\n")
        self.assertEqual(
            forwarded(Forwarded.URI_MISS, status=200, ttl_s=60.0, stored=True, collapsed=True),
            b"Cache-Status: revproxy; fwd=uri-miss; fwd-status=200; stored; collapsed; ttl=60\r\n",
        )
        self.assertEqual(
            forwarded(Forwarded.VARY_MISS, detail=Refused.SET_COOKIE), b"Cache-Status: revproxy; fwd=vary-miss; detail=set-cookie\r\n"
        )

    def test_names_of_any_kind(self) -> None:
        """A name or detail that is no token is quoted, and cannot break out of the field."""
        self.assertEqual(identity(b"edge-1.example"), b"edge-1.example")
        self.assertEqual(identity(b"1edge"), b'"1edge"')
        self.assertEqual(identity(b'a "b" \\ \r\nX: y'), b'"a \\"b\\" \\\\ X: y"')
        self.assertEqual(hit(1, detail="a b\u1234"), b'Cache-Status: revproxy; hit; ttl=1; detail="a b?"\r\n')

    def test_an_answer_with_its_line(self) -> None:
        """Whatever looks at the answer afterwards sees our line behind another cache's, as one that the server sent; it can be removed."""
        head = parse_response(b"HTTP/1.1 203 OK\r\nCache-Status: edge; hit\r\nContent-Length: 3\r\n\r\n", RESPONSE_LIMITS)
        bare = parse_response(b"HTTP/1.1 203 OK\r\nContent-Length: 3\r\n\r\n", RESPONSE_LIMITS)
        assert head is not None and bare is not None
        line = forwarded(Forwarded.METHOD)
        both, ours = marked(head, line), marked(bare, line)
        self.assertEqual(both.get_all(b"cache-status"), [b"edge; hit", b"revproxy; fwd=method"])
        self.assertEqual((both.get(b"cache-status"), ours.get(b"cache-status")), (b"edge; hit", b"revproxy; fwd=method"))
        self.assertEqual(list(ours.fields()), [(b"Content-Length", b"3"), (b"Cache-Status", b"revproxy; fwd=method")])
        self.assertEqual((ours.status, ours.minor, ours.content_length, ours.get(b"x")), (203, 1, 3, None))
        written = ours.write_h1(None, 0, (), b"\r\n")
        self.assertEqual(written, b"HTTP/1.1 203 OK\r\nContent-Length: 3\r\nCache-Status: revproxy; fwd=method\r\n\r\n")
        self.assertNotIn(b"revproxy", both.write_h1(None, 0, (b"cache-status",), b"\r\n"))
