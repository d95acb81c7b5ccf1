"""Starting: what goes wrong is said at once, on standard error, with exit code 1; as a daemon it keeps its files in order."""

from __future__ import annotations

import os
import signal
import socket
import sys

import bed

GOOD = '[pools.web]\nservers = ["127.0.0.1:9"]\n[sites."*"]\n"/" = "web"\n'


def start(made: bed.Proxy, *options: str) -> bed.subprocess.CompletedProcess[str]:
    command = [*bed.TWISTD, *(options or ("-n", "--pidfile=")), "revproxy", "--config", str(made.config_file)]
    return bed.run(command, within=30, cwd=made.directory, env=bed.proxy_env())


def test_a_taken_port_is_named(proxy) -> None:
    """A port that somebody else has is an error at start, not a proxy that serves nobody."""
    made = proxy(GOOD, start=False)
    with socket.create_server((bed.HOST, made.http_port)):
        done = start(made)
    assert done.returncode == 1, done
    said = done.stdout + done.stderr
    assert f"{bed.HOST}:{made.http_port}" in said
    assert "taken" in said
    assert "Traceback" not in said


def test_every_problem_of_a_broken_file_is_printed(proxy) -> None:
    """All problems at once, each with file and line, and exit code 1."""
    made = proxy('[pools.web]\nservers = ["127.0.0.1:99999"]\nbalanse = "random"\n[sites."*"]\n"/" = "wbe"\n', start=False)
    done = start(made)
    assert done.returncode == 1, done
    lines = made.config_file.read_text().splitlines()
    for text, words in (("99999", "65535"), ("balanse", "balance"), ("wbe", "web")):
        number = next(n for n, line in enumerate(lines, 1) if text in line)
        told = [line for line in done.stderr.splitlines() if f"revproxy.toml:{number}:" in line]
        assert told, f"no problem told for line {number}:\n{done.stderr}"
        assert any(words in line for line in told), told
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_named(proxy) -> None:
    """Without its file the proxy says which one it looked for."""
    made = proxy(GOOD, start=False)
    made.config_file.unlink()
    done = start(made)
    assert done.returncode == 1
    assert str(made.config_file) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_instance_on_the_same_state_is_refused(proxy) -> None:
    """Two proxies never write one journal."""
    made = proxy(GOOD)
    done = start(made)
    assert done.returncode == 1, done
    assert str(made.state) in done.stderr
    assert made.is_ready()


def test_as_a_daemon_with_pid_file_and_log(proxy) -> None:
    """`twistd revproxy` returns once it is a daemon, with a pid file and a log; SIGTERM ends it and removes the pid file."""
    made = proxy(GOOD, workers=2, start=False)
    pid_file, log = made.directory / "pid", made.directory / "log"
    done = start(made, "--pidfile", str(pid_file), "--logfile", str(log))
    assert done.returncode == 0, done.stderr
    bed.wait_until(made.is_ready, "the daemon to be ready", 20)
    pid = int(pid_file.read_text())
    try:
        os.kill(pid, signal.SIGHUP)
        assert made.fetch("/")[0] in (502, 503)
    finally:
        os.kill(pid, signal.SIGTERM)
    bed.wait_until(lambda: not bed.is_alive(pid), "the daemon to end", 40)
    assert not pid_file.exists()
    assert "Traceback" not in log.read_text()


def test_logrotate_moves_every_log(proxy) -> None:
    """After logrotate moved twistd's log and the access log, SIGUSR1 makes both anew, and no line gets lost."""
    made = proxy(GOOD + '[logs]\naccess = { file = "access.log" }\n', workers=2, start=False)
    log, access = made.directory / "twistd.log", made.directory / "access.log"
    command = [*bed.TWISTD, "-n", "--pidfile=", "--logfile", str(log), "revproxy", "--config", str(made.config_file)]
    made.launch(command, env=bed.proxy_env())
    made.wait_ready()
    made.fetch("/before")
    made.wait_for(lambda: "/before" in access.read_text(), "the first line")
    for path in (log, access):
        path.rename(f"{path}.1")
    os.kill(made.pid, signal.SIGUSR1)
    made.wait_for(lambda: log.exists() and access.exists(), "new files")
    made.wait_for(lambda: "logs are open anew" in log.read_text(), "twistd's own log to go on")
    for number in range(20):
        made.fetch(f"/after-{number}")
    made.wait_for(lambda: access.read_text().count("/after-") == 20, "both workers to write into the new file")
    assert "/after" not in bed.Path(f"{access}.1").read_text()


def test_systemd_is_told_and_its_sockets_are_used(proxy) -> None:
    """Type=notify, the watchdog and socket activation: the proxy serves on a socket it never bound, and says when it is ready."""
    made = proxy(GOOD, workers=2, start=False)
    words = made.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.create_server((bed.HOST, made.http_port)) as listener:
        manager.bind(str(words))
        manager.settimeout(20)
        # What systemd does between fork and exec.
        start = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[2], sys.argv[2:])"
        )
        command = [sys.executable, "-c", start, str(listener.fileno()), *bed.TWISTD, "-n", "--pidfile=", "revproxy", "--config"]
        env = bed.proxy_env() | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http", "NOTIFY_SOCKET": str(words), "WATCHDOG_USEC": "400000"}
        with made.log_file.open("ab") as log:
            made.process = bed.subprocess.Popen(
                [*command, str(made.config_file)], stdin=bed.subprocess.DEVNULL, stdout=log, stderr=log, cwd=made.directory, env=env,
                pass_fds=[listener.fileno()],
            )  # fmt: skip
        assert manager.recv(300).startswith(b"READY=1\nMAINPID=%d\n" % made.pid)
        assert made.is_ready()
        assert manager.recv(300) == b"WATCHDOG=1"
        listener.close()
        assert made.fetch("/")[0] in (502, 503)
        made.process.terminate()
        while not (said := manager.recv(300)).startswith(b"STOPPING=1"):
            assert said == b"WATCHDOG=1"
        assert made.process.wait(20) == 0


def test_port_0_picks_one_and_tells(proxy) -> None:
    """A listener on port 0 is found in the status."""
    made = proxy(GOOD, listen=f'{{ address = "{bed.HOST}:0", max_connections = 4000 }}')
    (listener,) = [one for one in made.get("/api/v1/status")["listeners"] if one["kind"] == "http"]
    assert not listener["address"].endswith(":0")
    assert bed.accepts(int(listener["address"].rpartition(":")[2]))


def test_workers_hold_no_control_plane(proxy) -> None:
    """Workers stay lean: the library that validates configurations is not even mapped into them."""
    made = proxy(GOOD, workers=2)
    for pid in made.workers().values():
        maps = bed.Path(f"/proc/{pid}/maps").read_text()
        assert "pydantic_core" not in maps
