"""The default number of workers is what a container really gets."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.config.cpus import usable_cpus


class CpuTests(SynchronousTestCase):
    def setUp(self):
        self.patch(os, "sched_getaffinity", lambda pid: set(range(8)))
        self.root = self.mktemp()

    def write(self, **files):
        for name, content in files.items():
            path = os.path.join(self.root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(content)

    def assert_cpus(self, cpus, files):
        self.write(**files)
        self.assertEqual(usable_cpus(self.root), cpus)

    def test_without_cgroups_the_affinity_counts(self):
        self.assert_cpus(8, {})

    def test_a_quota_of_cgroup_v2_counts(self):
        self.assert_cpus(2, {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "200000 100000\n"})

    def test_a_quota_further_up_counts(self):
        files = {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}
        self.assert_cpus(3, {"proc/self/cgroup": "0::/a/b\n", **files})

    def test_part_of_a_cpu_is_a_worker_and_there_is_always_one(self):
        self.assert_cpus(2, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"})
        self.assert_cpus(1, {"sys/fs/cgroup/cpu.max": "10000 100000\n"})

    def test_a_quota_above_the_affinity_adds_nothing(self):
        self.assert_cpus(8, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"})

    def test_a_quota_of_cgroup_v1_counts_also_from_inside_a_container(self):
        files = {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}
        self.assert_cpus(4, {"proc/self/cgroup": "9:memory:/x\n4:cpu,cpuacct:/docker/abc\n", **files})
        self.assert_cpus(8, {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n"})

    def test_nonsense_in_the_files_is_no_quota(self):
        self.assert_cpus(8, {"proc/self/cgroup": "0::/\nnonsense\n", "sys/fs/cgroup/cpu.max": "0 0\n"})
        self.assert_cpus(8, {"sys/fs/cgroup/cpu.max": "\n"})
