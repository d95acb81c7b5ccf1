"""Header edits of a route or preset: ``headers = { request = { set, add, remove }, response = { … } }``."""

from __future__ import annotations

from typing import Any

from twistedproxy.http.messages import LocalResponse, ResponseHead
from twistedproxy.http.middleware.chain import EditedHead, Edits


class Headers:
    """Edits requests on their way in, responses on their way out."""

    def __init__(self, request: Edits, response: Edits) -> None:
        self._request = request
        self._response = response
        # A hook that has nothing to do is no hook.
        if request:
            self.on_request = self._edit_request
        if response:
            self.on_response = self._edit_response
            self.on_local = self._edit_local

    def _edit_request(self, exchange: Any) -> LocalResponse | None:
        exchange.outgoing = EditedHead(exchange.outgoing, self._request, exchange)
        return None

    def _edit_response(self, exchange: Any, head: ResponseHead) -> ResponseHead:
        edited: Any = EditedHead(head, self._response, exchange)
        return edited  # type: ignore[no-any-return]

    def _edit_local(self, exchange: Any, local: LocalResponse) -> LocalResponse:
        return self._response.local(exchange, local)
