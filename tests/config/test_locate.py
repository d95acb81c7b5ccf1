"""Every key of a TOML text is found on its line."""

from __future__ import annotations

import time
import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.locate import Lines, dotted

TEXT = '''# a comment with [brackets] and = signs
top = 1
a.b."c d" = "x # no comment"   # 3

[pools.web]  # 5
servers = [   # 6
  "one # [x]",  # 7
  { address = "two", weight = 3 }, # 8

  \'\'\'three
]\'\'\' # 10
]
health = { http = "GET /", deep = { er = [1,
  2] } } # 13-14
text = """
[not.a.table]
not_a_key = 1 \\""" still
""" # 15
[sites."www.example.com"] # 19
"/a=b]" = "web" # 20
'=/x' = "web"
[[sites."www.example.com".rules]] # 22
pool = "a"
[sites."www.example.com".rules.when]
path = "/x" # 25
[[sites."www.example.com".rules]] # 26
pool = "b" # 27
when.date = 2026-11-21T18:00:00Z # 28
"esc\\u0061ped" = 1.5e3 # 29
'''

LINES = {
    ("top",): 2,
    ("a",): 3,
    ("a", "b", "c d"): 3,
    ("pools",): 5,
    ("pools", "web"): 5,
    ("pools", "web", "servers"): 6,
    ("pools", "web", "servers", 0): 7,
    ("pools", "web", "servers", 1): 8,
    ("pools", "web", "servers", 1, "weight"): 8,
    ("pools", "web", "servers", 2): 10,
    ("pools", "web", "health", "deep", "er", 0): 13,
    ("pools", "web", "health", "deep", "er", 1): 14,
    ("pools", "web", "text"): 15,
    ("sites", "www.example.com"): 19,
    ("sites", "www.example.com", "/a=b]"): 20,
    ("sites", "www.example.com", "=/x"): 21,
    ("sites", "www.example.com", "rules"): 22,
    ("sites", "www.example.com", "rules", 0): 22,
    ("sites", "www.example.com", "rules", 0, "when", "path"): 25,
    ("sites", "www.example.com", "rules", 1): 26,
    ("sites", "www.example.com", "rules", 1, "pool"): 27,
    ("sites", "www.example.com", "rules", 1, "when", "date"): 28,
    ("sites", "www.example.com", "rules", 1, "escaped"): 29,
    # what is not there: the nearest thing around it
    ("pools", "web", "missing"): 5,
    ("pools", "other"): 5,
    ("nowhere", "at all"): 1,
    (): 1,
}


def paths_of(tree, path=()):
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from paths_of(value, (*path, key))


KEYS = st.one_of(
    st.text(alphabet="ab_-9", min_size=1, max_size=3),
    st.text(alphabet=' ."#]=ä', max_size=3).map(lambda t: '"' + t.replace('"', '\\"') + '"'),
    st.text(alphabet=' ."#]=', max_size=3).map(lambda t: f"'{t}'"),
)
DOTTED = st.lists(KEYS, min_size=1, max_size=3).map(" . ".join)
SCALARS = st.sampled_from(
    [
        "1",
        "-1.5e3",
        "true",
        "2026-11-21",
        '"a # ] } ,"',
        "'\\'",
        '"""x\n]\n\\""" y"""',
        "'''\n[a]\n'b'''",
        '""',
        "''",
        '""""a"" """',
        "''''a'''",
    ]
)
BLANKS = st.sampled_from(["", " ", "\n", " # c ]\n", "\r\n"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(st.tuples(BLANKS, inner, BLANKS).map("".join), max_size=3).map(lambda v: f"[{','.join(v)}]"),
        st.lists(st.tuples(KEYS, inner).map(" = ".join), max_size=3).map(lambda v: "{ " + ", ".join(v) + " }"),
    ),
    max_leaves=6,
)
STATEMENTS = st.one_of(
    st.tuples(DOTTED, VALUES).map(" = ".join), DOTTED.map("[{}]".format), DOTTED.map("[[ {} ]]".format), st.just("# x = [")
)


class LineTests(SynchronousTestCase):
    def test_each_key_table_and_item_is_found_on_its_line(self):
        tomllib.loads(TEXT)
        for ending in ("\n", "\r\n"):
            lines = Lines(TEXT.replace("\n", ending))
            for path, line in LINES.items():
                self.assertEqual(lines.of(path), line, path)

    @settings(max_examples=500, deadline=None)
    @given(st.lists(STATEMENTS, max_size=8).map("\n".join))
    def test_whatever_toml_can_say_every_path_of_its_tree_is_found(self, text):
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            return
        lines = Lines(text)
        for path in paths_of(tree):
            self.assertIn(path, lines._lines)
            self.assertLessEqual(lines.of(path), text.count("\n") + 1)

    def test_a_megabyte_is_read_in_a_moment(self):
        text = "".join(f'[pools.p{i}]\nservers = ["10.0.0.1:80", "10.0.0.2:80"] # x\n' for i in range(18_000))
        start = time.perf_counter()
        self.assertEqual(Lines(text).of(("pools", "p17999", "servers", 1)), 36_000)
        self.assertLess(time.perf_counter() - start, 5)

    def test_paths_are_written_as_toml_writes_dotted_keys(self):
        self.assertEqual(dotted(("pools", "web", "servers", 1, "weight")), "pools.web.servers[1].weight")
        self.assertEqual(dotted(("sites", "*", '/a"b')), 'sites."*"."/a\\"b"')
        self.assertEqual(dotted(()), "")
