"""The page at ``/`` and its assets: files of `dashboard/`, read once, served for ever under the digest of all of them.

The document is asked for anew each time (by its ETag); everything it names lies under ``/assets/DIGEST/`` and never changes, so
that a browser keeps it. Relative imports between the scripts work without a build step, since all share one digest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

CONTENT_SECURITY_POLICY = b"; ".join(
    (
        b"default-src 'self'", b"object-src 'none'", b"base-uri 'none'", b"form-action 'none'", b"frame-ancestors 'none'",
        b"require-trusted-types-for 'script'",
    )
)  # fmt: skip
"""No inline script or style, nothing from elsewhere, no text ever taken for markup."""
FOR_EVER = b"public, max-age=31536000, immutable"

_KINDS = {".js": b"text/javascript; charset=utf-8", ".css": b"text/css; charset=utf-8", ".svg": b"image/svg+xml"}
"""By suffix; other files of the folder (licences, notes) are not served."""


@dataclass(frozen=True, slots=True)
class Asset:
    body: bytes
    kind: bytes
    """Content-Type."""


@dataclass(frozen=True, slots=True)
class Page:
    document: bytes
    etag: bytes
    """Quoted."""
    digest: str
    """Of all assets; part of their address."""
    assets: dict[str, Asset]
    """By path below the digest, such as ``vendor/uplot.js``."""


@cache
def load() -> Page:
    """The page as it is installed."""
    folder = files(__package__) / "dashboard"
    assets = dict(sorted(_assets(folder, "")))
    whole = hashlib.sha256()
    for name, asset in assets.items():
        whole.update(b"%s %d\n%s" % (name.encode(), len(asset.body), asset.body))
    digest = whole.hexdigest()[:16]
    document = (folder / "index.html").read_bytes().replace(b"{assets}", f"/assets/{digest}".encode())
    return Page(document, b'"%s"' % hashlib.sha256(document).hexdigest()[:16].encode(), digest, assets)


def _assets(folder: Traversable, prefix: str) -> list[tuple[str, Asset]]:
    found = []
    for entry in folder.iterdir():
        kind = _KINDS.get(entry.name[entry.name.rfind(".") :])
        if entry.is_dir():
            found += _assets(entry, f"{prefix}{entry.name}/")
        elif kind is not None:
            found.append((prefix + entry.name, Asset(entry.read_bytes(), kind)))
    return found
