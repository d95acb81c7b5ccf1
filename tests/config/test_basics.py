"""What several tables share."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import basics, model, schema


class BasicsTests(SynchronousTestCase):
    def test_one_declaration_for_all(self) -> None:
        """Sites, pools and the file use the very same time-outs and retries, with the defaults running code has."""
        self.assertIs(schema.Timeouts, basics.Timeouts)
        self.assertEqual(basics.Retry().tries, model.Retry().tries)
        self.assertEqual(basics.Timeouts().connect, model.Timeouts().connect_s)

    def test_text_stays_what_it_is(self) -> None:
        """A short form hands on the text it was given; anything else is refused with what is allowed."""
        self.assertEqual(basics.text_value("web", "a pool"), "web")
        self.assertIn("a pool, or a table", str(self.assertRaises(ValueError, basics.text_value, 5, "a pool")))
