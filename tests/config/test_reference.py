"""The manual page of the configuration says what the program does."""

from __future__ import annotations

import pathlib

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config import reference, schema
from twistedproxy.config.kinds import inner_section

ROOT = pathlib.Path(__file__).parents[2]


class ReferenceTests(SynchronousTestCase):
    def test_the_page_in_the_repository_is_the_one_the_declarations_make(self):
        page = (ROOT / reference.PAGE).read_text(encoding="utf-8")
        self.assertTrue(
            page == reference.reference_markdown(),
            f"{reference.PAGE} is not up to date; run: python -m twistedproxy.config.reference",
        )

    def test_every_table_of_the_file_is_on_the_page(self):
        listed = {section for _, section in reference._SECTIONS}
        todo, reached = [schema.File], set()
        while todo:
            section = todo.pop()
            reached.add(section)
            found = {inner_section(field.annotation)[0] for field in section.model_fields.values()} - {None}
            todo += found - reached
        self.assertEqual(reached, listed)

    def test_a_line_gives_key_kind_default_help_and_reload(self):
        page = reference.reference_markdown()
        self.assertIn('| `connect` | duration | `"3s"` | A connection to a server is made. | new connections |', page)
        self.assertIn("| `pool` | name | **required** |", page)
        self.assertIn("Not supported yet: `discover`", page)
        self.assertIn('`"combined" \\| "json"`'.replace("`", ""), page)

    def test_no_line_breaks_its_table(self):
        for line in reference.reference_markdown().splitlines():
            if line.startswith("| `"):
                self.assertEqual(line.replace("\\|", "").count("|"), 6, line)
