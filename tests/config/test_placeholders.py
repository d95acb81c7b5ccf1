"""Placeholders are filled in, and what they stand for is not given away."""

from __future__ import annotations

import os
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.placeholders import MOST_FILE_BYTES, VARIABLES, Resolved, resolve

ENVIRONMENT = {"HOST": "10.0.0.1", "EMPTY": ""}

GOOD = {
    "${env:HOST}": "10.0.0.1",
    "${env:HOST}:80 weight=${env:WEIGHT:-3}": "10.0.0.1:80 weight=3",
    "${env:EMPTY}": "",
    "${env:EMPTY:-x}": "x",
    "${env:HOST:-x}": "10.0.0.1",
    "${env:MISSING:-}": "",
    "${env:MISSING:-a:-b}": "a:-b",
    "$${env:HOST}": "${env:HOST}",
    "$$${env:HOST}": "$${env:HOST}",
    "$ {env:HOST} $": "$ {env:HOST} $",
    "${client_ip}": "${client_ip}",
    "plain": "plain",
}
BAD = {
    "${env:MISSING}": ("MISSING is not set", ":-default"),
    "${env:}": ("environment variable",),
    "${env:1A}": ("environment variable",),
    "${HOST}": ("not a placeholder", "${env:NAME}", "${client_ip}", "${tls_version}"),
    "${}": ("not a placeholder",),
    "${env:HOST": ("no } after it",),
    "${file:}": ("names no file",),
    "${file:missing.txt}": ("missing.txt", "No such file"),
    "${file:.}": ("not a regular file",),
    "${file:/dev/zero}": ("not a regular file",),
}


class PlaceholderTests(SynchronousTestCase):
    def setUp(self):
        self.directory = self.mktemp()
        os.makedirs(self.directory)

    def resolve(self, tree, **options):
        return resolve(tree, self.directory, ENVIRONMENT, **options)

    def write(self, name, content):
        with open(os.path.join(self.directory, name), "wb") as file:
            file.write(content)

    def test_each_form_stands_for_what_the_manual_says(self):
        for text, value in GOOD.items():
            result = self.resolve({"a": text})
            self.assertEqual((result.tree, result.problems), ({"a": value}, []))

    def test_the_manual_lists_every_variable(self):
        manual = (Path(__file__).parents[2] / "docs/routing.md").read_text()
        self.assertEqual(set(re.findall(r"^\| `\$\{(\w+)\}` \|", manual, re.MULTILINE)), VARIABLES)

    def test_a_file_stands_for_its_text_without_the_last_line_end(self):
        self.write("secret", b"s3cret\r\n")
        self.assertEqual(self.resolve(["<${file:secret}>"]).tree, ["<s3cret>"])
        self.assertEqual(self.resolve(["${file:" + os.path.abspath(self.directory) + "/secret}"]).tree, ["s3cret"])

    def test_what_cannot_be_filled_in_is_reported_with_its_path_and_the_rest_goes_on(self):
        for text, words in BAD.items():
            result = self.resolve({"a": [{"b": text}], "c": "${env:HOST}"})
            self.assertEqual([path for path, _ in result.problems], [("a", 0, "b")], text)
            for word in words:
                self.assertIn(word, result.problems[0][1])
            self.assertEqual(result.tree["c"], "10.0.0.1")

    def test_a_file_that_is_too_large_or_no_text_is_refused(self):
        self.write("large", b"x" * (MOST_FILE_BYTES + 1))
        self.write("binary", b"\xff\xfe")
        self.assertIn("more than 65536 bytes", self.resolve(["${file:large}"]).problems[0][1])
        self.assertIn("not UTF-8", self.resolve(["${file:binary}"]).problems[0][1])

    def test_the_text_as_written_stays_known_by_path(self):
        result = self.resolve({"pools": {"web": {"servers": ["${env:HOST}:80", "b:80"]}}, "x": "$${y}", "n": 1})
        self.assertEqual(result.written, {"pools.web.servers[0]": "${env:HOST}:80", "x": "$${y}"})

    def test_a_resolved_text_shows_itself_as_written(self):
        value = self.resolve(["${env:HOST}"]).tree[0]
        self.assertIsInstance(value, Resolved)
        self.assertEqual(value, "10.0.0.1")
        self.assertEqual(repr(value), "'${env:HOST}'")

    def test_over_the_api_nothing_of_the_machine_can_be_asked(self):
        self.write("secret", b"s3cret")
        for text in ("${env:HOST}", "${file:secret}", "${env:MISSING:-x}"):
            result = self.resolve([text], is_allowed=False)
            self.assertEqual(result.tree, [text])
            self.assertIn("not allowed here", result.problems[0][1])
        self.assertEqual(self.resolve(["$${x}"], is_allowed=False).tree, ["${x}"])
