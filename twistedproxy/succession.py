"""How one supervisor process follows another in an upgrade in place: command line, pid file, descriptors, service manager.

The agreement itself is in `supervisor.upgrade` (the old one) and `supervisor.heir` (the new one); this is what both do to their process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from twistedproxy import __version__
from twistedproxy.errors import ChangeRefused
from twistedproxy.supervisor.estate import BoundListener, Estate
from twistedproxy.supervisor.heir import Heir
from twistedproxy.supervisor.upgrade import Launch

log = Logger()


class Origin:
    """How this process was started, noted before twistd changes directory."""

    def __init__(self) -> None:
        self.directory = os.getcwd()
        # Interpreter, its options and the script: what stands before the first argument.
        self.command = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]]

    def launch_command(self, twistd: Mapping[str, Any], file: str) -> list[str]:
        """The same again, in the foreground (it is our child) and writing to the same log; twistd refuses a pid file that is in use."""
        here = os.getcwd()
        options = ["--nodaemon", "--pidfile="]
        if twistd.get("syslog"):
            options += ["--syslog", f"--prefix={twistd['prefix']}"]
        elif twistd.get("logfile") == "-":
            options += ["--logfile=-"]
        elif twistd.get("logfile") or not twistd.get("nodaemon"):
            options += [f"--logfile={os.path.join(here, twistd.get('logfile') or 'twistd.log')}"]
        if twistd.get("logger"):
            options += [f"--logger={twistd['logger']}"]
        if here != self.directory:
            options += [f"--rundir={here}"]
        return [*self.command, *options, "revproxy", "--config", file]


class Succession:
    """`root` is the service tree (`tap.Root`); `passed` is what an old supervisor leaves to us, None after an ordinary start."""

    def __init__(self, reactor: Any, root: Any, origin: Origin, passed: Estate | None) -> None:
        self._root = root
        self._origin = origin
        self._passed = passed
        self.heir = Heir(reactor, self) if passed is not None else None
        self.is_over = False
        """True when a successor serves: nothing that is shared may be touched any more."""
        self._old_slots: list[int] = []
        self._began: Mapping[str, Any] = {}
        """Who began the upgrade that we come from, and when."""

    @property
    def is_waiting(self) -> bool:
        """An old supervisor is still in charge."""
        return self.heir is not None and not self.heir.has_moved_in

    def attach(self) -> None:
        upgrade = self._root.supervisor.upgrade
        upgrade.launch, upgrade.leave, upgrade.resume = self.launch, self._leave, self._resume
        upgrade.cut = self.cut

    def cut(self) -> None:
        """What is still open ends at once, here and in those before us."""
        self._root.supervisor.stop_now()
        if self.heir is not None:
            self.heir.cut()

    # The old one

    def launch(self) -> Launch:
        root = self._root
        twistd = root.twistd if root.twistd is not None else {}
        if root.is_demo:
            raise ChangeRefused(409, "the demo is not upgraded in place: end it and start it again")
        if os.getpid() == 1:
            raise ChangeRefused(409, "this is process 1, whose end is the end of the container: replace the container instead")
        if twistd.get("chroot"):
            raise ChangeRefused(409, "twistd runs with --chroot, where the new version cannot be reached: restart instead")
        prepared, admin = root.prepared, root.admin
        listeners = (BoundListener(name, address, fds) for name, (address, fds) in prepared.sockets.descriptors.items())
        estate = Estate(
            os.getpid(), __version__, prepared.state.path, prepared.state.descriptor, root.board.fd, root.allocator.taken(),
            tuple(listeners), {address: sock.fileno() for address, sock in prepared.sockets.handed.items()},
            str(prepared.model.admin.listen or ""), prepared.admin.fileno() if prepared.admin is not None else -1,
            admin.local_socket.fileno(), 2, os.path.abspath(twistd["pidfile"]) if twistd.get("pidfile") else "",
        )  # fmt: skip
        directory = self._origin.directory if os.path.isdir(self._origin.directory) else None
        command = self._origin.launch_command(twistd, prepared.file.path)
        return Launch(command, {**os.environ, **root.notifier.words}, directory, estate)

    def _leave(self, pid: int) -> None:
        """The successor serves."""
        root = self._root
        self.is_over = True
        root.notifier.hand_over(pid)
        root.admin.disown()
        root.prepared.sockets.disown()
        root.leave()

    def _resume(self) -> None:
        """It failed at the last moment: what it may have written is ours again."""
        self._root.prepared.state.claim()
        if self._root.twistd is not None and self._root.twistd["pidfile"]:
            write_pid_file(self._root.twistd["pidfile"])

    # The new one (`heir.House`)

    def wait(self) -> None:
        """Before the start: nothing is accepted yet."""
        if self.heir is not None:
            self._old_slots = self._root.board.taken_slots
            self._root.supervisor.hand_over.wait()

    async def catch_up(self, legacy: Mapping[str, Any]) -> None:
        root = self._root
        self._began = legacy.get("upgrade", {})
        root.journal.read_again(is_ours=False)
        await root.supervisor.hand_over.catch_up(root.journal.replay(root.prepared.model), legacy)

    def move_in(self) -> None:
        root, passed = self._root, self._passed
        assert passed is not None
        root.journal.read_again(is_ours=True)
        root.prepared.sockets.own()
        root.prepared.state.claim()
        if passed.pid_file:
            write_pid_file(passed.pid_file)
            if root.twistd is not None:
                root.twistd["pidfile"] = passed.pid_file  # twistd removes it at the end, as it would have its own
        os.dup2(passed.stderr, 2)
        os.close(passed.stderr)
        root.supervisor.hand_over.begin()
        root.supervisor.upgrade.came_from(passed.version, passed.pid, self._began)
        root.admin.listen()

    def settled(self) -> None:
        root, passed = self._root, self._passed
        assert passed is not None
        log.info("version {new} took over from version {old} (pid {pid})", new=__version__, old=passed.version, pid=passed.pid)
        # Had the file been edited and not reloaded, that is a change like any other.
        replayed = root.journal.replay(root.prepared.model, root.prepared.configuration.text)
        if replayed.revision != root.supervisor.revision:
            root.supervisor.commit(replayed.model, replayed.revision, None)
        root.tell_service_manager()

    def give_up(self) -> None:
        log.error("the old version has taken its word back; this one ends")
        self._root.stop()

    def elder(self, connections: int, statistics: Mapping[str, Any] | None) -> None:
        passed = self._passed
        if passed is not None and not self.is_waiting:
            self._root.supervisor.count_elder(connections, statistics)
            if statistics is None:
                log.info("the old version (pid {pid}) has left", pid=passed.pid)

    def orphaned(self) -> None:
        if self.is_over or self._root.supervisor.upgrade.is_under_way:
            return  # the workers of a version after ours have slots too
        mine = self._root.supervisor.slots
        for slot in self._old_slots:
            if slot not in mine:
                self._root.board.free_slot(slot)

    @property
    def elder_left(self) -> Deferred[None]:
        """Fires when no older supervisor is left that this one answers for."""
        return self.heir.left if self.heir is not None and self.heir.has_moved_in else succeed(None)


def write_pid_file(path: str) -> None:
    """Whoever reads it finds the old process or this one, never half a number."""
    fresh = f"{path}.new"
    with open(fresh, "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    os.replace(fresh, path)
