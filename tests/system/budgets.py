"""What one request may cost, in units that do not depend on the machine's speed: the one place for all such budgets.

A test that finds more says what grew. Raise a number only together with the reason; lower it when something became cheaper.
"""

INSTRUCTIONS = {
    "parse_request": 5500,
    "write_h1 of a request": 900,
    "log_pieces": 2000,
    "parse_response": 2700,
    "write_h1 of a response": 600,
}
"""Of the native codec, by valgrind, per call, for the heads in test_costs.py. A compiler may make 10 % of difference; that is included."""

PYTHON_CALLS = 29
"""Python functions entered per keep-alive GET, from the client's bytes to the queued log line."""

PYTHON_CALLS_PER_LOG_LINE = 1
"""Python functions entered per line when the log is flushed."""

SYSTEM_CALLS = {"recv": 2, "send": 2, "epoll_ctl": 0}
"""Per keep-alive GET on the sockets of clients and servers, in the steady state."""

OTHER_SYSTEM_CALLS = 2.3
"""All others of a worker per request when requests come one by one: two turns of the loop, and a share of the timers and the log."""
