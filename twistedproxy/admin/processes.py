"""The part of the admin API about the proxy's own processes: upgrade in place, workers replaced one by one."""

from __future__ import annotations

from typing import Any

from twistedproxy.config.control import Control


class ProcessApi:
    """Handlers that `api.Api` inherits; it gives them `_control` and how to answer."""

    _control: Control

    def based_on(self, request: Any) -> int | None:
        """The revision that If-Match names; `ChangeRefused` (412) when it is stale."""
        raise NotImplementedError

    def _answer(self, request: Any, value: Any, revision: int | None = None) -> bytes:
        raise NotImplementedError

    async def upgrade(self, request: Any) -> bytes:
        return self._answer(request, await self._control.ask("upgrade", {}))

    async def start_upgrade(self, request: Any) -> bytes:
        return await self._begin(request, "start_upgrade")

    async def rotation(self, request: Any) -> bytes:
        return self._answer(request, await self._control.ask("rotation", {}))

    async def restart_workers(self, request: Any) -> bytes:
        return await self._begin(request, "restart_workers")

    async def _begin(self, request: Any, what: str) -> bytes:
        self.based_on(request)
        by = request.identity.name if request.identity else ""
        return self._answer(request, await self._control.ask(what, {"by": by, "reason": request.arguments.get("reason", "")}))
