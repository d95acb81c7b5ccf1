"""Where may this connection go? Pools of servers, shared by HTTP and TCP alike; no sockets in here.

    server.py     one address: its counters, its admin state and health, its effective weight
    balancers.py  which of the available servers is next: one tiny pure class each
    view.py       who of a pool is available now, and the picker prepared for them
    loads.py      how busy servers are over all workers; who is full
    queue.py      the waiting line of a pool whose servers are all full
    budget.py     how many retries a pool may have in flight
    pool.py       ties them together: ``acquire`` gives a lease, a place in the queue, or a refusal
    health.py     pure verdicts for the supervisor: rise and fall of probes, passive ejection

The walk of one request::

    acquire ─▶ view (who is available, with which weight) ─▶ picker ─▶ full? ──no──▶ Lease ─▶ release(outcome)
                                                               ▲         │yes                     │
                                                               └── next ─┴─▶ queue ◀── wakes ─────┘

Each worker has its own `Pool` objects. What must hold for the whole machine (``max_connections``, ``queue.size``, the retry
budget, ``least_conn``) is read from the scoreboard (`ipc.scoreboard`), where every worker writes its own cells only.
"""
