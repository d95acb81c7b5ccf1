"""``[compress.NAME]`` and the bare ``compress``: what they become, and how mistakes are told."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import compressing, loader, model, plain
from twistedproxy.errors import ConfigurationError
from twistedproxy.http import codings

HEAD = '[listen]\nhttp = ["127.0.0.1:8080"]\n[pools.web]\nservers = ["127.0.0.1:1"]\n'
SITE = """\
[sites."*"]
use = ["compress"]
"/" = "web"
"/api/" = { pool = "web", use = ["compress.api"] }
"/raw" = { pool = "web", use = [] }
"""
TABLE = """\
[compress.api]
codings = ["gzip", "zstd"]
types = ["application/JSON", "+json"]
min_size = "2KiB"
level = { gzip = 1, zstd = 9 }
decompress = true
"""
BAD = {
    'codings = ["deflate"]': "'deflate' is not known",
    'codings = ["gzipp"]': "gzip",
    "codings = []": "must be a list of codings",
    'types = "text/html"': "must be a list of types",
    'types = ["html"]': "'html' is not a type such as",
    'types = ["text/html; charset=x"]': "is not a type such as",
    "level = { zstd = 20 }": "from 1 to 19",
    "level = { gzip = 0 }": "from 1 to 9",
    "level = { lzma = 1 }": "lzma",
    'min_size = "1"': "size",
    'decompress = "yes"': "true or false",
}


def parse(text: str) -> model.Model:
    return loader.parse(text, file="conf.toml", base_dir="/", environ={}, has_ipv6=True)


def told(text: str) -> list[str]:
    try:
        parse(text)
    except ConfigurationError as error:
        return [str(problem) for problem in error.problems]
    return []


class CompressingTests(SynchronousTestCase):
    def test_bare_and_table(self) -> None:
        """The built-in takes all defaults, a table says what it says; `[]` turns it off; the worker gets both as they are here."""
        loaded = parse(HEAD + SITE + TABLE)
        routes = {route.path: route.use for route in loaded.sites["*"].routes}
        (bare,) = routes["/"]
        assert bare.compression is not None
        self.assertEqual((bare.name, bare.compression.codings, bare.compression.min_size), ("compress", ("zstd", "br", "gzip"), 1000))
        self.assertEqual(bare.compression.levels, (("zstd", 3), ("br", 3), ("gzip", 3)))
        self.assertIn("text/*", bare.compression.types)
        (second,) = routes["/api/"]  # its own way, not the site's besides: what it leaves alone stays alone
        wanted = model.Compression(
            ("zstd", "gzip"), ("application/json", "+json"), 2048, (("zstd", 9), ("br", 3), ("gzip", 1)), decompress=True
        )
        self.assertEqual((second.name, second.compression, routes["/raw"]), ("compress.api", wanted, ()))
        self.assertEqual(plain.decode(model.Model, plain.encode(loaded)).sites, loaded.sites)
        self.assertNotEqual(parse(HEAD + SITE + TABLE.replace("2KiB", "3KiB")).sites, loaded.sites)  # so that a reload is noticed

    def test_mistakes_are_told(self) -> None:
        """One problem each, in words that name what is allowed."""
        for line, words in BAD.items():
            problems = told(HEAD + SITE + "[compress.api]\n" + line + "\n")
            self.assertEqual(len(problems), 1, (line, problems))
            self.assertIn(words, problems[0])
        (problem,) = told(HEAD + SITE)
        self.assertIn("there is no 'compress.api' to use", problem)

    def test_a_missing_package_is_named(self) -> None:
        """Who asks for br by name without having it is told the pip command; who does not gets what there is."""
        self.patch(compressing, "is_installed", lambda coding: coding == "gzip")
        (problem,) = told(HEAD + SITE + TABLE)
        self.assertIn("zstd needs packages that are not installed: pip install 'twistedproxy[compress]'", problem)
        (bare,) = parse(HEAD + SITE.replace('"compress.api"', "")).sites["*"].routes[0].use
        assert bare.compression is not None
        self.assertEqual(bare.compression.codings, ("gzip",))

    def test_the_coders_know_the_same(self) -> None:
        """What the file may say and what the worker can do are declared apart, since the worker must not need the file's half."""
        self.assertEqual((tuple(compressing.CODINGS), dict(compressing.CODINGS)), (codings.CODINGS, codings.MODULES))
        for coding, (low, high) in codings.LEVELS.items():
            self.assertEqual(told(HEAD + SITE + f"[compress.api]\nlevel = {{ {coding} = {low} }}\n"), [])
            self.assertEqual(told(HEAD + SITE + f"[compress.api]\nlevel = {{ {coding} = {high} }}\n"), [])
            self.assertEqual(len(told(HEAD + SITE + f"[compress.api]\nlevel = {{ {coding} = {high + 1} }}\n")), 1)
