"""Live values go into the file as a person would write them: nothing else moves."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import changes, loader
from twistedproxy.config.changes import AddServer, Change, RemoveServer, SetMaxConnections, SetState, SetWeight
from twistedproxy.config.loader import read
from twistedproxy.config.model import Address, AdminState, Model, Server
from twistedproxy.config.site_changes import SetMaintenance, SetSplit
from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor import adoption

TEXT = """\
# Ours.
[listen]
http = ["127.0.0.1:8080"]  # loopback

[pools.web]
servers = [
  "10.0.0.1:80 weight=3",   # the old one
  { address = "${env:HOST}:80", weight = 2 },  # a table
  "10.0.0.3:80 backup",
]
[sites."*"]
"/" = "web"
"""
A, B, C, D = (Address(f"10.0.0.{n}:80") for n in (1, 2, 3, 4))
FILE = read(TEXT, environ={"HOST": "10.0.0.2"}).model


def running(*made: Change) -> Model:
    model = FILE
    for change in made:
        model = changes.apply(model, change)
    return model


class AdoptionTests(SynchronousTestCase):
    def edited(self, *made: Change) -> str:
        return adoption.edited(TEXT, FILE, running(*made))

    def test_without_live_values_not_a_byte_changes(self) -> None:
        self.assertEqual(self.edited(), TEXT)
        self.assertEqual(adoption.difference(FILE, FILE), [])

    def test_comments_layout_and_placeholders_stay(self) -> None:
        text = self.edited(SetWeight("web", A, 5), SetWeight("web", B, 9), SetMaxConnections("web", C, 7))
        expected = TEXT.replace("weight=3", "weight=5").replace("weight = 2", "weight = 9")
        self.assertEqual(text, expected.replace('"10.0.0.3:80 backup"', '"10.0.0.3:80 max_connections=7 backup"'))

    def test_servers_come_and_go(self) -> None:
        made = (AddServer("web", Server(D, weight=2)), RemoveServer("web", A))
        model = read(self.edited(*made), environ={"HOST": "10.0.0.2"}).model
        self.assertEqual([s.address for s in model.pools["web"].servers], [B, C, D])
        self.assertEqual(adoption.difference(model, running(*made)), [])

    def test_differences_name_value_file_and_running(self) -> None:
        made = (SetWeight("web", A, 5), SetState("web", B, AdminState.DRAIN), AddServer("web", Server(D)))
        found = adoption.difference(FILE, running(*made))
        self.assertEqual(
            [(d["path"], d["file"], d["running"]) for d in found],
            [(f"pools.web.{A}.weight", 3, 5), (f"pools.web.{B}.state", "ready", "drain"), (f"pools.web.{D}", None, D)],
        )

    def test_the_diff_is_what_patch_understands(self) -> None:
        edit = adoption.unified_diff(TEXT, self.edited(SetWeight("web", A, 5)), "x.toml")
        self.assertIn('-  "10.0.0.1:80 weight=3",   # the old one\n+  "10.0.0.1:80 weight=5",   # the old one\n', edit)
        self.assertEqual(adoption.unified_diff(TEXT, TEXT, "x.toml"), "")


class WriteTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name, "revproxy.toml")
        self.path.write_text("old")
        self.path.chmod(0o640)

    def test_mode_and_links_stay(self) -> None:
        link = self.path.with_name("link.toml")
        link.symlink_to(self.path)
        adoption.write(str(link), "old", "new")
        self.assertEqual((self.path.read_text(), link.is_symlink(), self.path.stat().st_mode & 0o777), ("new", True, 0o640))
        self.assertEqual(len(os.listdir(self.path.parent)), 2)

    def test_an_edit_made_meanwhile_is_not_overwritten(self) -> None:
        self.assertEqual(self.assertRaises(ChangeRefused, adoption.write, str(self.path), "other", "new").status, 409)
        self.assertEqual(self.path.read_text(), "old")


class SiteAdoptionTests(SynchronousTestCase):
    def test_a_split_and_maintenance_are_written_where_they_stand(self) -> None:
        """Comments and layout stay; afterwards file and running model say the same."""
        text = (
            '[pools.a]\nservers = ["127.0.0.1:1"]\n[pools.b]\nservers = ["127.0.0.1:2"]\n[sites."x.example"]  # the shop\n'
            '"/" = { split = { a = 9, b = 1 } }  # canary\n[[sites."x.example".rules]]\nwhen = { path = "/y*" }\nsplit = { a = 1, b = 1 }\n'
        )
        file = loader.parse(text, base_dir="/", environ={}, has_ipv6=True)
        running = file
        for change in (
            SetSplit("x.example", "/", (("a", 7), ("b", 3))),
            SetSplit("x.example", "rules[0]", (("a", 0),)),
            SetMaintenance("x.example", True),
        ):
            running = changes.apply(running, change)
        self.assertEqual(len(adoption.difference(file, running)), 3)
        written = adoption.edited(text, file, running)
        for words in ("# the shop", "split = { a = 7, b = 3 } }  # canary", "split = { a = 0, b = 1 }", "maintenance = true"):
            self.assertIn(words, written)
        again = loader.parse(written, base_dir="/", environ={}, has_ipv6=True)
        self.assertEqual(adoption.difference(again, running), [])
