"""Types of the native codec; its behaviour is that of ``_pure``."""

from collections.abc import Iterator

from twistedproxy.http.messages import LogPieces

class Limits:
    max_head: int
    max_request_line: int
    max_field: int
    max_fields: int
    def __init__(self, max_head: int = ..., max_request_line: int = ..., max_field: int = ..., max_fields: int = ...) -> None: ...

class _Head:
    size: int
    minor: int
    content_length: int
    is_chunked: bool
    wants_close: bool
    upgrade: bytes | None
    kinds: int
    def get(self, name: bytes) -> bytes | None: ...
    def get_all(self, name: bytes) -> list[bytes]: ...
    def fields(self) -> Iterator[tuple[bytes, bytes]]: ...
    def write_h1(self, start_line: bytes | None, drop: int, remove: tuple[bytes, ...], tail: bytes) -> bytes: ...

class RequestHead(_Head):
    method: bytes
    target: bytes
    host: bytes
    authority: bytes
    path: bytes
    query: bytes
    expects_continue: bool
    body_length: int
    is_canonical: bool
    def log_pieces(self) -> LogPieces | None: ...

class ResponseHead(_Head):
    status: int
    def body_length_for(self, method: bytes) -> int: ...

def parse_request(data: bytes, limits: Limits) -> RequestHead | None: ...
def parse_response(data: bytes, limits: Limits | None = ...) -> ResponseHead | None: ...
def take_chunks(data: bytes, at: int) -> tuple[bytes, int]: ...
