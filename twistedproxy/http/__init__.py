"""The L7 front end.

    front ──bytes──▶ head, h1 ──head──▶ exchange: ROUTE ▶ REQUEST ▶ ACQUIRE ▶ SEND ▶ RECEIVE ▶ RESPOND ▶ FINISH
                                            │ routes, forwarding      │ pool      └── upstream: connections to servers

``exchange`` is the one file that tells a request's life from top to bottom; it does not know which HTTP version carries it.
"""
