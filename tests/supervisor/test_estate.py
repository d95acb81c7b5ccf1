"""What is passed on in an upgrade arrives as it was, and what another version says does no harm."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.supervisor.estate import VARIABLE, BoundListener, Estate, Wire, inherited, passed_socket, tell_failure


def sample(**other: Any) -> Estate:
    values: dict[str, Any] = {
        "pid": 7, "version": "1.0", "state_dir": "/s", "lock": 10, "board": 11, "rows": {"web": 0},
        "listeners": (BoundListener(":80", "[::]:80", (12, 13)),), "handed": {"0.0.0.0:443": 14}, "admin_address": "", "admin": -1,
        "local": 15, "stderr": 2, "pid_file": "", "words": {},
    }  # fmt: skip
    return Estate(**values | other)


class EstateTests(SynchronousTestCase):
    def test_it_survives_the_wire(self) -> None:
        self.assertEqual(Estate.from_plain(json.loads(json.dumps(sample().to_plain()))), sample())

    def test_every_descriptor_gets_its_new_number(self) -> None:
        numbers = {fd: 100 + fd for fd in sample().descriptors}
        moved = sample().renumbered(numbers)
        self.assertEqual(sorted(moved.descriptors), sorted(numbers.values()))
        self.assertEqual((moved.admin, moved.listeners[0].descriptors, moved.handed), (-1, (112, 113), {"0.0.0.0:443": 114}))
        self.assertEqual(sorted(sample().descriptors), [2, 10, 11, 12, 13, 14, 15])

    def test_another_format_is_refused_with_a_reason(self) -> None:
        for plain in ({"estate": 99}, {"estate": 1}, {}):
            with self.assertRaises(ValueError):
                Estate.from_plain(plain)

    def test_it_is_read_once_and_taken_out_of_the_environment(self) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            descriptors = {name: os.open(os.devnull, os.O_RDONLY) for name in ("lock", "board", "local", "stderr")}
            ours.sendall(json.dumps(sample(listeners=(), handed={}, **descriptors).to_plain()).encode() + b"\n")
            environ = {VARIABLE: str(theirs.detach())}
            found = inherited(environ)
            assert found is not None
            wire, estate = found
            with wire:
                self.assertEqual((environ, estate.pid), ({}, 7))
                tell_failure(wire, "no\nway")
                self.assertEqual(json.loads(ours.recv(100)), {"failed": "no way"})
            for fd in descriptors.values():
                os.close(fd)
        self.assertIsNone(inherited({}))

    def test_a_passed_listener_never_blocks(self) -> None:
        """Whether a socket blocks is common to all processes that hold it."""
        with socket.create_server(("127.0.0.1", 0)) as old:
            old.setblocking(False)
            with passed_socket(os.dup(old.fileno())) as passed, passed.dup():
                self.assertFalse(os.get_blocking(old.fileno()))


class WireTests(SynchronousTestCase):
    def test_a_word_that_fails_is_passed_over(self) -> None:
        heard: list[Any] = []

        def hear(word: Any) -> None:
            heard.append(word["known"])

        wire = Wire(hear, lambda: heard.append("lost"))
        for line in (b"not JSON", b'{"other": 1}', b'{"known": 2}'):
            wire.lineReceived(line)
        wire.connectionLost()
        self.assertEqual(heard, [2, "lost"])
        self.assertEqual(len(self.flushLoggedErrors()), 2)
