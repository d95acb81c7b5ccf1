"""Heads: every vector by both codecs, whole, byte by byte and with bytes behind; limits; writing back; one codec against the other.

It has over 500 lines: tables of cases and of explained disagreements.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from twistedproxy.errors import BadHead, BadResponse, HeadTooLarge
from twistedproxy.http import _pure, head
from twistedproxy.http.kinds import KNOWN
from twistedproxy.http.messages import CHUNKED, NO_BODY, UNTIL_CLOSE, Kind

try:
    from twistedproxy.http import _head
except ImportError:  # not built
    _head = None  # type: ignore[assignment]

CODECS: dict[str, Any] = {"python": _pure, "native": _head}
VECTORS = Path(__file__).parent.parent / "vectors"
PLAIN = b"GET / HTTP/1.1\r\nHost: a\r\n"


def load(name: str) -> list[dict[str, Any]]:
    return tomllib.loads((VECTORS / name).read_text("utf-8"))["vector"]


def codec(name: str) -> Any:
    if CODECS[name] is None:
        raise SkipTest("the native codec is not built: python setup.py build_ext --inplace")
    return CODECS[name]


def request_bytes(vector: dict[str, Any]) -> bytes:
    if "raw" in vector:
        text = vector["raw"]
    elif "fields" in vector:
        text = PLAIN.decode() + vector["fields"] + "\r\n"
    elif "target" in vector:
        text = f"GET {vector['target']} HTTP/1.1\r\nHost: a\r\n\r\n"
    else:
        text = f"GET / HTTP/1.1\r\nHost: {vector['host']}\r\n\r\n"
    return text.encode("latin-1")


def response_bytes(vector: dict[str, Any]) -> bytes:
    text = vector["raw"] if "raw" in vector else "HTTP/1.1 200 OK\r\n" + vector["fields"] + "\r\n"
    return text.encode("latin-1")


def outcome(parse: Callable[[], Any]) -> Any:
    """None, the error as (type, status, reason, text), or every attribute of the head."""
    try:
        found = parse()
    except (BadHead, BadResponse) as error:
        return (type(error), error.status, error.reason, error.detail)
    return None if found is None else portrait(found)


def kinds_of(found: Any, name: bytes) -> int:
    """The kind of the field of that name, as write_h1 shows it: which bits drop it."""
    return sum(bit for bit in (1 << i for i in range(14)) if b"\r\n" + name + b": " not in b"\r\n" + found.write_h1(b"", bit, (), b""))


def portrait(found: Any) -> dict[str, Any]:
    names = ["size", "minor", "content_length", "is_chunked", "wants_close", "upgrade", "kinds"]
    if hasattr(found, "method"):
        names += ["method", "target", "host", "authority", "path", "query", "expects_continue", "is_canonical"]
    else:
        names.append("status")
    seen: dict[str, Any] = {name: getattr(found, name) for name in names}
    seen["fields"] = list(found.fields())
    seen["kept"] = [found.write_h1(None, 1 << bit, (), b"|") for bit in range(14)]
    seen["whole"] = found.write_h1(None, 0, (), b"\r\n")
    seen["get"] = [(name, found.get(name.lower()), found.get_all(name.lower())) for name, _ in found.fields()]
    return seen


def pieces_outcome(partial: head.PartialHead[Any], data: bytes, step: int) -> Any:
    """What becomes of `data` fed `step` bytes at a time; stops where the head ends."""

    def feed() -> Any:
        for i in range(0, len(data), step):
            found = partial.feed(data[i : i + step])
            if found is not None:
                return found
        return None

    return outcome(feed)


class VectorTests(SynchronousTestCase):
    """One test per vector and codec; the methods are made below, their names carry the id."""

    def expect(self, vector: dict[str, Any], parse: Callable[[bytes], Any], data: bytes) -> None:
        for attribute in ("method", "target", "host", "authority", "path", "query", "upgrade"):
            if attribute in vector and not (attribute == "host" and "authority" not in vector and "raw" not in vector):
                self.assertEqual(getattr(parse(data), attribute), vector[attribute].encode("latin-1"), attribute)
        for attribute in ("content_length", "minor", "size", "is_chunked", "wants_close", "expects_continue", "is_canonical"):
            if attribute in vector:
                self.assertEqual(getattr(parse(data), attribute), vector[attribute], attribute)
        found = parse(data)
        if "code" in vector:
            self.assertEqual(found.status, vector["code"])
        if vector.get("no_upgrade"):
            self.assertIsNone(found.upgrade)
        for name, value in vector.get("kept", {}).items():
            self.assertEqual(found.get(name.encode()), value.encode("latin-1"), name)
        for name in vector.get("nominated", ()):
            self.assertEqual(kinds_of(found, name.encode()), Kind.NOMINATED)
            self.assertTrue(found.kinds & Kind.NOMINATED)
        for name, kind in vector.get("kinds_of", ()):
            self.assertEqual(kinds_of(found, name.encode()), kind, name)
            self.assertEqual(found.kinds & kind, kind)

    def request(self, vector: dict[str, Any], name: str) -> None:
        module = codec(name)
        limits = module.Limits()
        data = request_bytes(vector)
        whole = outcome(lambda: module.parse_request(data, limits))
        if "status" in vector:
            self.assertIsInstance(whole, tuple, whole)
            self.assertEqual(whole[1], vector["status"], whole)
            self.assertIn(vector.get("says", ""), whole[3])
        else:
            self.assertIsInstance(whole, dict, whole)
            self.assertEqual(whole["size"], len(data))
            self.expect(vector, lambda d: module.parse_request(d, limits), data)
        self.same_however_fed(
            data, whole, lambda d: module.parse_request(d, limits), lambda: head.PartialRequest(limits, parse=module.parse_request)
        )

    def response(self, vector: dict[str, Any], name: str) -> None:
        module = codec(name)
        data = response_bytes(vector)
        whole = outcome(lambda: module.parse_response(data))
        if vector.get("refused"):
            self.assertIsInstance(whole, tuple, whole)
            self.assertIs(whole[0], BadResponse)
            self.assertEqual(whole[1], 502)
        else:
            self.assertIsInstance(whole, dict, whole)
            self.expect(vector, module.parse_response, data)
        limits = module.Limits(65536, 8192, 65536, 200)
        self.same_however_fed(data, whole, module.parse_response, lambda: head.PartialResponse(limits=limits, parse=module.parse_response))

    def same_however_fed(self, data: bytes, whole: Any, parse: Callable[[bytes], Any], partial: Callable[[], Any]) -> None:
        refused_at = None
        for i in range(len(data)):
            seen = outcome(lambda i=i: parse(data[:i]))
            if seen is not None:
                self.assertIsInstance(whole, tuple, f"refused after {data[:i]!r}: {seen}")
                self.assertEqual(seen[1], whole[1], f"after {data[:i]!r}: {seen}, in the end {whole}")
                refused_at = i if refused_at is None else refused_at
            else:
                self.assertIsNone(refused_at, f"refused after {refused_at} bytes, but not after {i}")
        for step in (1, 2, 3, 7):
            seen = pieces_outcome(partial(), data, step)
            self.assertEqual(seen[1] if isinstance(whole, tuple) else seen, whole[1] if isinstance(whole, tuple) else whole, f"step {step}")
        for trailing in (b"x", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff" * 1000):
            seen = outcome(lambda trailing=trailing: parse(data + trailing))
            self.assertEqual(seen, whole)


def add_tests(cls: type, prefix: str, vectors: list[dict[str, Any]], run: str) -> None:
    for vector in vectors:
        for name in CODECS:
            label = "".join(c if c.isalnum() else "_" for c in vector["id"])

            def test(self: Any, vector: dict[str, Any] = vector, name: str = name) -> None:
                getattr(self, run)(vector, name)

            test.__doc__ = f"{vector['id']} ({name})"
            attribute = f"test_{prefix}_{label}_{name}"
            assert not hasattr(cls, attribute), attribute
            setattr(cls, attribute, test)


add_tests(VectorTests, "request", load("requests.toml"), "request")
add_tests(VectorTests, "response", load("responses.toml"), "response")


def load_fuzzer() -> Any:
    """The fuzz driver beside this file: a script, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location("fuzz_head", Path(__file__).with_name("fuzz_head.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LimitTests(SynchronousTestCase):
    """What a client can make us hold or compute is bounded (DO-04, F7)."""

    def refused(self, name: str, data: bytes, status: int, **limits: int) -> None:
        module = codec(name)
        error = self.assertRaises(HeadTooLarge, module.parse_request, data, module.Limits(**limits))
        self.assertEqual((error.status, error.reason), (status, "head_too_large"))

    def test_DO_04_request_line(self) -> None:
        """A request line of exactly the limit is taken; one byte more is a 414, before its end has come."""
        for name in CODECS:
            module = codec(name)
            line = b"GET /" + b"a" * 45 + b" HTTP/1.1"
            data = line + b"\r\nHost: a\r\n\r\n"
            self.assertIsNotNone(module.parse_request(data, module.Limits(max_request_line=len(line))))
            self.refused(name, data, 414, max_request_line=len(line) - 1)
            self.refused(name, b"GET /" + b"a" * 46, 414, max_request_line=50)
            self.assertIsNone(module.parse_request(b"GET /" + b"a" * 45, module.Limits(max_request_line=50)))

    def test_DO_04_one_field(self) -> None:
        """A field line of exactly the limit is taken; one byte more is a 431, before its end has come."""
        for name in CODECS:
            module = codec(name)
            data = PLAIN + b"X: " + b"v" * 47 + b"\r\n\r\n"
            self.assertIsNotNone(module.parse_request(data, module.Limits(max_field=50)))
            self.refused(name, data, 431, max_field=49)
            self.refused(name, PLAIN + b"X: " + b"v" * 48, 431, max_field=50)

    def test_DO_04_whole_head(self) -> None:
        """A head of exactly the limit is taken; one byte more is a 431; and at byte 32,769 of an endless one."""
        for name in CODECS:
            module = codec(name)
            data = PLAIN + b"X: y\r\n" * 9 + b"\r\n"
            self.assertIsNotNone(module.parse_request(data + b"body", module.Limits(max_head=len(data))))
            self.refused(name, data, 431, max_head=len(data) - 1)
            endless = PLAIN + (b"X: " + b"v" * 8000 + b"\r\n") * 5
            self.refused(name, endless[: 32 * 1024 + 1], 431)
            self.assertIsNone(module.parse_request(endless[: 32 * 1024], module.Limits()))

    def test_DO_04_number_of_fields(self) -> None:
        """A hundred fields are taken; the first byte of one more is a 431."""
        for name in CODECS:
            module = codec(name)
            data = PLAIN + b"X: y\r\n" * 99
            self.assertIsNotNone(module.parse_request(data + b"\r\n", module.Limits()))
            self.refused(name, data + b"X", 431)
            self.assertEqual(len(list(module.parse_request(data + b"\r\n", module.Limits()).fields())), 100)

    def test_BF_10_response_limits(self) -> None:
        """A server's head of more than 200 fields or 64 KiB is a 502."""
        for name in CODECS:
            module = codec(name)
            start = b"HTTP/1.1 200 OK\r\n"
            self.assertIsNotNone(module.parse_response(start + b"X: y\r\n" * 200 + b"\r\n"))
            self.assertRaises(BadResponse, module.parse_response, start + b"X: y\r\n" * 201)
            self.assertRaises(BadResponse, module.parse_response, start + (b"X: " + b"v" * 8000 + b"\r\n") * 9)
            self.assertRaises(BadResponse, module.parse_response, b"HTTP/1.1 200 " + b"k" * 9000)

    def test_F7_trickled_heads_cost_linear_time(self) -> None:
        """A head of 32 KB that comes byte by byte costs us milliseconds per kilobyte at most, whatever its lines look like."""
        many_fields = PLAIN + b"".join(b"X-%d: %b\r\n" % (i, b"v" * 240) for i in range(98))
        one_long = PLAIN + b"X: " + b"v" * 16000 + b"\r\nY: " + b"w" * 15000
        spaces = PLAIN + b"X:" + b" \t" * 8000
        for name in CODECS:
            module = codec(name)
            for data in (many_fields, one_long, spaces):
                partial = head.PartialRequest(module.Limits(), parse=module.parse_request)
                begin = time.process_time()
                for i in range(len(data)):
                    self.assertIsNone(partial.feed(data[i : i + 1]))
                self.assertLess(time.process_time() - begin, 0.001 * len(data) / 10, name)

    def test_F7_long_hostile_values_cost_linear_time(self) -> None:
        """No value makes the parser go back and forth over it."""
        for name in CODECS:
            module = codec(name)
            limits = module.Limits(max_head=1 << 20, max_field=1 << 20)
            begin = time.process_time()
            for value in (b" \t" * 200000 + b"\x00", b"a " * 200000 + b"\x7f", b"," * 400000):
                outcome(lambda value=value: module.parse_request(PLAIN + b"Connection:" + value + b"\r\n\r\n", limits))  # noqa: B023
            self.assertLess(time.process_time() - begin, 1.0)

    def test_DO_04_endless_line_in_pieces(self) -> None:
        """An endless line is refused at the byte that exceeds the limit, not a buffer later."""
        for name in CODECS:
            module = codec(name)
            for start, limit, status in ((b"GET /", 8 * 1024, 414), (PLAIN + b"X: ", len(PLAIN) + 16 * 1024, 431)):
                partial = head.PartialRequest(module.Limits(), start, module.parse_request)
                for _ in range(limit - len(start)):
                    self.assertIsNone(partial.feed(b"a"))
                self.assertEqual(self.assertRaises(HeadTooLarge, partial.feed, b"a").status, status)


class WriteTests(SynchronousTestCase):
    """What goes out again is what came in, minus what was to be dropped."""

    def test_edits(self) -> None:
        """Masked kinds and named fields go, the order of the rest stays, odd white space is written plainly."""
        data = b"\r\nGET /x HTTP/1.1\r\nHost:a\r\nA: 1\r\nB: 2\r\nConnection: x-hop\r\nX-Hop: y\r\nC:\t 3 \r\na: 4\r\nD: 5\r\n\r\nbody"
        for name in CODECS:
            module = codec(name)
            found = module.parse_request(data, module.Limits())
            self.assertEqual(
                found.write_h1(None, Kind.CONNECTION | Kind.NOMINATED, (b"a", b"absent"), b"T: 1\r\n\r\n"),
                b"GET /x HTTP/1.1\r\nHost: a\r\nB: 2\r\nC: 3\r\nD: 5\r\nT: 1\r\n\r\n",
            )
            self.assertEqual(found.write_h1(b"PUT / HTTP/1.1\r\n", 0x3FFF, (b"a", b"b", b"c", b"d"), b"\r\n"), b"PUT / HTTP/1.1\r\n\r\n")

    def test_written_heads_read_the_same(self) -> None:
        """Whatever we accept, our own output of it is accepted by both codecs with the same fields (RT-04)."""
        fuzz = load_fuzzer()
        rng = random.Random(4)
        written = 0
        for _ in range(1500):
            data = fuzz.build(rng)
            for name in CODECS:
                module = codec(name)
                try:
                    found = module.parse_request(data, module.Limits())
                except BadHead:
                    continue
                if found is not None:
                    written += 1
                    again = _pure.parse_request(found.write_h1(None, 0, (), b"\r\n"), _pure.Limits(max_head=64 * 1024))
                    assert again is not None
                    first, second = portrait(found), portrait(again)
                    first.pop("size"), second.pop("size")
                    self.assertEqual(first, second)
        self.assertGreater(written, 300)


class LengthTests(SynchronousTestCase):
    """RFC 9112 6.3: each head says how long its body is."""

    def request(self, fields: bytes) -> int:
        found = {
            codec(n).parse_request(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n", codec(n).Limits()).body_length for n in CODECS
        }
        self.assertEqual(len(found), 1)
        length: int = found.pop()
        return length

    def response(self, status: int, fields: bytes, method: bytes = b"GET") -> int:
        data = b"HTTP/1.1 %d X\r\n" % status + fields + b"\r\n"
        found = {codec(n).parse_response(data).body_length_for(method) for n in CODECS}
        self.assertEqual(len(found), 1)
        length: int = found.pop()
        return length

    def test_SM_17_requests(self) -> None:
        """A request has the body its fields say, none without them."""
        self.assertEqual(self.request(b""), NO_BODY)
        self.assertEqual(self.request(b"Content-Length: 0\r\n"), NO_BODY)
        self.assertEqual(self.request(b"Content-Length: 7\r\n"), 7)
        self.assertEqual(self.request(b"Transfer-Encoding: chunked\r\n"), CHUNKED)

    def test_F8c_responses_without_body(self) -> None:
        """The answer to HEAD, and 1xx, 204, 304, end with their head whatever they declare."""
        for fields in (b"", b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n"):
            for status in (100, 101, 103, 204, 304):
                self.assertEqual(self.response(status, fields), NO_BODY)
            self.assertEqual(self.response(200, fields, b"HEAD"), NO_BODY)

    def test_SM_18_responses(self) -> None:
        """Otherwise chunked, a length, or until the server closes."""
        self.assertEqual(self.response(200, b"Transfer-Encoding: chunked\r\n"), CHUNKED)
        self.assertEqual(self.response(200, b"Content-Length: 7\r\n"), 7)
        self.assertEqual(self.response(200, b"Content-Length: 0\r\n"), NO_BODY)
        self.assertEqual(self.response(500, b""), UNTIL_CLOSE)


class CodecTests(SynchronousTestCase):
    """Two codecs, one behaviour."""

    def test_codecs_and_oracles_agree(self) -> None:
        """Native and pure agree on everything; llhttp and h11 differ from us only where a table says why."""
        fuzz = load_fuzzer()
        codec("native")
        for case in range(30_000):
            rng = random.Random(f"tests:{case}")
            if case % 4 == 3:
                data = fuzz.build_response(rng)
                found = fuzz.check_response(data)
            else:
                data = fuzz.build(rng)
                found = fuzz.check(data, rng)
            self.assertIsNone(found, f"case {case}: {data!r}")

    def test_codecs_agree_on_very_many_heads(self) -> None:
        """Native and pure read and write alike whatever a head is turned into, step by step."""
        fuzz = load_fuzzer()
        codec("native")
        tally = [0, 0, 0]
        for number in range(2_000):
            self.assertIsNone(fuzz.swarm_round(1, number, tally), f"round {number}")
        self.assertGreater(min(tally), 10, "one kind of verdict hardly ever occurs")

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_codecs_agree_on_mutated_heads(self, data: st.DataObject) -> None:
        """The same, with hypothesis choosing the parts and the cuts."""
        fuzz = load_fuzzer_once()
        codec("native")
        fields = data.draw(st.lists(st.sampled_from(fuzz.FIELDS), max_size=8))
        head_bytes = b"\r\n".join(
            [data.draw(st.sampled_from(fuzz.LINES)), b"Host: " + data.draw(st.sampled_from(fuzz.HOSTS)), *fields, b"", b""]
        )
        for at, cut, put in data.draw(
            st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.sampled_from(fuzz.BITS) | st.binary(max_size=3)), max_size=3)
        ):
            head_bytes = head_bytes[:at] + put + head_bytes[at + cut :]
        self.assertIsNone(fuzz.codecs_differ(head_bytes), head_bytes)

    def test_codecs_agree_on_names(self) -> None:
        """Each known name, and names near it, has the same kind in both."""
        native = codec("native")
        names = set(KNOWN) | {
            b"x-revproxy",
            b"x-client-cert-x",
            b"x-internal-",
            b"x-internal",
            b"x-forwarded-",
            b"x-forwarded",
            b"x-",
        }
        near = (
            {n[:-1] for n in names if len(n) > 1}
            | {n + b"x" for n in names}
            | {n.replace(b"-", b"_") for n in names}
            | {n.upper() for n in names}
        )
        near |= {n.replace(b"-", b"x") for n in names} | {b"y" + n[1:] for n in names}
        for name in sorted(names | near):
            data = b"HTTP/1.1 200 OK\r\n" + name + b": 1\r\n\r\n"
            self.assertEqual(outcome(lambda: native.parse_response(data)), outcome(lambda: _pure.parse_response(data)), name)  # noqa: B023

    def test_codecs_agree_on_chunks(self) -> None:
        """Runs of chunks are taken alike, and never beyond what is there."""
        native = codec("native")
        rng = random.Random(7)
        for _ in range(3000):
            parts = [
                rng.choice((b"1\r\nx\r\n", b"a\r\n0123456789\r\n", b"0\r\n\r\n", b"5\r\n", b"FFFFFFFFFFFFFFF\r\n", b"g", b"1;a\r\n"))
                for _ in range(5)
            ]
            data = b"".join(parts)
            data = data[: rng.randrange(len(data) + 1)]
            at = rng.randrange(len(data) + 2)
            self.assertEqual(native.take_chunks(data, at), _pure.take_chunks(data, at), (data, at))

    def test_the_environment_chooses(self) -> None:
        """TWISTEDPROXY_PURE=1 runs the plain codec; without it the native one runs where it is built."""
        for value, expected in (("1", "python"), ("", "native" if _head is not None else "python")):
            out = subprocess.run(
                [sys.executable, "-c", "from twistedproxy.http import head; print(head.CODEC)"],
                env={**os.environ, "TWISTEDPROXY_PURE": value, "PYTHONPATH": str(Path(__file__).parents[2])},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            self.assertEqual(out.stdout.strip(), expected)

    def test_heads_are_small_and_freed(self) -> None:
        """An idle head is under 1 KiB beside its bytes, is not the collector's business, and does not keep a large body alive."""
        native = codec("native")
        found = native.parse_request(PLAIN + b"\r\n", native.Limits())
        self.assertLess(sys.getsizeof(found), 1024)
        self.assertFalse(gc.is_tracked(found))
        body = b"x" * 100_000
        data = PLAIN + b"\r\n" + body
        before = sys.getrefcount(data)
        found = native.parse_request(data, native.Limits())
        self.assertEqual(sys.getrefcount(data), before)
        self.assertEqual(found.get(b"host"), b"a")

    def test_limits_are_values(self) -> None:
        """Equal limits are equal, cannot be changed, and say what they are."""
        for name in CODECS:
            module = codec(name)
            self.assertEqual(module.Limits(max_head=5), module.Limits(5))
            self.assertNotEqual(module.Limits(), module.Limits(5))
            self.assertIn("max_head=5", repr(module.Limits(5)))
            self.assertRaises(AttributeError, setattr, module.Limits(), "max_head", 1)


_fuzzer: list[Any] = []


def load_fuzzer_once() -> Any:
    if not _fuzzer:
        _fuzzer.append(load_fuzzer())
    return _fuzzer[0]
