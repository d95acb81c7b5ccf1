"""The configuration file as the running supervisor sees it: read again, checked, fitted to this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from twisted.logger import Logger

from twistedproxy.config import loader
from twistedproxy.config.locate import Lines
from twistedproxy.config.model import Model
from twistedproxy.errors import ConfigurationError, Problem
from twistedproxy.http.trials import broken
from twistedproxy.supervisor.limits import DEFAULT, fit

_log = Logger(namespace="configuration")


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the operator wrote and what it means here."""

    model: Model
    text: str
    """As written."""
    effective: Mapping[str, Any]
    """In the form of the file with all defaults, placeholders as written."""
    warnings: tuple[str, ...] = ()
    """What is allowed and has no effect."""

    def warn(self) -> None:
        for warning in self.warnings:
            _log.warn("{warning}", warning=warning)


class ConfigurationFile:
    """The file at `path`; `descriptor_limit` says how many files a process may open."""

    log = Logger()

    def __init__(self, path: str, descriptor_limit: Callable[[], int]) -> None:
        self.path = path
        self._descriptor_limit = descriptor_limit

    def read(self) -> Configuration:
        """What it says now; `ConfigurationError` with every problem."""
        return self._fitted(loader.read_file(self.path))

    def parse(self, text: str) -> Configuration:
        """The same for a text that was in the file once."""
        return self._fitted(loader.read(text, file=self.path))

    def check(self, text: str) -> None:
        """Is this a configuration? It comes from somebody else, so placeholders, which would read our secrets, are refused."""
        loaded = loader.read(text, file=self.path, allow_placeholders=False)
        self._try(loaded.model, text)

    def _fitted(self, loaded: loader.Loaded) -> Configuration:
        fitted = fit(loaded.model, self._descriptor_limit())
        if isinstance(fitted, Problem):
            raise ConfigurationError([Problem(fitted.path, fitted.message, fitted.line, self.path)])
        if fitted != loaded.model:
            both = zip(_numbers(loaded.model), _numbers(fitted), strict=True)
            lowered = {now for was, now in both if now != was}
            self.log.warn(
                "a process may open {limit} files here, which is too few for the default: max_connections of listeners that do not say it"
                " is lowered from {default} to {now} (systemd: LimitNOFILE; or set max_connections)",
                limit=self._descriptor_limit(), default=DEFAULT, now=", ".join(map(str, sorted(lowered))),
            )  # fmt: skip
        self._try(fitted, loaded.text)
        return Configuration(fitted, loaded.text, loaded.effective, tuple(map(str, loaded.warnings)))

    def _try(self, model: Model, text: str) -> None:
        """Run the file's own tests; `ConfigurationError` has the trace of each that fails."""
        try_tests(model, text, self.path)


def _numbers(model: Model) -> list[int]:
    return [listener.max_connections for listener in model.http] + [listener.max_connections for listener in model.tcp]


def try_tests(model: Model, text: str, path: str) -> None:
    """`ConfigurationError` with the trace of each of the file's tests that `model` fails."""
    found = broken(model)
    if found:
        lines = Lines(text)
        raise ConfigurationError([Problem(f"tests[{b.index}]", str(b), lines.of(("tests", b.index)), path) for b in found])


def keep_what_needs_a_restart(old: Model, new: Model) -> tuple[Model, tuple[str, ...]]:
    """`new` with the values that are read at start only, and a sentence for each that the file has changed."""
    notes = []
    is_kept = old.has_cache or old.state_dir != new.state_dir
    directory = old.cache.directory if is_kept else new.cache.directory
    own_directory = new.cache.directory if old.state_dir == new.state_dir else directory
    for key, before, after in (
        ("state_dir", old.state_dir, new.state_dir),
        ("admin.listen", old.admin.listen, new.admin.listen),
        ("admin.token_file", old.admin.token_file, new.admin.token_file),
        ("logs.events", old.logs.events, new.logs.events),
        ("cache.path", directory, own_directory),
    ):
        if before != after:
            notes.append(f"{key} is read at start only: restart the proxy to change it")
    admin = replace(new.admin, listen=old.admin.listen, token_file=old.admin.token_file)
    logs = replace(new.logs, events=old.logs.events)
    cache = replace(new.cache, directory=directory)
    return replace(new, state_dir=old.state_dir, admin=admin, logs=logs, cache=cache), tuple(notes)
