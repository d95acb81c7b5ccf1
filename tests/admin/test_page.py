"""The page opens for everybody, can do no harm, and costs the network little."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.admin import page

_spec = importlib.util.spec_from_file_location("fakes_admin", Path(__file__).parent / "fakes_admin.py")
fakes: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(fakes)  # type: ignore[union-attr]


class Page(SynchronousTestCase):
    def setUp(self) -> None:
        self.admin = fakes.InMemory()

    def ask(self, path: str, **headers: str) -> Any:
        return self.admin.ask("GET", path, role=None, headers=headers)

    def test_everything_the_page_names_is_served_without_a_token_and_kept_for_ever(self) -> None:
        """Document, scripts and styles come to whoever holds no token yet; what is named by its digest never changes."""
        document = self.ask("/")
        self.assertEqual((document.status, document.headers["Content-Type"]), (200, "text/html; charset=utf-8"))
        named = re.findall(r'(?:src|href)="([^"]+)"', document.body.decode())
        self.assertGreaterEqual(len(named), 4)
        for path in named:
            asset = self.ask(path)
            self.assertEqual(asset.status, 200, path)
            self.assertIn("immutable", asset.headers["Cache-Control"])
            self.assertIn(asset.headers["Content-Type"], {"text/javascript; charset=utf-8", "text/css; charset=utf-8", "image/svg+xml"})
        scripts = {name for name in page.load().assets if name.endswith(".js")}
        for name in scripts - {"vendor/uplot.js", "vendor/htm-preact.js"}:
            imported = re.findall(r'from "\./([^"]+)"', page.load().assets[name].body.decode())
            self.assertEqual(set(imported) - scripts, set(), name)

    def test_nothing_inline_and_nothing_from_elsewhere(self) -> None:
        """The policy lets no inline script run and nothing load from other hosts, and the page needs neither."""
        document = self.ask("/")
        policy = document.headers["Content-Security-Policy"]
        self.assertIn("default-src 'self'", policy)
        self.assertNotIn("unsafe", policy)
        text = document.body.decode()
        self.assertNotRegex(text, r"<style|style=|\son\w+=|<script>|https?://")
        for name, asset in page.load().assets.items():
            if not name.startswith("vendor/") and not name.endswith(".svg"):
                self.assertNotRegex(asset.body.decode(), r"https?://|\beval\(|new Function|innerHTML", name)

    def test_what_the_browser_has_is_not_sent_again(self) -> None:
        """A document that did not change costs a 304 without a body."""
        etag = self.ask("/").headers["ETag"]
        again = self.ask("/", **{"If-None-Match": etag})
        self.assertEqual((again.status, again.body, again.headers["Content-Length"]), (304, b"", None))
        self.assertEqual(self.ask("/", **{"If-None-Match": '"old"'}).status, 200)

    def test_no_other_file_gets_out(self) -> None:
        """Only the page's own files, under the digest of now."""
        digest = page.load().digest
        for path in (f"/assets/{digest}/../page.py", f"/assets/{digest}/%2e%2e/page.py", f"/assets/{digest}/index.html",
                     f"/assets/{digest}/vendor/README.md", "/assets/0/app.js", f"/assets/{digest}/"):  # fmt: skip
            self.assertIn(self.ask(path).status, (401, 404), path)
