"""The table of refusals: every rule has words for whoever must act, and no rule is named that the table lacks."""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import twistedproxy.http
from twistedproxy.errors import BadHead, BadResponse, HeadTooLarge
from twistedproxy.http.refusals import REFUSALS, refuse_request, refuse_response

HERE = Path(twistedproxy.http.__file__).parent


class RefusalTests(SynchronousTestCase):
    def test_rules_and_sources_agree(self) -> None:
        """A codec cannot name a rule without words, and no words are left over from a rule that is gone."""
        text = "".join((HERE / name).read_text() for name in ("_pure.py", "_head.pyx", "lines.py", "paths.py", "kinds.py"))
        named = set(re.findall(r'"([a-z]+(?:_[a-z]+)*)"', text))
        self.assertEqual(REFUSALS.keys() - named, set(), "rules that no source names")
        refused = set(re.findall(r'(?:refuse_(?:request|response)\(|_Broken\(|rule = b?)"(\w+)"', text))
        self.assertGreater(len(refused), 5)
        self.assertEqual(refused - REFUSALS.keys(), set(), "rules without words")

    def test_statuses(self) -> None:
        """Each refusal of a request is an answer of ours: 4xx, 501 or 505; limits are 414 and 431."""
        for rule, (status, reason, detail) in REFUSALS.items():
            self.assertEqual(HTTPStatus(status).value, status)
            self.assertIn(status // 100, (4, 5), rule)
            self.assertEqual(status in (414, 431), reason == "head_too_large", rule)
            self.assertRegex(reason, r"^[a-z_]+$")
            self.assertNotRegex(detail, r"\.$")
        self.assertEqual(len({detail for _, _, detail in REFUSALS.values()}), len(REFUSALS), "two rules with the same words")

    def test_errors(self) -> None:
        """A request's refusal carries its status; a broken answer of a server is always a 502."""
        error = refuse_request("host_twice")
        self.assertIsInstance(error, BadHead)
        self.assertEqual((error.status, error.reason), (400, "bad_host"))
        self.assertIsInstance(refuse_request("head_long"), HeadTooLarge)
        answer = refuse_response("length")
        self.assertIsInstance(answer, BadResponse)
        self.assertEqual(answer.status, 502)
        self.assertIn("Content-Length", answer.detail)
