"""Two other readings of RFC 9111 beside ours: hishel (Python) and http-cache-semantics (npm), over the same made-up answers.

Every difference must be explained in a table, and every line of a table must explain something: neither may grow unnoticed. What
http-cache-semantics says is recorded in tests/vectors/cache_semantics.json; where there are node and npm it is asked again.
To record anew: ``python tests/http/cache/test_oracles.py DIRECTORY`` after ``npm install --prefix DIRECTORY http-cache-semantics``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import SkipTest, mock

import hishel._core._spec as hishel_spec
from hishel._core._headers import Headers
from hishel._core.models import Entry, Request, Response
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.cache.policy import Freshness, Settings, Use, may_use, storable, store, usable

_spec = importlib.util.spec_from_file_location("heads_of_cache", Path(__file__).with_name("heads.py"))
heads: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(heads)  # type: ignore[union-attr]
T0 = heads.T0

RECORDED = Path(__file__).parents[2] / "vectors" / "cache_semantics.json"
VERSION = "4.3.0"
AGES = (0, 30, 100, 5000)
NUMBER = 1500
NPM_TIMEOUT_S = 60

Case = dict[str, Any]

CACHE_CONTROL = (
    "", "max-age=60", "max-age=60", "max-age=60", "max-age=3600", "max-age=0", "s-maxage=60", "s-maxage=10, max-age=3600",
    "s-maxage=3600, max-age=10", "public", "public, max-age=60", "private, max-age=60", "private", "no-store", "no-store, max-age=60",
    "no-cache, max-age=60", "no-cache", "max-age=60, must-revalidate", "max-age=60, proxy-revalidate", "MAX-AGE=60", 'max-age="60"',
    "max-age=x", "max-age=-5", "max-age=60.5", "max-age=", "max-age=60, max-age=60", "max-age=60, max-age=3600", "x=y, max-age=60",
    'x="max-age=3600", max-age=60', "max-age=60, immutable", "max-age=60, stale-while-revalidate=60", "max-age=99999999999",
    "no-store, must-understand, max-age=60", 'no-cache="x-a", max-age=60', 'private="x-a", max-age=60', "public, s-maxage=60",
)  # fmt: skip
DAY = "Thu, 01 Jan 2026"
CHOICES: dict[str, tuple[str, ...]] = {
    "expires": ("", "", "", "", f"{DAY} 00:01:00 GMT", f"{DAY} 01:00:00 GMT", "Wed, 31 Dec 2025 00:00:00 GMT", "0"),
    "age": ("", "", "", "", "0", "50", "7200", "x"),
    "date": (f"{DAY} 00:00:00 GMT",) * 4 + ("", "Wed, 31 Dec 2025 23:59:20 GMT", "nonsense"),
    "last-modified": ("", "", "Wed, 31 Dec 2025 00:00:00 GMT", "Wed, 01 Jan 2020 00:00:00 GMT"),
    "etag": ("", '"x"'),
    "set-cookie": ("",) * 7 + ("a=b",),
    "vary": ("", "", "", "accept-language", "*"),
    "pragma": ("",) * 9 + ("no-cache",),
}
ASKED: dict[str, tuple[str, ...]] = {"authorization": ("",) * 7 + ("Basic eDp5",), "cache-control": ("",) * 11 + ("no-store",)}
METHODS = ("GET",) * 19 + ("HEAD", "POST")
STATUS = (200,) * 12 + (203, 204, 206, 201, 299, 301, 302, 308, 404, 410, 500, 503)


def cases() -> list[Case]:
    """The same ones every time, on every Python."""
    chance = random.Random(9111)

    def one_of(values: tuple[Any, ...]) -> Any:
        return values[int(chance.random() * len(values))]

    made = []
    for _ in range(NUMBER):
        response = {"cache-control": one_of(CACHE_CONTROL), **{name: one_of(values) for name, values in CHOICES.items()}}
        made.append({
            "method": one_of(METHODS), "request": {name: value for name, values in ASKED.items() if (value := one_of(values))},
            "status": one_of(STATUS), "response": {name: value for name, value in response.items() if value},
        })  # fmt: skip
    return made


def fingerprint(made: list[Case]) -> str:
    return hashlib.sha256(json.dumps([AGES, made], sort_keys=True).encode()).hexdigest()


def ours(case: Case) -> list[bool]:
    """Whether we would send a copy of this answer without asking the server, at each of the ages."""
    settings = Settings(heuristics=True)
    request = heads.ask([f"{name}: {value}" for name, value in case["request"].items()], case["method"])
    response = heads.answer([f"{name}: {value}" for name, value in case["response"].items()] + [heads.LENGTH], case["status"], bare=True)
    if may_use(request, settings) is not None:
        return [False] * len(AGES)
    verdict = storable(request, response, settings, T0, T0)
    if not isinstance(verdict, Freshness):
        return [False] * len(AGES)
    stored = store(request, response, verdict, T0)
    assert stored is not None
    return [usable(stored, request, T0 + age, settings) is Use.FRESH for age in AGES]


def semantics(directory: Path, made: list[Case]) -> list[list[bool]]:
    """What http-cache-semantics says, asked in one process."""
    asked = json.dumps({"now": T0, "ages": AGES, "cases": made})
    command = ["node", str(Path(__file__).with_name("semantics.mjs")), str(directory / "x.js")]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=True)
    found: list[list[bool]] = json.loads(done.stdout)
    return found


def by_hishel(case: Case) -> list[bool]:
    url = "http://www.example.com/x"
    request = Request(method=case["method"], url=url, headers=Headers(case["request"]))
    response = Response(status_code=case["status"], headers=Headers(case["response"]))
    options: Any = {"shared": True, "supported_methods": ["GET", "HEAD"], "allow_stale": False}
    with mock.patch("hishel._core._spec.time.time", return_value=T0):
        kept = hishel_spec.CacheMiss(request=request, options=options).next(response)
    if not isinstance(kept, hishel_spec.StoreAndUse):
        return [False] * len(AGES)
    entry = Entry(id=uuid.UUID(int=1), request=request, response=response)
    verdicts = []
    for age in AGES:
        with mock.patch("hishel._core._spec.time.time", return_value=T0 + age):
            found = hishel_spec.IdleClient(options=options).next(request, [entry])
            verdicts.append(isinstance(found, hishel_spec.FromCache))
    return verdicts


def control_of(case: Case) -> str:
    said: str = case["response"].get("cache-control", "")
    return said.lower()


Explanation = tuple[str, Callable[[Case], bool]]

NOT_OURS: list[Explanation] = [
    ("only answers to GET are kept, and never those to HEAD (CA-07)", lambda case: case["method"] != "GET"),
    ("errors are kept only where the operator says so (CA-06)", lambda case: case["status"] >= 400),
    ("Authorization needs public or s-maxage (CA-04)", lambda case: "authorization" in case["request"]),
    ("Set-Cookie needs public or s-maxage (CA-04)", lambda case: "set-cookie" in case["response"]),
    ("two different lifetimes are none (4.2.1)", lambda case: control_of(case) == "max-age=60, max-age=3600"),
    ("an old Date counts as age (4.2.3)", lambda case: "2025" in case["response"].get("date", "")),
]
"""Where we are stricter than either."""

SEMANTICS_LAXER: list[Explanation] = [
    *NOT_OURS,
    (
        "names of directives ignore case (5.2)",
        lambda case: "MAX-AGE" in case["response"].get("cache-control", ""),
    ),
    ("lifetimes that cannot be read are stale (4.2.1)", lambda case: control_of(case) in ("max-age=60.5", "max-age=")),
]
SEMANTICS_STRICTER: list[Explanation] = [
    (
        "s-maxage with Set-Cookie is not enough for it; we keep such answers without the cookie",
        lambda case: "set-cookie" in case["response"],
    ),
    ("it knows no statuses but those of the standard", lambda case: case["status"] in (201, 299)),
    ("it sends nothing with must- or proxy-revalidate unasked, however fresh", lambda case: "-revalidate" in control_of(case)),
    ("it takes no-cache and private with names for those without", lambda case: '="x-a"' in control_of(case)),
    ("it does not know must-understand", lambda case: "must-understand" in control_of(case)),
    (
        "it takes Pragma of an answer for no-cache (5.4: it means nothing)",
        lambda case: "pragma" in case["response"] and not control_of(case),
    ),
    ("it reads names of directives in lower case only", lambda case: "MAX-AGE" in case["response"].get("cache-control", "")),
]
HISHEL_LAXER: list[Explanation] = [
    *NOT_OURS,
    ("no-store of a request is obeyed (5.2.1.5)", lambda case: "cache-control" in case["request"]),
    ("Age of an answer counts (4.2.3)", lambda case: "age" in case["response"]),
    ("an answer without a good Date ages as well", lambda case: case["response"].get("date", "nonsense") == "nonsense"),
    (
        "lifetimes that cannot be read are stale (4.2.1)",
        lambda case: control_of(case) in ("max-age=x", "max-age=-5", "max-age=60.5", "max-age="),
    ),
]
HISHEL_STRICTER: list[Explanation] = [
    ("it does not know must-understand", lambda case: "must-understand" in control_of(case)),
]


class OracleTests(SynchronousTestCase):
    def compare(self, theirs: list[list[bool]], laxer: list[Explanation], stricter: list[Explanation]) -> None:
        unexplained, agreed = [], 0
        needed: set[str] = set()
        for case, other in zip(cases(), theirs, strict=True):
            mine = ours(case)
            if mine == other:
                agreed += any(mine)
                continue
            table = []
            if any(that and not this for this, that in zip(mine, other, strict=True)):
                table.append(laxer)
            if any(this and not that for this, that in zip(mine, other, strict=True)):
                table.append(stricter)
            reasons = [[text for text, applies in explanations if applies(case)] for explanations in table]
            if not all(reasons):
                unexplained.append((case, mine, other))
            needed.update(text for found in reasons for text in found)
        self.assertEqual(unexplained, [], f"{len(unexplained)} verdicts differ and no line of the table says why")
        idle = [text for text, _ in [*laxer, *stricter] if text not in needed]
        self.assertEqual(idle, [], "these lines of the table explain nothing")
        self.assertGreater(agreed, 150, "most of these answers are kept by nobody: the comparison says little")

    def test_hishel(self) -> None:
        """What hishel would send without asking the server we send too, and the other way round, but for what the tables say."""
        self.compare([by_hishel(case) for case in cases()], HISHEL_LAXER, HISHEL_STRICTER)

    def test_http_cache_semantics(self) -> None:
        """The same for http-cache-semantics, as recorded."""
        recorded = json.loads(RECORDED.read_text("utf-8"))
        self.assertEqual(recorded["cases"], fingerprint(cases()), "the made-up answers have changed: record anew, see the top of this file")
        self.compare([[bit == "1" for bit in bits] for bits in recorded["verdicts"].split()], SEMANTICS_LAXER, SEMANTICS_STRICTER)

    def test_the_record_is_true(self) -> None:
        """http-cache-semantics, asked again in one process, says what is recorded."""
        if shutil.which("node") is None or shutil.which("npm") is None:
            raise SkipTest("node and npm are not there: the recorded verdicts of http-cache-semantics were not checked against itself")
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefer-offline", "--prefix", str(directory)]
        try:
            subprocess.run([*install, f"http-cache-semantics@{VERSION}"], capture_output=True, timeout=NPM_TIMEOUT_S, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise SkipTest(f"npm cannot install http-cache-semantics here ({error}): its recorded verdicts were not checked") from None
        recorded = json.loads(RECORDED.read_text("utf-8"))
        self.assertEqual(bits_of(semantics(directory, cases())), recorded["verdicts"])


def bits_of(verdicts: list[list[bool]]) -> str:
    return " ".join("".join("01"[bool(bit)] for bit in bits) for bits in verdicts)


if __name__ == "__main__":
    found = bits_of(semantics(Path(sys.argv[1]), cases()))
    RECORDED.write_text(json.dumps({"version": VERSION, "cases": fingerprint(cases()), "verdicts": found}) + "\n", "utf-8")
