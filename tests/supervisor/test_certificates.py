"""Certificate files while the proxy runs: read anew when right, refused when wrong, complained about in time."""

from __future__ import annotations

import os
import shutil
import time

import pytest
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import KeyPair, Model, Pool, ServerTls, Site, SiteTls, TcpListener
from twistedproxy.supervisor.certificates import POLL_S, CertificateFiles


class Files(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority):
        self.authority = authority

    def setUp(self):
        self.clock = Clock()
        self.read, self.changed, self.said = [], [], []
        self.files = CertificateFiles(self.clock, self.read.append, self.changed.append, self.wall)
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)
        self.addCleanup(self.files.stop)
        self.skipped_s = 0.0

    def observe(self, event):
        if event["log_namespace"].startswith("twistedproxy.supervisor.certificates"):
            self.said.append((event["log_level"].name, formatEvent(event)))

    def wall(self):
        return time.time() + self.skipped_s

    def model(self, made, **more):
        tls = SiteTls("pair", KeyPair(str(made.cert), str(made.key)), str(self.authority.ca))
        return Model(sites={"a.example": Site("a.example", ("a.example",), tls=tls)}, **more)

    def replace(self, made, by):
        for old, new in ((made.cert, by.cert), (made.key, by.key)):
            shutil.copy(new, str(old) + ".new")
            os.replace(str(old) + ".new", old)

    def test_everything_a_model_names_is_read_once(self):
        made = self.authority.make("a", ("a.example",))
        pair = KeyPair(str(made.cert), str(made.key))
        model = self.model(
            made, pools={"p": Pool("p", tls=ServerTls(ca=str(self.authority.ca), pair=pair))},
            tcp=(TcpListener("127.0.0.1:1", "p", tls=SiteTls("pair", pair)),),
        )  # fmt: skip
        self.files.update(model)
        self.assertEqual({(seen.cert, seen.key) for seen in self.read}, {pair.key_names, (str(self.authority.ca), "")})
        self.assertEqual(len(self.read), 2)
        (view,) = self.files.views
        self.assertEqual((view.names, set(view.used_by)), (("a.example",), {"a.example", "pool p", "tcp 127.0.0.1:1"}))
        self.clock.advance(POLL_S)
        self.assertEqual(len(self.read), 2)

    def test_TL_05_a_new_pair_is_taken_over_and_told(self):
        """A renewed certificate is in use within seconds, without a reload."""
        made = self.authority.make("a", ("a.example",))
        self.files.update(self.model(made))
        self.read.clear()
        self.replace(made, self.authority.make("b", ("a.example",), ends=90))
        self.clock.advance(POLL_S)
        self.assertEqual([seen.chain_pem for seen in self.read], [made.chain_pem.decode()])
        self.assertEqual([view.used_by for view in self.changed], [("a.example",)])

    def test_a_bad_pair_is_refused_and_the_old_one_stays(self):
        """Half written, or the certificate replaced and the key not yet: said once, and good again when it is complete."""
        made = self.authority.make("a", ("a.example",))
        self.files.update(self.model(made))
        view = self.files.views
        self.read.clear()
        new = self.authority.make("b", ("a.example",))
        made.cert.write_bytes(new.chain_pem[:100])
        self.clock.pump([POLL_S] * 3)
        made.cert.write_bytes(new.chain_pem)
        self.clock.pump([POLL_S] * 3)
        self.assertEqual((self.read, self.files.views), ([], view))
        errors = [text for level, text in self.said if level == "error"]
        self.assertEqual(len(errors), 2, errors)
        self.assertIn("is cut off", errors[0])
        self.assertIn("is not the key of the certificate", errors[1])
        self.assertIn("what was there before stays in use", errors[1])
        made.key.write_bytes(new.key_pem)
        self.clock.advance(POLL_S)
        self.assertEqual(len(self.read), 1)

    def test_TL_05_every_bad_pair_is_refused_by_name_while_it_runs(self):
        """Whatever the files become, the pair before stays in use, and the log says which file and why."""
        made = self.authority.make("a", ("a.example",))
        self.files.update(self.model(made))
        view, good = self.files.views, (made.cert.read_bytes(), made.key.read_bytes())
        for what, cert, key, blamed, words in self.authority.bad_pairs():
            self.read.clear()
            self.said.clear()
            for ours, theirs in ((made.cert, cert), (made.key, key)):
                ours.unlink()
                if theirs.exists():
                    ours.write_bytes(theirs.read_bytes())
            self.clock.pump([POLL_S] * 2)
            self.assertEqual((self.read, self.files.views), ([], view), what)
            ((level, said),) = self.said
            self.assertEqual(level, "error", said)
            self.assertIn(f"{made.cert if blamed == 'cert' else made.key} {words}", said, what)
            self.assertIn("what was there before stays in use", said, what)
            for ours, content in zip((made.cert, made.key), good, strict=True):
                ours.write_bytes(content)
            self.clock.advance(POLL_S)
            self.assertEqual(len(self.read), 1, f"good again after: {what}")

    def test_the_end_is_announced_three_weeks_before_and_daily(self):
        made = self.authority.make("a", ("a.example",), ends=30)
        self.files.update(self.model(made))
        self.assertEqual(self.said, [])
        self.skipped_s = 10 * 86400
        self.clock.pump([POLL_S] * 5)
        self.assertEqual([level for level, _ in self.said], ["warn"])
        self.assertIn("ends in 20 days", self.said[0][1])
        self.skipped_s += 86401
        self.clock.pump([POLL_S] * 5)
        self.assertEqual(len(self.said), 2)

    def test_what_nobody_uses_any_more_is_named(self):
        made = self.authority.make("a", ("a.example",))
        self.files.update(self.model(made))
        self.assertEqual(set(self.files.update(Model())), {(str(made.cert), str(made.key)), (str(self.authority.ca), "")})
        self.assertEqual(self.files.views, ())

    def test_no_key_is_ever_logged(self):
        made = self.authority.make("a", ("a.example",))
        self.files.update(self.model(made))
        made.key.write_bytes(made.key_pem[:80])
        self.clock.advance(POLL_S)
        secret = made.key_pem.decode().split("\n")[1][:20]
        self.assertNotIn(secret, repr(self.said) + repr(self.read))
