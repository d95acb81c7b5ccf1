"""A reverse proxy for TCP and HTTP whose weights, states and servers change live.

One supervisor (control plane) and N workers (data plane), started by ``twistd revproxy``::

    file ─▶ config.loader ─▶ config.model ──┐
                                            │   supervisor ── AMP, socketpair ──▶ worker × N
    operator ─▶ admin ─▶ config.changes ────┤     journal (fsync), revision          apply, ack
    probes ─▶ observations ─────────────────┘     owns the listening sockets  ─fd─▶  adopts them

    client ─▶ net.listener ─▶ http.front ─▶ http.exchange ─▶ pool ─▶ http.upstream ─▶ server
    client ─▶ net.listener ─▶ stream.front ─▶ stream.session ─▶ pool ─▶ net.relay ──▶ server

Who may import whom, strictly downward (siblings in one folder freely)::

    7  tap, cli, demo            how it is started and spoken to
    6  admin, supervisor         never each other; they meet in config.control
    5  worker, probes            one composes a data plane, the other asks servers how they are
    4  http, stream              the two front ends
    3  net                       bytes in and out, no HTTP
    2  pool, tls                 where may this connection go?
    1  config, observability, ipc
    0  errors, clock

Three walks to read first: a request in ``http/exchange.py``, a TCP connection in
``stream/session.py``, a weight change from ``admin/api.py`` over ``config/changes.py`` and
``supervisor/service.py`` to ``worker/service.py``. The cache has a map of its own, ``http/cache/__init__.py``.
"""

__version__ = "0.1.0"
