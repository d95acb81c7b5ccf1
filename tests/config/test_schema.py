"""Each key is declared once, completely, and agrees with what running code takes for the default."""

from __future__ import annotations

import json
import tomllib

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import loader, model, schema
from twistedproxy.config.reference import _SECTIONS

SECTIONS = [section for _, section in _SECTIONS]
MINIMAL = (
    '[pools.web]\nservers = ["a:1"]\nhealth = "tcp"\n[sites."*"]\n"/" = "web"\n[tcp.":1"]\npool = "web"\n[logs]\naccess = { file = "-" }'
)


class DeclarationTests(SynchronousTestCase):
    def test_every_key_says_what_it_is_for_and_what_a_reload_does(self):
        for section in SECTIONS:
            self.assertTrue(section.__doc__, section)
            for name, field in section.model_fields.items():
                self.assertTrue(field.description and field.description.endswith((".", "…")), f"{section.__name__}.{name}")
                self.assertIn(field.json_schema_extra["x-reload"], (schema.LIVE, schema.NEW, schema.RESTART), f"{section.__name__}.{name}")

    def test_no_key_is_both_there_and_not_supported_yet(self):
        for section in SECTIONS:
            self.assertEqual({f.alias or n for n, f in section.model_fields.items()} & set(section.later), set(), section)

    def test_the_defaults_are_those_that_running_code_has(self):
        loaded = loader.parse(MINIMAL, base_dir="/", environ={}, has_ipv6=True)
        web = loaded.pools["web"]
        self.assertEqual(loaded.timeouts, model.Timeouts())
        self.assertEqual(loaded.http, (model.HttpListener("[::]:80"),))
        self.assertEqual(loaded.tcp, (model.TcpListener("[::]:1", "web"),))
        self.assertEqual(web, model.Pool("web", (model.Server("a:1"),), health=model.HealthCheck("tcp")))
        self.assertEqual(loaded.sites["*"], model.Site("*", ("*",), (model.Route("/", "web"),)))
        self.assertEqual(loaded.admin.listen, model.Admin().listen)
        self.assertEqual(loaded.logs, model.Logs(model.AccessLog("-")))

    def test_every_time_out_of_the_model_can_be_set(self):
        self.assertEqual([f + "_s" for f in schema.Timeouts.model_fields], list(model.Timeouts.__slots__))

    def test_no_limit_can_be_switched_off(self):
        for section, keys in {
            schema.Timeouts: [n for n in schema.Timeouts.model_fields if not n.startswith("drain")],
            schema.HttpListener: [
                "max_connections",
                "max_head",
                "max_request_line",
                "max_field",
                "max_fields",
                "connection_age",
                "min_body_rate",
            ],
            schema.Pool: ["max_connections"],
            schema.TcpListener: ["max_connections"],
            schema.Site: ["max_body"],
            schema.Queue: ["timeout"],
        }.items():
            for key in keys:
                for value in (0, "0s", "0B", "0B/s", "none", "off", "", -1, False, "9999999d", "9999999GB"):
                    with self.assertRaises(ValueError, msg=f"{section.__name__}.{key} = {value!r}"):
                        section.model_validate(
                            {"address": ":1", "pool": "x"} | {key: value} if "address" in section.model_fields else {key: value}
                        )


class JsonSchemaTests(SynchronousTestCase):
    def test_editors_get_a_schema_with_help_defaults_and_reload(self):
        whole = json.loads(json.dumps(schema.schema_json()))
        connect = whole["$defs"]["Timeouts"]["properties"]["connect"]
        self.assertEqual((connect["default"], connect["x-reload"]), ("3s", "new connections"))
        self.assertIn("connection", connect["description"])
        self.assertFalse(whole["additionalProperties"])

    def test_routes_are_keys_that_begin_with_a_slash(self):
        site = schema.schema_json()["$defs"]["Site"]
        self.assertEqual(list(site["patternProperties"]), ["^=?/"])
        self.assertNotIn(schema.ROUTES, site["properties"])

    def test_short_forms_and_tables_are_both_allowed(self):
        definitions = schema.schema_json()["$defs"]
        servers = definitions["Pool"]["properties"]["servers"]["items"]["anyOf"]
        self.assertEqual([s.get("type", "table") for s in servers], ["string", "table"])
        self.assertEqual(definitions["Pool"]["properties"]["eject"]["anyOf"][0], {"type": "boolean"})

    def test_the_schema_names_every_key_that_the_small_file_uses(self):
        properties = schema.schema_json()["properties"]
        self.assertLessEqual(set(tomllib.loads(MINIMAL)), set(properties))
