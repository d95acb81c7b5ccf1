"""The process that workers are forked off: it has everything imported and does nothing but wait for orders.

How it works
    Starting Python and importing the data plane takes half a second of processor time, and far longer while the other workers
    use all of it. A fork takes milliseconds, and what was imported is shared memory until somebody writes to it. The
    supervisor sends ``{"slot": N}`` with two descriptors, the control channel and the standard error of the worker to be; the answer
    is ``{"slot": N, "pid": P}``. ``{"reap": P}`` is answered with the wait status of a worker that has ended. There are
    no threads and no reactor here, so a fork is safe; when the supervisor closes the socket, this process ends.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
from collections.abc import Callable
from functools import partial

MAX_ORDER_BYTES = 4096


def serve(control: socket.socket, run: Callable[[int], None], channel_fd: int) -> None:
    """Fork until the supervisor is gone; in each child `run(slot)` is the whole rest of its life.

    The child finds its control channel as `channel_fd` and its standard error as 2.
    """
    # What lives now lives for ever: no collection shall touch it, here or in a child, since a touched page is a copied page.
    gc.collect()
    gc.freeze()
    gc.disable()
    _answer(control, {"ready": os.getpid()})
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, MAX_ORDER_BYTES, 2)
        if not data:
            return
        order = json.loads(data)
        if "reap" in order:
            _answer(control, {"reaped": order["reap"], "status": reap(order["reap"])})
            continue
        channel, stderr = descriptors
        pid = os.fork()
        if pid:
            os.close(channel)
            os.close(stderr)
            _answer(control, {"slot": order["slot"], "pid": pid})
            continue
        _be_a_worker(control, channel, stderr, channel_fd, partial(run, order["slot"]))


def _be_a_worker(control: socket.socket, channel: int, stderr: int, channel_fd: int, run: Callable[[], None]) -> None:
    """In the child: never returns, whatever happens, since the parent's loop is not its to go on with."""
    code = 1
    try:
        os.dup2(stderr, 2)
        os.close(stderr)
        control.close()
        os.dup2(channel, channel_fd, inheritable=False)
        if channel != channel_fd:
            os.close(channel)
        gc.enable()
        run()
        code = 0
    except SystemExit as e:
        if isinstance(e.code, str):
            os.write(2, e.code.encode() + b"\n")
        else:
            code = e.code or 0
    except BaseException:
        import traceback  # noqa: PLC0415 - only for last words

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def reap(pid: int) -> int | None:
    """The wait status of a child that has ended; None when it is none of ours or still runs."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return status if found else None


def _answer(control: socket.socket, words: dict[str, int | None]) -> None:
    control.send(json.dumps(words).encode())


def ignore_signals() -> None:
    """A terminal sends SIGINT, and some tools SIGTERM, to the whole process group: what they mean is the supervisor's to decide."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
