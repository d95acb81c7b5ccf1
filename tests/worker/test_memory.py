"""How much of its memory a worker has taken, by cgroup v2 and v1 and by itself; and when it gives back what a peak has left."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.worker.memory import AGAIN_AFTER, LOOKS_PER_SEARCH, PEAK, Memory

MIB = 2**20


class CgroupTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.write("proc/self/statm", "1000 500 100 1 0 200 0")
        self.memory = Memory(str(self.root))

    def write(self, name: str, text: object) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def v2(self, group: str, usage: int, limit: object = "max", high: object = "max", cache: int = 0) -> None:
        base = f"sys/fs/cgroup/{group}"
        self.write(f"{base}/memory.max", limit)
        self.write(f"{base}/memory.high", high)
        self.write(f"{base}/memory.current", usage)
        self.write(f"{base}/memory.stat", f"anon 1\nfile 3\ninactive_anon 7\ninactive_file {cache}\nactive_file 5")

    def test_DO_11_without_a_limit_nothing_is_short(self) -> None:
        self.assertEqual(self.memory.taken(None), 0.0)
        self.write("proc/self/cgroup", "0::/a")
        self.v2("a", 100 * MIB)
        self.assertEqual(Memory(str(self.root)).taken(None), 0.0)

    def test_DO_11_the_tightest_limit_of_all_levels_counts(self) -> None:
        """A container in a pod: either may be what the kernel enforces."""
        self.write("proc/self/cgroup", "0::/pod/box")
        self.v2("pod/box", 50 * MIB, limit=200 * MIB)
        self.v2("pod", 150 * MIB, limit=300 * MIB, high=200 * MIB)
        self.assertEqual(self.memory.taken(None), 0.75)

    def test_DO_11_file_pages_that_can_be_dropped_do_not_count(self) -> None:
        """A proxy that writes large logs is not out of memory."""
        self.write("proc/self/cgroup", "0::/")
        self.v2("", 99 * MIB, limit=100 * MIB, cache=39 * MIB)
        self.assertEqual(self.memory.taken(None), 0.6)

    def test_DO_11_cgroup_v1(self) -> None:
        self.write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n0::/")
        base = "sys/fs/cgroup/memory/x"
        self.write(f"{base}/memory.limit_in_bytes", 100 * MIB)
        self.write(f"{base}/memory.usage_in_bytes", 96 * MIB)
        self.write(f"{base}/memory.stat", f"inactive_file 1\ntotal_inactive_file {6 * MIB}")
        self.write("sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
        self.write("sys/fs/cgroup/memory/memory.usage_in_bytes", 96 * MIB)
        self.assertEqual(self.memory.taken(None), 0.9)

    def test_DO_11_the_configured_limit_is_held_against_the_process_itself(self) -> None:
        self.assertEqual(self.memory.taken(1000 * os.sysconf("SC_PAGE_SIZE")), 0.5)

    def test_a_limit_that_is_changed_or_set_later_is_seen_within_a_minute(self) -> None:
        self.write("proc/self/cgroup", "0::/")
        self.memory.taken(None)
        self.v2("", 50 * MIB, limit=100 * MIB)
        self.assertEqual({self.memory.taken(None) for _ in range(LOOKS_PER_SEARCH)}, {0.0, 0.5})

    def test_the_real_thing_can_be_read(self) -> None:
        self.assertGreater(Memory().resident(), MIB)
        self.assertLess(Memory().taken(None), 2.0)


class GiveBackTests(SynchronousTestCase):
    def test_P4_what_a_peak_left_is_given_back_when_most_have_gone_and_once_more_soon_after(self) -> None:
        times: list[int] = []
        memory = Memory(give_back=lambda: times.append(1))
        for open_now, wanted in ((PEAK * 2, 0), (PEAK * 2 - 1, 0), (PEAK, 1), (PEAK - 1, 1)):
            memory.see(open_now)
            self.assertEqual(len(times), wanted, open_now)
        for _ in range(AGAIN_AFTER * 3):
            memory.see(PEAK - 1)
        self.assertEqual(len(times), 2)
        memory.see(0)
        self.assertEqual(len(times), 3, "these were a peak too, before")
        for open_now in (PEAK - 1, 0) * AGAIN_AFTER * 2:
            memory.see(open_now)
        self.assertEqual(len(times), 4, "few come and go all the time")

    def test_giving_back_works_here(self) -> None:
        """With any C library."""
        memory = Memory()
        memory.see(PEAK)
        memory.see(0)
