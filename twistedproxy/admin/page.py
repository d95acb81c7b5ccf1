"""The page at ``/``: what this is and which operations there are; nothing live, no script."""

from __future__ import annotations

from html import escape

from twistedproxy.admin.operations import OPERATIONS

CONTENT_SECURITY_POLICY = b"default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

STYLE = b"""body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
code { font: 14px ui-monospace, monospace; }
"""


def render() -> bytes:
    """The whole document."""
    rows = "".join(
        f"<tr><td><code>{escape(o.method)} {escape(o.path)}</code></td><td>{o.role.name.lower() if o.role else '–'}</td>"
        f"<td>{escape(o.summary)}</td></tr>\n"
        for o in OPERATIONS
    )
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>revproxy</title><link rel="stylesheet" href="/assets/page.css"></head>
<body>
<h1>revproxy</h1>
<p>The admin API. Send <code>Authorization: Bearer TOKEN</code>, with the token from the token file; on this machine
<code>revproxy status</code> and <code>revproxy pools</code> need none. The API describes itself:
<a href="/api/v1/openapi.json">openapi.json</a>.</p>
<table>
<thead><tr><th>operation</th><th>role</th><th>does</th></tr></thead>
<tbody>
{rows}</tbody>
</table>
</body>
</html>
""".encode()
