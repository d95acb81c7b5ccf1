"""The words both codecs and the exchange share."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from http import HTTPStatus

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.http.messages import CHUNKED, NO_BODY, REASONS, UNTIL_CLOSE, Kind, LocalResponse


class MessageTests(SynchronousTestCase):
    def test_kinds_can_be_put_together_in_a_mask(self) -> None:
        """Each kind of field has a bit of its own, so that dropping several is one test."""
        bits = [value for name, value in vars(Kind).items() if name.isupper() and value]
        self.assertEqual(len(set(bits)), len(bits))
        self.assertTrue(all(bit & (bit - 1) == 0 for bit in bits), bits)

    def test_body_lengths_that_are_no_length(self) -> None:
        """They can never be taken for a number of bytes."""
        self.assertEqual(len({NO_BODY, CHUNKED, UNTIL_CLOSE}), 3)
        self.assertTrue(CHUNKED < 0 and UNTIL_CLOSE < 0)

    def test_reasons_are_the_registered_ones(self) -> None:
        """No status is sent with another one's phrase."""
        renamed = {413, 414, 431}  # RFC 9110's names, which older Pythons do not know
        for status, phrase in REASONS.items():
            if status not in renamed:
                self.assertEqual(phrase.decode(), HTTPStatus(status).phrase)

    def test_an_answer_made_here_is_a_value(self) -> None:
        """Hooks make a new one; nobody changes what others hold."""
        local = LocalResponse(200)
        with self.assertRaises(FrozenInstanceError):
            local.status = 500  # type: ignore[misc]
