"""The operator's door: JSON API, metrics, event stream and page, on a loopback port and a unix socket.

A request's way: `site` (connections, heads, deadlines) → `gate` (host, token, role, size; before any body is read) →
`api` (Klein, one handler per row of `operations`) → `config.control.Control` → `views` (JSON shapes) or `problems` (RFC 9457).
Importing `api` imports Klein and with it the global reactor: `tap` does so inside `makeService`.
"""
