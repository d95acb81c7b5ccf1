"""Every reason for which a message head is refused, said once, so that the native and the pure codec cannot differ in words.

A codec names the rule that was broken; this table knows the status for a request, the label for the counter, and the sentence.
For responses only the sentence is used: a broken answer of a server is always a 502.
"""

from __future__ import annotations

from twistedproxy.errors import BadHead, BadResponse, HeadTooLarge

REFUSALS: dict[str, tuple[int, str, str]] = {
    # limits
    "request_line_long": (414, "head_too_large", "the request line is longer than this listener's max_request_line"),
    "status_line_long": (431, "head_too_large", "the status line is longer than the limit"),
    "field_long": (431, "head_too_large", "one header field is longer than the limit (max_field)"),
    "head_long": (431, "head_too_large", "the head is longer than the limit (max_head)"),
    "fields_many": (431, "head_too_large", "the head has more header fields than the limit (max_fields)"),
    # line ends
    "bare_lf": (400, "bad_line_end", "a line of the head ends with LF alone; every line must end with CR LF"),
    "bare_cr": (400, "bad_line_end", "a CR in the head is not followed by LF"),
    # request line, status line
    "method": (400, "bad_request_line", "the method must be a token of at most 32 characters, followed by one space"),
    "target_bytes": (400, "bad_request_line", "the request target must be visible ASCII characters between single spaces"),
    "no_version": (400, "bad_request_line", "the request line has no HTTP version; HTTP/0.9 is not spoken here"),
    "version_form": (400, "bad_request_line", "the request line must end with HTTP/1.1 or HTTP/1.0 and CR LF"),
    "version": (505, "bad_version", "only HTTP/1.1 and HTTP/1.0 are spoken on this connection"),
    "status_line": (400, "bad_status_line", "the status line is not HTTP/1.x, a space, and three digits"),
    # request target
    "target_form": (400, "bad_target", "the request target must be a path that begins with /, or an http or https URL"),
    "target_star": (400, "bad_target", "the request target * is for OPTIONS only"),
    "target_connect": (400, "bad_target", "the target of CONNECT must be host:port"),
    "target_fragment": (400, "bad_target", "the request target holds a #"),
    "path_escape": (400, "bad_target", "the path holds a % that is not followed by two hexadecimal digits"),
    "path_encoded": (400, "bad_target", "the path holds an encoded slash, backslash or control character"),
    "path_backslash": (400, "bad_target", "the path holds a backslash"),
    "path_overlong": (400, "bad_target", "the path holds an overlong UTF-8 sequence"),
    "path_dots": (400, "bad_target", "the path holds a dot segment with parameters, such as ..;"),
    # fields
    "field_fold": (400, "bad_field", "a header line begins with white space (line folding is obsolete and refused)"),
    "field_name": (400, "bad_field", "a field name must be a token directly followed by a colon"),
    "field_value": (400, "bad_field", "a field value holds a control character"),
    "connection_nominates": (400, "bad_framing", "Connection names Host, Content-Length or Transfer-Encoding"),
    "connection_long": (400, "bad_field", "Connection lists more than 32 options"),
    "expectation": (417, "bad_expectation", "the only expectation met here is 100-continue"),
    # host
    "host_missing": (400, "bad_host", "an HTTP/1.1 request must have a Host field"),
    "host_twice": (400, "bad_host", "the request has more than one Host field"),
    "host": (400, "bad_host", "the host must be one name or address with an optional port"),
    # framing
    "length": (400, "bad_framing", "Content-Length must be digits only and below 2^63"),
    "length_twice": (400, "bad_framing", "the message has more than one Content-Length"),
    "coding": (400, "bad_framing", "Transfer-Encoding must be exactly: chunked"),
    "coding_unknown": (501, "bad_framing", "the only transfer coding implemented is chunked"),
    "coding_twice": (400, "bad_framing", "the message has more than one Transfer-Encoding field"),
    "coding_old": (400, "bad_framing", "Transfer-Encoding needs HTTP/1.1"),
    "length_and_coding": (400, "bad_framing", "the message has both Content-Length and Transfer-Encoding"),
}  # fmt: skip
"""Rule: (status for a request, reason label, sentence)."""


def refuse_request(rule: str) -> BadHead:
    """The error to raise for a request that breaks `rule`."""
    status, reason, detail = REFUSALS[rule]
    return HeadTooLarge(detail, status) if reason == "head_too_large" else BadHead(detail, status, reason)


def refuse_response(rule: str) -> BadResponse:
    """The error to raise for a response that breaks `rule`."""
    return BadResponse("bad response head: " + REFUSALS[rule][2])
