"""Refusals read well."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.admin.problems import Refuse, did_you_mean, forbidden, foreign_host, too_many_guesses, unauthorized


class Problems(SynchronousTestCase):
    def test_body_is_rfc_9457(self) -> None:
        """type, title, status, detail and the field that is wrong."""
        body = json.loads(Refuse(400, "too big", field="weight").body)
        self.assertEqual(body, {"type": "about:blank", "title": "Bad Request", "status": 400, "detail": "too big", "field": "weight"})

    def test_AD_01_who_may_not_learns_nothing(self) -> None:
        """401, 403 and 429 say one fixed sentence and nothing more."""
        for refusal in (unauthorized(), forbidden(), foreign_host(), too_many_guesses()):
            self.assertEqual(set(json.loads(refusal.body)), {"type", "title", "status", "detail"})

    def test_did_you_mean(self) -> None:
        """The nearest name, or all of them."""
        self.assertEqual(did_you_mean("wieght", ["weight", "state"]), '; did you mean "weight"?')
        self.assertEqual(did_you_mean("zzz", ["weight", "state"]), "; there are: state, weight")
