"""The file, read again: fitted to the machine, refused with every problem, and honest about what needs a restart."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.model import Address, Admin, Cache, Model, Route, RouteCache, Site, Token
from twistedproxy.errors import ConfigurationError
from twistedproxy.supervisor.configuration import ConfigurationFile, keep_what_needs_a_restart
from twistedproxy.tap import prepare

TEXT = '[listen]\nhttp = ["127.0.0.1:8080"]\n[pools.web]\nservers = ["${env:REVPROXY_TEST_HOST}:1"]\n[sites."*"]\n"/" = "web"\n'


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "revproxy.toml")
        self.write(TEXT)
        self.patch(os, "environ", {**os.environ, "REVPROXY_TEST_HOST": "10.0.0.1"})
        self.file = ConfigurationFile(self.path, lambda: 100_000)

    def write(self, text: str) -> None:
        with open(self.path, "w") as file:
            file.write(text)

    def test_it_says_what_the_file_says_now(self) -> None:
        self.assertEqual(self.file.read().model.pools["web"].servers[0].address, "10.0.0.1:1")
        self.write(TEXT.replace(':1"', ':2"'))
        again = self.file.read()
        self.assertEqual(again.model.pools["web"].servers[0].address, "10.0.0.1:2")
        self.assertEqual(again.effective["pools"]["web"]["servers"], ["${env:REVPROXY_TEST_HOST}:2"])
        self.assertEqual(self.file.parse(TEXT).text, TEXT)

    def test_defaults_fit_the_limit_of_open_files_and_chosen_numbers_are_refused(self) -> None:
        few = ConfigurationFile(self.path, lambda: 1000)
        said: list[Any] = []
        globalLogPublisher.addObserver(said.append)
        self.addCleanup(globalLogPublisher.removeObserver, said.append)
        now = few.read().model.http[0].max_connections
        self.assertLess(now, 10_000)
        (event,) = [each for each in said if "is lowered from" in each.get("log_format", "")]
        self.assertIn(f"is lowered from 10000 to {now} ", event["log_format"].format(**event))
        self.write(TEXT.replace('["127.0.0.1:8080"]', '[{ address = "127.0.0.1:8080", max_connections = 9999 }]'))
        (problem,) = self.assertRaises(ConfigurationError, few.read).problems
        self.assertEqual((problem.path, problem.file), ("max_connections", self.path))

    def test_what_others_send_is_checked_without_our_secrets(self) -> None:
        """A placeholder in a text from outside would read the environment for whoever sent it."""
        self.file.check(TEXT.replace("${env:REVPROXY_TEST_HOST}", "10.0.0.1"))
        self.assertRaises(ConfigurationError, self.file.check, TEXT)

    def test_a_file_that_breaks_its_own_tests_does_not_come_into_force(self) -> None:
        """Neither at start nor at a reload nor when it is only checked; the trace says what became of the request instead."""
        fails = '[[tests]]\nrequest = "GET http://x/a"\nexpect = { path = "/b" }\n'
        text = TEXT.replace("${env:REVPROXY_TEST_HOST}", "10.0.0.1") + fails
        self.write(text)
        for work in (self.file.read, lambda: self.file.parse(text), lambda: self.file.check(text)):
            (problem,) = self.assertRaises(ConfigurationError, work).problems
            self.assertEqual((problem.path, problem.line), ("tests[0]", 7))
            self.assertIn("path is '/a', not '/b'. The trace: host 'x' is site '*'", problem.message)


class CertificateTests(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _authority(self, authority: Any, tmp_path: Path) -> None:
        self.authority = authority
        self.path = tmp_path / "revproxy.toml"

    def test_TL_05_no_bad_certificate_comes_into_force_at_start_or_reload(self) -> None:
        """Each is refused with file, line and key by what start and reload both read with; nothing else is held against it."""
        text = (
            '[listen]\nhttps = ["127.0.0.1:8443"]\n[sites."a.example"]\ntls = {{ cert = "{}", key = "{}" }}\n"/" = {{ respond = {{}} }}\n'
        )
        file = ConfigurationFile(str(self.path), lambda: 100_000)
        good = self.authority.make("g", ("a.example",))
        for what, cert, key, blamed, words in self.authority.bad_pairs():
            self.path.write_text(text.format(good.cert, good.key))
            file.read()
            self.path.write_text(text.format(cert, key))
            for work in (file.read, lambda: prepare(str(self.path))):
                problems = self.assertRaises(ConfigurationError, work).problems
                said = [str(problem) for problem in problems if problem.path == f'sites."a.example".tls.{blamed}']
                self.assertEqual(len(said), 1, (what, problems))
                self.assertTrue(said[0].startswith(f"{self.path}:4: "), said)
                self.assertIn(words, said[0], what)
        self.assertEqual(list(self.path.parent.glob(".revproxy*")), [], "start was refused before anything was made")


class RestartTests(SynchronousTestCase):
    def test_what_is_read_at_start_only_is_kept_and_told(self) -> None:
        old = Model(state_dir="/a", admin=Admin(token_file="/a/t"))
        tokens = (Token("x", "view", "0" * 64),)
        new = replace(old, state_dir="/b", admin=Admin(listen=Address("127.0.0.1:1"), token_file="/b/t", tokens=tokens))
        kept, notes = keep_what_needs_a_restart(old, new)
        self.assertEqual((kept.state_dir, kept.admin.listen, kept.admin.token_file), ("/a", old.admin.listen, "/a/t"))
        self.assertEqual(kept.admin.tokens, tokens)
        self.assertEqual([note.split()[0] for note in notes], ["state_dir", "admin.listen", "admin.token_file"])
        self.assertEqual(keep_what_needs_a_restart(old, old), (old, ()))

    def test_a_cache_stays_where_it_is_and_one_that_is_new_goes_where_it_is_told(self) -> None:
        """Workers share files by their place: two halves of them in two places would be two caches."""
        routes = (Route("/", "web", cache=RouteCache()),)
        at_a = Model(state_dir="/s", cache=Cache("/a"), sites={"*": Site("*", ("*",), routes)})
        at_b = replace(at_a, cache=Cache("/b", memory=5))
        kept, notes = keep_what_needs_a_restart(at_a, at_b)
        self.assertEqual(kept.cache, Cache("/a", memory=5))
        self.assertEqual([note.split()[0] for note in notes], ["cache.path"])
        self.assertEqual(keep_what_needs_a_restart(replace(at_a, sites={}), at_b), (at_b, ()))
        kept, notes = keep_what_needs_a_restart(at_a, replace(at_b, state_dir="/t"))
        self.assertEqual((kept.cache.directory, [note.split()[0] for note in notes]), ("/a", ["state_dir"]))
