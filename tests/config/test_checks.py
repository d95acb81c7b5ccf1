"""Checks across keys; the table of `test_loader` has one case for each sort, here are those that need more than one line."""

from __future__ import annotations

import os
import tomllib
from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import checks, schema
from twistedproxy.config.kinds import Origin


def findings(text, has_ipv6=True):
    tree = tomllib.loads(text)
    origin = Origin("/base", has_ipv6)
    document = schema.File.model_validate(tree, context=origin)
    return sorted((path, message) for path, message in checks.check(document, tree, origin, lambda path, value: f"<{value}>"))


POOL = "[pools.web]\nservers = ['a:1']\n"


class CheckTests(SynchronousTestCase):
    def paths(self, text, **options):
        return [path for path, _ in findings(text, **options)]

    def test_a_sound_file_has_no_findings(self):
        self.assertEqual(findings(POOL + "[sites.'*']\n'/' = 'web'\n'=/' = 'web'\n'/x' = 'web'\n'/x/' = 'web'"), [])

    def test_the_wildcards_of_both_families_are_one_address_but_other_addresses_of_a_port_are_not(self):
        text = POOL + "[tcp.'%s']\npool = 'web'\n[tcp.'%s']\npool = 'web'"
        self.assertEqual(self.paths(text % (":1", "0.0.0.0:1")), [("tcp", "0.0.0.0:1")])
        self.assertEqual(self.paths(text % (":1", "127.0.0.1:1")), [])
        self.assertEqual(self.paths(text % ("unix:a.sock", "unix:/base/a.sock")), [("tcp", "unix:/base/a.sock")])
        self.assertEqual(self.paths(text % (":1", "0.0.0.0:1"), has_ipv6=False), [("tcp", "0.0.0.0:1")])

    def test_the_default_port_80_counts_as_taken(self):
        self.assertEqual(self.paths(POOL + "[sites.'*']\n'/' = 'web'\n[admin]\nlisten = ':80'"), [("admin", "listen")])

    def test_values_are_quoted_by_the_caller_who_knows_how_they_were_written(self):
        ((_, message),) = findings(POOL + "[sites.'*']\n'/' = 'wep'")
        self.assertIn("<wep>", message)

    def test_an_access_log_that_cannot_be_written_is_refused_at_its_key(self):
        """It would be missed only when somebody looks for a line of it."""
        folder = self.mktemp()
        os.makedirs(folder)
        text = POOL + "[sites.'*']\n'/' = 'web'\n[logs]\naccess = { file = '%s' }"
        self.assertEqual(findings(text % os.path.abspath(f"{folder}/new.log")), [])
        self.assertEqual(findings(text % "/dev/null") + findings(text % "-"), [])
        for file, word in ((f"{folder}/none/a.log", "does not exist"), (folder, "is a directory")):
            ((path, message),) = findings(text % os.path.abspath(file))
            self.assertEqual((path, word in message), (("logs", "access", "file"), True), message)
        self.patch(os, "access", lambda *_: False)  # as for a user other than root
        for file, word in ((f"{folder}/new.log", "its directory"), ("/dev/null", "may not be written")):
            ((path, message),) = findings(text % os.path.abspath(file))
            self.assertIn(word, message)

    def test_a_directory_of_the_cache_that_cannot_be_is_refused_at_its_key(self):
        """A disk that is read-only for the moment stops nobody."""
        folder = os.path.abspath(self.mktemp())
        os.makedirs(folder)
        text = POOL + "[sites.'*']\n'/' = 'web'\n[cache]\npath = '%s'"
        self.assertEqual(findings(text % folder) + findings(text % f"{folder}/a/b/c"), [])
        open(f"{folder}/file", "w").close()
        for path, word in ((f"{folder}/file", "is not a directory"), (f"{folder}/file/a", f"{folder}/file is not a directory")):
            ((where, message),) = findings(text % path)
            self.assertEqual((where, word in message), (("cache", "path"), True), message)
        self.patch(os, "access", lambda *_: False)  # as for a user other than root
        for path, word in ((folder, "may not be written"), (f"{folder}/a/b", f"may not write to {folder}")):
            ((_, message),) = findings(text % path)
            self.assertIn(word, message)
        self.patch(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
        self.assertEqual(findings(text % folder), [])

    def test_time_outs_that_do_nothing_where_they_stand_are_named(self):
        site = "[sites.'*']\ntimeouts = { keepalive = '5s', request = '5s' }\n'/' = { pool = 'web', timeouts = { tcp_idle = '1s' } }\n"
        rule = "[[sites.'*'.rules]]\nwhen = { path = '/x' }\npool = 'web'\ntimeouts = { drain_http = '5s' }\n"
        tcp = "[tcp.':1']\npool = 'web'\ntimeouts = { preread = '1s', drain_tcp = '1s', body_idle = '1s' }\n"
        text = POOL + "[timeouts]\nkeepalive = '1s'\n" + site + rule + tcp
        found = dict(checks.warnings(schema.File.model_validate(tomllib.loads(text), context=Origin("/base"))))
        wanted = {
            ("sites", "*", "timeouts", "keepalive"): "set it in [timeouts]",
            ("sites", "*", "/", "timeouts", "tcp_idle"): "websocket_idle",
            ("sites", "*", "rules", 0, "timeouts", "drain_http"): "set it in [timeouts]",
            ("tcp", ":1", "timeouts", "drain_tcp"): "set it in [timeouts]",
            ("tcp", ":1", "timeouts", "body_idle"): "is for HTTP",
        }
        self.assertEqual(found.keys(), wanted.keys())
        for path, word in wanted.items():
            self.assertIn(word, found[path])

    def test_an_object_that_no_disk_could_hold_is_refused_where_it_is_said(self):
        site = POOL + "[sites.'*']\n'/' = { pool = 'web', cache = '1h' }\n[cache]\n"
        self.assertEqual(self.paths(site + "disk = '10MiB'\nmax_object = '11MiB'"), [("cache", "max_object")])
        self.assertEqual(self.paths(site + "disk = '10MiB'"), [])
        self.assertEqual(self.paths(site + "disk = '0B'\nmax_object = '100KiB'"), [])

    def test_source_ip_is_fine_for_tcp(self):
        self.assertEqual(findings("[pools.web]\nservers = ['a:1']\nbalance = 'source_ip'\n[tcp.':1']\npool = 'web'"), [])

    def test_thousands_of_findings_of_one_sort_are_not_all_worked_out(self):
        text = POOL + "[sites.'*']\n" + "".join(f"'/{i}' = 'wep'\n" for i in range(2000))
        self.assertEqual(len(findings(text)), checks.MOST_OF_A_SORT)
