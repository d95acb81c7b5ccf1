"""From document to model: what is inherited, cut to size, and made canonical. `test_loader` looks at every key."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import build, schema
from twistedproxy.config.kinds import Origin

ORIGIN = Origin("/base")


def model_of(tree):
    return build.build(schema.File.model_validate(tree, context=ORIGIN), ORIGIN, "/base/x.toml", "/state")


class BuildTests(SynchronousTestCase):
    def test_a_smaller_head_makes_its_parts_smaller_too(self):
        (listener,) = model_of({"listen": {"http": [{"address": ":1", "max_head": "4KiB"}]}}).http
        self.assertEqual((listener.max_head, listener.max_request_line, listener.max_field), (4096, 4096, 4096))

    def test_a_route_takes_its_own_largest_body_else_the_sites(self):
        site = model_of({"sites": {"*": {"max_body": "2B", "/a": {"pool": "x", "max_body": "1B"}, "/b": "x"}}}).sites["*"]
        self.assertEqual([route.max_body for route in site.routes], [1, 2])

    def test_a_value_equal_to_the_default_still_overrides_what_would_be_inherited(self):
        tree = {"timeouts": {"connect": "9s"}, "sites": {"*": {"timeouts": {"connect": "3s"}, "/": "x"}}}
        self.assertEqual(model_of(tree).sites["*"].routes[0].timeouts.connect_s, 3.0)

    def test_routes_and_hosts_are_canonical_and_the_site_keeps_its_name(self):
        site = model_of({"sites": {"A.Example.": {"/%7ex": "x"}}}).sites["A.Example."]
        self.assertEqual((site.name, site.hosts, site.routes[0].path), ("A.Example.", ("a.example",), "/~x"))

    def test_the_state_directory_of_the_file_holds_the_token_too(self):
        self.assertEqual(model_of({"state_dir": "s"}).admin.token_file, "/base/s/admin.token")
        self.assertEqual(model_of({}).admin.token_file, "/state/admin.token")
