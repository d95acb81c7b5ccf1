"""What field names mean, alone and in a list."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http import kinds
from twistedproxy.http.kinds import KNOWN, Shapes, kind_of, meaning_of
from twistedproxy.http.messages import Kind


class KindTests(SynchronousTestCase):
    def test_underscores_deceive_nobody(self) -> None:
        """ID-01: a name that a CGI server takes for X-Forwarded-For is dropped like it; one it takes for Host is ours alone to drop."""
        self.assertEqual(kind_of(b"x_forwarded_for"), Kind.INTERNAL | Kind.FORWARDED)
        self.assertEqual(kind_of(b"x-forwarded_for"), Kind.INTERNAL | Kind.FORWARDED)
        for name in (b"host", b"content_length", b"transfer_encoding"):
            self.assertEqual(kind_of(name), Kind.INTERNAL if b"_" in name else KNOWN[name])
        self.assertEqual(kind_of(b"x_custom"), Kind.OTHER)

    def test_families(self) -> None:
        """Names of a family are known by their beginning."""
        for name, kind in (
            (b"x-revproxy-explain", Kind.INTERNAL),
            (b"x_client_cert_subject", Kind.INTERNAL),
            (b"x-internal-a", Kind.INTERNAL),
            (b"x-internal", Kind.OTHER),
            (b"x-forwarded-prefix", Kind.CLAIM),
            (b"x-forwarded", Kind.OTHER),
        ):
            self.assertEqual(kind_of(name), kind, name)

    def test_what_is_remembered_is_bounded(self) -> None:
        """A client that sends ever new names neither fills memory nor spoils what is known of good ones."""
        for i in range(3000):
            self.assertEqual(meaning_of(b"X-%d" % i), (b"x-%d" % i, Kind.OTHER))
        self.assertLessEqual(len(kinds._names), kinds._MAX_NAMES)
        meaning_of(b"x" * 1000)
        self.assertNotIn(b"x" * 1000, kinds._names)
        self.assertEqual(meaning_of(b"Host"), (b"host", Kind.HOST))


class ShapeTests(SynchronousTestCase):
    def test_which_lists_are_ordinary(self) -> None:
        """A list that leaves no question about framing and routing is learnt; any other is left to a closer look, each time."""
        for names in (
            (b"Host",),
            (b"HOST", b"Accept", b"content-length", b"Connection"),
            (b"Host", b"Transfer-Encoding"),
            (b"Host", b"X-A", b"X-A", b"Content_Length"),
        ):
            shapes = Shapes(True)
            self.assertIs(shapes.learn(names), shapes[names])
        for names in (
            (),
            (b"Accept",),
            (b"Host", b"Host"),
            (b"Host", b"Content-Length", b"Transfer-Encoding"),
            (b"Host", b"Content-Length", b"content-length"),
            (b"Host", b"Connection", b"Connection"),
            (b"Host", b"Expect"),
            (b"Host", b"close"),
            (b"Host", b"a b"),
            (b"Host", b""),
            (b"Host", b"x" * 65536),
        ):
            shapes = Shapes(True)
            self.assertIsNone(shapes.learn(names), names)
            self.assertEqual(len(shapes), 0)
        self.assertIsNotNone(Shapes(False).learn((b"Host", b"Host", b"Expect")))

    def test_where_the_deciding_fields_are(self) -> None:
        """A shape knows where Host, Content-Length, Transfer-Encoding and Connection stand."""
        shape = Shapes(True).learn((b"A", b"Connection", b"Host", b"CONTENT-LENGTH", b"a"))
        assert shape is not None
        self.assertEqual(shape.at, (2, 3, -1, 1))
        self.assertEqual(shape.first[b"a"], 0)
        self.assertEqual(shape.mask, Kind.CONNECTION | Kind.HOST | Kind.CONTENT_LENGTH)

    def test_what_stays(self) -> None:
        """A mask and a list of names say which fields stay, however often and in whatever order they are asked for."""
        shape = Shapes(True).learn((b"Host", b"A", b"Via", b"B"))
        assert shape is not None
        for _ in range(2):
            self.assertEqual(shape.kept(0, ()), (True, True, True, True))
            self.assertEqual(shape.kept(Kind.VIA, ()), (True, True, False, True))
            self.assertEqual(shape.kept(Kind.VIA | Kind.HOST, (b"b",)), (False, True, False, False))
        for drop in range(100):
            shape.kept(drop, ())
        self.assertLessEqual(len(shape._kept), kinds._MAX_KEPT)

    def test_learning_is_bounded(self) -> None:
        """A client that never sends the same names twice is not remembered for ever; nor are long lists."""
        shapes = Shapes(True)
        for i in range(2000):
            self.assertIsNotNone(shapes.learn((b"Host", b"X-%d" % i)))
        self.assertLessEqual(len(shapes), kinds._MAX_SHAPES)
        long = (b"Host", *(b"X" for _ in range(60)))
        self.assertIsNotNone(shapes.learn(long))
        self.assertNotIn(long, shapes)
