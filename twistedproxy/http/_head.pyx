# cython: language_level=3, boundscheck=True, wraparound=False, initializedcheck=False, freethreading_compatible=False
"""The head codec for the hot path: one pass over the bytes into a table of offsets, no object per field.

How it works
    A line is found with memchr, its name and value are checked byte by byte (values eight at a time), its name is classified, and an entry
    of 16 bytes says where everything is. Attributes become objects when asked for. ``write_h1`` copies runs of neighbouring fields
    that stay and are spelled ``Name: value`` with one memcpy.
    This file only recognises what is valid and complete. A line that is not goes to ``lines``, which says whether it is incomplete or which
    rule it breaks; odd hosts, targets and codings go to ``paths``. So errors are the same, and the C below stays short.
    One file of over 500 lines, since C functions of one translation unit are inlined, and one extension is all that may be missing.
    Every read is below the end that was computed from the length of the bytes object; offsets fit 32 bits because max_head does.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy

from twistedproxy.http._pure import protocol_of
from twistedproxy.http.kinds import kind_of
from twistedproxy.http.lines import first_line, odd_line
from twistedproxy.http.messages import CHUNKED as _CHUNKED, MAX_LOG_PIECES as _MAX_LOG_PIECES, NO_BODY as _NO_BODY, UNTIL_CLOSE as _UNTIL_CLOSE, Kind
from twistedproxy.http.paths import coding_rule, has_port, host_of, read_target
from twistedproxy.http.refusals import refuse_request, refuse_response

cdef extern from *:
    """
    #include <string.h>
    #include <stdint.h>

    static unsigned char tp_token[256];   /* 0: no token character, 2: underscore, 1: any other token character */
    static unsigned char tp_value[256];   /* 1: may stand in a field value */
    static unsigned char tp_lower[256];
    static unsigned char tp_path[256];    /* 1: stands for itself in a canonical path; 2: slash */
    static unsigned char tp_odd[256];     /* 1: not written as it is in a log */

    /* First byte of [p, e) that no field value may hold, or e. */
    static inline const unsigned char *tp_skip_value(const unsigned char *p, const unsigned char *e) {
        while (e - p >= 8) {
            uint64_t x, d;
            memcpy(&x, p, 8);
            d = x ^ 0x7f7f7f7f7f7f7f7fULL;
            if ((((x - 0x2020202020202020ULL) & ~x) | ((d - 0x0101010101010101ULL) & ~d)) & 0x8080808080808080ULL) {
                int i;
                for (i = 0; i < 8; i++) if (!tp_value[p[i]]) return p + i;
            }
            p += 8;
        }
        while (p < e && tp_value[*p]) p++;
        return p;
    }

    /* Whether the n token characters at p are `name` (lower case) but for letter case. */
    static inline int tp_same(const unsigned char *p, const char *name, size_t n) {
        size_t i;
        for (i = 0; i < n; i++) if ((p[i] | 0x20) != (unsigned char)name[i]) return 0;
        return 1;
    }
    /* Whether the n bytes at p can be written to a log as they are. */
    static inline int tp_plain(const unsigned char *p, size_t n) {
        unsigned char odd = 0;
        size_t i;
        for (i = 0; i < n; i++) odd |= tp_odd[p[i]];
        return !odd;
    }
    #define TP_IS(p, name) tp_same((p), (name), sizeof(name) - 1)
    """
    unsigned char tp_token[256]
    unsigned char tp_value[256]
    unsigned char tp_lower[256]
    unsigned char tp_path[256]
    unsigned char tp_odd[256]
    const unsigned char* tp_skip_value(const unsigned char* p, const unsigned char* e) noexcept nogil
    bint tp_plain(const unsigned char* p, size_t n) noexcept nogil
    bint TP_IS(const unsigned char* p, const char* name) noexcept nogil

cdef extern from "Python.h":
    str PyUnicode_DecodeASCII(const char* s, Py_ssize_t size, const char* errors)

for _i in range(256):
    _c = chr(_i)
    tp_token[_i] = 2 if _c == "_" else 1 if (_i < 128 and _c.isalnum()) or (_c in "!#$%&'*+-.^`|~") else 0
    tp_value[_i] = 0 if (_i < 32 and _i != 9) or _i == 127 else 1
    tp_lower[_i] = _i + 32 if 65 <= _i <= 90 else _i
    tp_path[_i] = 2 if _c == "/" else 1 if (_i < 128 and _c.isalnum()) or (_c in "_~!$&'()*+,;=:@.-") else 0
    tp_odd[_i] = 1 if _i < 32 or _i > 126 or _c in '"\\' else 0

cdef enum:
    INLINE = 20
    MAX_OPTIONS = 32
    MAX_METHOD = 32
    MAX_NAME = 65535
    MAX_HOST = 255
    MAX_LOG_PIECES = 1000
    NO_BODY = 0
    CHUNKED = -1
    UNTIL_CLOSE = -2
    # The bits of messages.Kind, checked below.
    HOST = 1
    LENGTH = 2
    CODING = 4
    CONNECTION = 8
    HOP = 16
    FORWARDED = 32
    REQUEST_ID = 64
    EXPECT = 128
    DATE = 256
    SERVER = 512
    VIA = 1024
    INTERNAL = 2048
    NOMINATED = 4096
    CLAIM = 8192
    CONDITIONS = 65536  # of tables only: a field's kind has no room for it
    KINDS = 16383
    STAYS = 16384  # scratch of write_h1
    TIDY = 32768  # the line is exactly "Name: value CR LF"

if (Kind.HOST, Kind.CONTENT_LENGTH, Kind.TRANSFER_ENCODING, Kind.CONNECTION, Kind.HOP_BY_HOP, Kind.FORWARDED, Kind.REQUEST_ID, Kind.EXPECT,
        Kind.DATE, Kind.SERVER, Kind.VIA, Kind.INTERNAL, Kind.NOMINATED, Kind.CLAIM, Kind.CONDITIONS) != (
        HOST, LENGTH, CODING, CONNECTION, HOP, FORWARDED, REQUEST_ID, EXPECT, DATE, SERVER, VIA, INTERNAL, NOMINATED, CLAIM, CONDITIONS) or (
        _NO_BODY, _CHUNKED, _UNTIL_CLOSE, _MAX_LOG_PIECES) != (NO_BODY, CHUNKED, UNTIL_CLOSE, MAX_LOG_PIECES):
    raise ImportError("the native head codec was built for another twistedproxy.http.messages; build it again")

cdef struct Field:
    uint32_t name
    uint32_t value
    uint32_t end
    uint16_t name_size
    uint16_t kind

cdef struct Span:
    uint32_t start
    uint32_t end

cdef struct Table:
    Field* fields
    int count
    int room
    uint32_t first  # where the first line starts
    uint32_t first_end  # behind its CR LF
    uint32_t size
    int kinds
    int minor
    int64_t content_length
    bint wants_close
    bint expects_continue
    Span host  # Host field, port and all; empty when absent
    uint32_t host_end  # of the name in it; 0: it is not canonical
    Field inlined[INLINE]


@cython.final
cdef class Limits:
    """What a listener accepts of one head: bytes in all, of the first line, of one field line, and how many fields."""

    cdef readonly Py_ssize_t max_head, max_request_line, max_field, max_fields

    def __init__(self, Py_ssize_t max_head=32 * 1024, Py_ssize_t max_request_line=8 * 1024, Py_ssize_t max_field=16 * 1024, Py_ssize_t max_fields=100):
        if max_head > 1 << 30:
            raise ValueError("max_head must be at most 1 GiB")
        self.max_head, self.max_request_line, self.max_field, self.max_fields = max_head, max_request_line, max_field, max_fields

    def _key(self):
        return self.max_head, self.max_request_line, self.max_field, self.max_fields

    def __eq__(self, other):
        return isinstance(other, Limits) and self._key() == (<Limits>other)._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        return f"Limits(max_head={self.max_head}, max_request_line={self.max_request_line}, max_field={self.max_field}, max_fields={self.max_fields})"


cdef Limits RESPONSE_LIMITS = Limits(max_head=64 * 1024, max_request_line=8 * 1024, max_field=64 * 1024, max_fields=200)


cdef int _kind(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    """The kind of a field whose name has no underscore; the same as ``kinds.kind_of``."""
    cdef unsigned char c = p[0] | 0x20
    if c == b"x":
        if n < 9 or p[1] != b"-":
            return 0
        if n == 9:
            return CLAIM if TP_IS(p, b"x-real-ip") else 0
        if TP_IS(p, b"x-revproxy"):
            return INTERNAL
        if n == 12 and TP_IS(p, b"x-request-id"):
            return REQUEST_ID
        if n >= 11 and TP_IS(p, b"x-internal-"):
            return INTERNAL
        if n == 13 and TP_IS(p, b"x-rewrite-url"):
            return CLAIM
        if n >= 13 and TP_IS(p, b"x-client-cert"):
            return INTERNAL
        if n == 14 and TP_IS(p, b"x-original-url"):
            return CLAIM
        if (n == 13 and TP_IS(p, b"x-http-method")) or (n == 17 and TP_IS(p, b"x-method-override")) or (
                n == 22 and TP_IS(p, b"x-http-method-override")):
            return CONDITIONS
        if n >= 12 and TP_IS(p, b"x-forwarded-"):
            if (n == 15 and TP_IS(p, b"x-forwarded-for")) or (n == 17 and TP_IS(p, b"x-forwarded-proto")) or (
                    n == 16 and (TP_IS(p, b"x-forwarded-host") or TP_IS(p, b"x-forwarded-port"))):
                return FORWARDED
            return CLAIM
        return 0
    if n == 4:
        return HOST if c == b"h" and TP_IS(p, b"host") else DATE if c == b"d" and TP_IS(p, b"date") else 0
    if n == 10:
        return CONNECTION if c == b"c" and TP_IS(p, b"connection") else HOP if c == b"k" and TP_IS(p, b"keep-alive") else 0
    if n == 14:
        return LENGTH if c == b"c" and TP_IS(p, b"content-length") else HOP if c == b"h" and TP_IS(p, b"http2-settings") else 0
    if n == 6:
        return SERVER if c == b"s" and TP_IS(p, b"server") else EXPECT if c == b"e" and TP_IS(p, b"expect") else (
            CONDITIONS if c == b"p" and TP_IS(p, b"pragma") else 0)
    if n == 13:
        return CONDITIONS if (c == b"c" and TP_IS(p, b"cache-control")) or (c == b"a" and TP_IS(p, b"authorization")) or (
            c == b"i" and TP_IS(p, b"if-none-match")) else 0
    if n == 17:
        return CODING if c == b"t" and TP_IS(p, b"transfer-encoding") else CONDITIONS if c == b"i" and TP_IS(p, b"if-modified-since") else 0
    if n == 7:
        return HOP if (c == b"u" and TP_IS(p, b"upgrade")) or (c == b"t" and TP_IS(p, b"trailer")) else 0
    if n == 2:
        return HOP if c == b"t" and TP_IS(p, b"te") else 0
    if n == 3:
        return VIA if c == b"v" and TP_IS(p, b"via") else 0
    if n == 9:
        return FORWARDED if c == b"f" and TP_IS(p, b"forwarded") else 0
    if n == 16:
        return HOP if c == b"p" and TP_IS(p, b"proxy-connection") else 0
    if n == 19:
        return HOP if c == b"p" and TP_IS(p, b"proxy-authorization") else CONDITIONS if c == b"i" and TP_IS(p, b"if-unmodified-since") else 0
    if n == 5:
        return CONDITIONS if c == b"r" and TP_IS(p, b"range") else 0
    if n == 8:
        return CONDITIONS if c == b"i" and (TP_IS(p, b"if-match") or TP_IS(p, b"if-range")) else 0
    return 0


cdef inline bint _equal(const unsigned char* p, const unsigned char* q, Py_ssize_t n) noexcept nogil:
    """Whether n bytes are equal but for the case of ASCII letters."""
    cdef Py_ssize_t i
    for i in range(n):
        if tp_lower[p[i]] != tp_lower[q[i]]:
            return False
    return True


cdef inline bytes _slice(bytes raw, Py_ssize_t start, Py_ssize_t end):
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(raw) + start, end - start)


cdef inline bytes _keep(bytes data, Py_ssize_t size):
    """The bytes a head holds on to: `data` itself unless a large body follows in it."""
    return data if PyBytes_GET_SIZE(data) - size <= 512 else _slice(data, 0, size)


cdef inline void _init(Table* t) noexcept nogil:
    t.fields = t.inlined
    t.count = 0
    t.room = INLINE
    t.first = t.first_end = t.size = 0
    t.kinds = 0
    t.minor = 1
    t.content_length = -1
    t.wants_close = t.expects_continue = False
    t.host.start = t.host.end = t.host_end = 0


cdef inline void _free(Table* t) noexcept:
    if t.fields != t.inlined:
        PyMem_Free(t.fields)


cdef int _grow(Table* t) except -1:
    cdef Field* fields
    if t.fields == t.inlined:
        fields = <Field*>PyMem_Malloc(2 * t.room * sizeof(Field))
        if fields != NULL:
            memcpy(fields, t.fields, t.count * sizeof(Field))
    else:
        fields = <Field*>PyMem_Realloc(t.fields, 2 * t.room * sizeof(Field))
    if fields == NULL:
        raise MemoryError()
    t.fields = fields
    t.room *= 2
    return 0


cdef const char* _length(Table* t, const unsigned char* p, Py_ssize_t n) noexcept nogil:
    cdef uint64_t total = 0
    cdef Py_ssize_t i
    if t.kinds & LENGTH:
        return b"length_twice"
    if n < 1 or n > 19:
        return b"length"
    for i in range(n):
        if p[i] < 48 or p[i] > 57:
            return b"length"
        total = total * 10 + (p[i] - 48)
    if total > <uint64_t>0x7FFFFFFFFFFFFFFF:
        return b"length"
    if t.kinds & CODING:
        return b"length_and_coding"
    t.content_length = <int64_t>total
    return NULL


cdef const char* _options(const unsigned char* p, Py_ssize_t at, Py_ssize_t end, Span* options, int* count) noexcept nogil:
    """Adds the options of one Connection value to `options`."""
    cdef Py_ssize_t start, stop, n
    cdef int kind
    while at <= end:
        start = at
        while at < end and p[at] != b",":
            at += 1
        stop = at
        at += 1
        while start < stop and (p[start] == 32 or p[start] == 9):
            start += 1
        while stop > start and (p[stop - 1] == 32 or p[stop - 1] == 9):
            stop -= 1
        n = stop - start
        if not n:
            continue
        if count[0] >= MAX_OPTIONS:
            return b"connection_long"
        if (n == 4 and _equal(p + start, b"host", 4)) or (n == 14 and _equal(p + start, b"content-length", 14)) or (
                n == 17 and _equal(p + start, b"transfer-encoding", 17)):
            return b"connection_nominates"
        options[count[0]].start = <uint32_t>start
        options[count[0]].end = <uint32_t>stop
        count[0] += 1
    return NULL


cdef uint32_t _host_end(const unsigned char* p, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """Where the name ends in an authority that is canonical but for its port; 0 when it is not (it may be valid)."""
    cdef Py_ssize_t i = start, stop
    cdef int port = 0
    cdef unsigned char c, before = b"."
    if end - start > MAX_HOST:
        return 0
    while i < end:
        c = p[i]
        if c == b".":
            if before == b".":
                return 0
        elif not ((97 <= c <= 122) or (48 <= c <= 57) or c == b"-" or c == b"_"):
            break
        before = c
        i += 1
    stop = i
    if stop == start or before == b".":
        return 0
    if i < end:
        if p[i] != b":" or end - i < 2 or end - i > 6:
            return 0
        i += 1
        while i < end:
            if p[i] < 48 or p[i] > 57:
                return 0
            port = port * 10 + (p[i] - 48)
            i += 1
        if port < 1 or port > 65535:
            return 0
    return <uint32_t>stop


cdef str _read_fields(Table* t, bytes data, Py_ssize_t at, Limits limits, bint is_request):
    """Reads the field lines from `at` on: None when the head is complete, "" when not yet, else the rule that is broken."""
    cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data), i, end, name_end, value, stop
    cdef Py_ssize_t max_field = limits.max_field, max_head = limits.max_head
    cdef const unsigned char* found
    cdef const char* rule
    cdef unsigned char flags, c
    cdef int kind, option_count = 0
    cdef Span options[MAX_OPTIONS]
    cdef Field* field
    while True:
        found = <const unsigned char*>memchr(p + at, 10, n - at) if at < n else NULL
        if found == NULL:
            return odd_line(data, at, limits, t.count)
        end = found - p - 1  # of the line without CR LF, if it has a CR
        if end < at or p[end] != 13 or end - at > max_field or end + 2 > max_head:
            return odd_line(data, at, limits, t.count)
        if end == at:
            break
        if t.count >= limits.max_fields:
            return "fields_many"
        i = at
        flags = 0
        while i < end:
            c = tp_token[p[i]]
            if not c:
                break
            flags |= c
            i += 1
        name_end = i
        if i == at or i == end or p[i] != 58:
            return odd_line(data, at, limits, t.count)
        i += 1
        while i < end and (p[i] == 32 or p[i] == 9):
            i += 1
        value = i
        if tp_skip_value(p + i, p + end) != p + end:
            return odd_line(data, at, limits, t.count)
        stop = end
        while stop > value and (p[stop - 1] == 32 or p[stop - 1] == 9):
            stop -= 1
        if name_end - at > MAX_NAME:
            return "field_long"
        kind = kind_of(_slice(data, at, name_end).lower()) if flags & 2 else _kind(p + at, name_end - at)
        if kind & (HOST | LENGTH | CODING | CONNECTION | EXPECT):
            rule = NULL
            if kind == HOST:
                if is_request:
                    if t.kinds & HOST:
                        return "host_twice"
                    t.host.start = <uint32_t>value
                    t.host.end = <uint32_t>stop
                    t.host_end = _host_end(p, value, stop)
                    if not t.host_end and host_of(_slice(data, value, stop)) is None:
                        return "host"
            elif kind == CONNECTION:
                rule = _options(p, value, stop, options, &option_count)
            elif kind == LENGTH:
                rule = _length(t, p + value, stop - value)
            elif kind == CODING:
                if t.kinds & CODING:
                    rule = b"coding_twice"
                elif stop - value != 7 or not _equal(p + value, b"chunked", 7):
                    return coding_rule(_slice(data, value, stop))
                elif not t.minor:
                    rule = b"coding_old"
                elif t.kinds & LENGTH:
                    rule = b"length_and_coding"
            elif is_request:  # Expect
                if stop - value != 12 or not _equal(p + value, b"100-continue", 12):
                    rule = b"expectation"
                else:
                    t.expects_continue = t.minor == 1
            if rule != NULL:
                return rule.decode("ascii")
        t.kinds |= kind
        if t.count == t.room:
            _grow(t)
        field = &t.fields[t.count]
        field.name = <uint32_t>at
        field.value = <uint32_t>value
        field.end = <uint32_t>stop
        field.name_size = <uint16_t>(name_end - at)
        if stop == end and value == name_end + 2 and p[name_end + 1] == 32:
            kind |= TIDY
        field.kind = <uint16_t>kind
        t.count += 1
        at = end + 2
    t.size = <uint32_t>(at + 2)
    if option_count:
        _nominate(t, p, options, option_count)
    else:
        t.wants_close = not t.minor
    return None


cdef void _nominate(Table* t, const unsigned char* p, Span* options, int count) noexcept nogil:
    """What the Connection options mean, once all fields are known."""
    cdef int i, j
    cdef uint32_t n
    cdef const unsigned char* option
    cdef bint close = False, keep_alive = False
    for i in range(count):
        option = p + options[i].start
        n = options[i].end - options[i].start
        if n == 5 and _equal(option, b"close", 5):
            close = True
        elif n == 10 and _equal(option, b"keep-alive", 10):
            keep_alive = True
        for j in range(t.count):
            if t.fields[j].name_size == n and _equal(p + t.fields[j].name, option, n):
                t.fields[j].kind |= NOMINATED
                t.kinds |= NOMINATED
    t.wants_close = close or (not t.minor and not keep_alive)


cdef bytes _upgrade(Table* t, bytes raw):
    """The protocol of the only Upgrade field, when it is nominated."""
    cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(raw)
    cdef int i, found = -1
    if not t.kinds & NOMINATED or not t.minor:
        return None
    for i in range(t.count):
        if t.fields[i].name_size == 7 and t.fields[i].kind & HOP and t.fields[i].kind & NOMINATED and _equal(p + t.fields[i].name, b"upgrade", 7):
            if found >= 0:
                return None
            found = i
    return None if found < 0 else protocol_of(_slice(raw, t.fields[found].value, t.fields[found].end))


cdef inline int _find(Table* t, bytes raw, bytes name, int start) except -2:
    """Index of the first field of that name from `start` on, or -1."""
    cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(raw)
    cdef const unsigned char* q = <const unsigned char*>PyBytes_AS_STRING(name)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(name), j
    cdef Field* field
    cdef int i
    for i in range(start, t.count):
        field = &t.fields[i]
        if field.name_size == n:
            for j in range(n):
                if tp_lower[p[field.name + j]] != q[j]:
                    break
            else:
                return i
    return -1


cdef object _get(Table* t, bytes raw, bytes name):
    cdef int i = _find(t, raw, name, 0)
    return None if i < 0 else _slice(raw, t.fields[i].value, t.fields[i].end)


cdef list _get_all(Table* t, bytes raw, bytes name):
    cdef list found = []
    cdef int i = _find(t, raw, name, 0)
    while i >= 0:
        found.append(_slice(raw, t.fields[i].value, t.fields[i].end))
        i = _find(t, raw, name, i + 1)
    return found


cdef list _pairs(Table* t, bytes raw):
    cdef list pairs = []
    cdef Field* field
    cdef int i
    for i in range(t.count):
        field = &t.fields[i]
        pairs.append((_slice(raw, field.name, field.name + field.name_size), _slice(raw, field.value, field.end)))
    return pairs


cdef bytes _write(Table* t, bytes raw, bytes start_line, int drop, tuple remove, bytes tail):
    """First line, the fields neither masked nor removed, tail."""
    cdef const char* p = PyBytes_AS_STRING(raw)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(tail), n, run
    cdef Field* field
    cdef char* w
    cdef bytes out, name
    cdef int i, j
    size += t.first_end - t.first if start_line is None else PyBytes_GET_SIZE(start_line)
    drop &= KINDS
    for i in range(t.count):
        field = &t.fields[i]
        if field.kind & drop:
            field.kind &= <uint16_t>~STAYS
        else:
            field.kind |= STAYS
    for name in remove:
        if name is None:
            raise TypeError("a field name to remove is None")
        j = _find(t, raw, name, 0)
        while j >= 0:
            t.fields[j].kind &= <uint16_t>~STAYS
            j = _find(t, raw, name, j + 1)
    for i in range(t.count):
        field = &t.fields[i]
        if field.kind & STAYS:
            size += field.name_size + (field.end - field.value) + 4
    out = PyBytes_FromStringAndSize(NULL, size)
    w = PyBytes_AS_STRING(out)
    if start_line is None:
        n = t.first_end - t.first
        memcpy(w, p + t.first, n)
    else:
        n = PyBytes_GET_SIZE(start_line)
        memcpy(w, PyBytes_AS_STRING(start_line), n)
    w += n
    i = 0
    while i < t.count:
        field = &t.fields[i]
        i += 1
        if not field.kind & STAYS:
            continue
        if field.kind & TIDY:
            # Tidy neighbours that stay are one run of bytes.
            run = field.name
            while i < t.count and (t.fields[i].kind & (STAYS | TIDY)) == (STAYS | TIDY):
                i += 1
            n = t.fields[i - 1].end + 2 - run
            memcpy(w, p + run, n)
            w += n
        else:
            memcpy(w, p + field.name, field.name_size)
            w += field.name_size
            w[0] = 58
            w[1] = 32
            n = field.end - field.value
            memcpy(w + 2, p + field.value, n)
            w[n + 2] = 13
            w[n + 3] = 10
            w += n + 4
    memcpy(w, PyBytes_AS_STRING(tail), PyBytes_GET_SIZE(tail))
    return out


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class RequestHead:
    """A request; see ``messages.RequestHead``."""

    cdef bytes raw, _method, _target, _host, _authority, _path, _query
    cdef readonly bytes upgrade
    cdef readonly bint is_canonical
    cdef Table t
    cdef uint32_t target_start, target_end, path_end

    def __cinit__(self):
        _init(&self.t)

    def __init__(self):
        raise TypeError("heads come from parse_request")

    def __dealloc__(self):
        _free(&self.t)

    @property
    def size(self): return self.t.size
    @property
    def minor(self): return self.t.minor
    @property
    def content_length(self): return self.t.content_length
    @property
    def is_chunked(self): return (self.t.kinds & CODING) != 0
    @property
    def wants_close(self): return self.t.wants_close
    @property
    def expects_continue(self): return self.t.expects_continue
    @property
    def kinds(self): return self.t.kinds

    @property
    def body_length(self):
        return CHUNKED if self.t.kinds & CODING else self.t.content_length if self.t.content_length > 0 else NO_BODY

    @property
    def method(self): return self._method

    @property
    def target(self):
        if self._target is None:
            self._target = _slice(self.raw, self.target_start, self.target_end)
        return self._target

    @property
    def path(self):
        if self._path is None:
            self._path = _slice(self.raw, self.target_start, self.path_end)
        return self._path

    @property
    def query(self):
        if self._query is None:
            self._query = b"" if self.path_end >= self.target_end else _slice(self.raw, self.path_end + 1, self.target_end)
        return self._query

    @property
    def authority(self):
        if self._authority is None:
            self._authority = _slice(self.raw, self.t.host.start, self.t.host.end)
        return self._authority

    @property
    def host(self):
        if self._host is None:
            if not self.t.host.end:
                self._host = b""
            elif self.t.host_end:
                self._host = _slice(self.raw, self.t.host.start, self.t.host_end)
            else:
                self._host = host_of(self.authority)
        return self._host

    def get(self, bytes name not None):
        """Value of the first field of that (lower-case) name."""
        return _get(&self.t, self.raw, name)

    def get_all(self, bytes name not None):
        """Values of all fields of that (lower-case) name, in order."""
        return _get_all(&self.t, self.raw, name)

    def fields(self):
        """(name as sent, value) in order."""
        return iter(_pairs(&self.t, self.raw))

    def write_h1(self, bytes start_line, int drop, tuple remove not None, bytes tail not None):
        """First line, the fields neither masked nor removed, tail."""
        return _write(&self.t, self.raw, start_line, drop, remove, tail)

    def log_pieces(self):
        """(method, target, version, Referer, User-Agent) when they are short and plain; else None."""
        cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(self.raw)
        cdef Field* referer = NULL
        cdef Field* agent = NULL
        cdef Field* field
        cdef int i
        cdef Py_ssize_t total = PyBytes_GET_SIZE(self._method) + (self.target_end - self.target_start)
        for i in range(self.t.count):
            field = &self.t.fields[i]
            if field.name_size == 7 and referer == NULL and TP_IS(p + field.name, b"referer"):
                referer = field
                total += field.end - field.value
            elif field.name_size == 10 and agent == NULL and TP_IS(p + field.name, b"user-agent"):
                agent = field
                total += field.end - field.value
        if total > MAX_LOG_PIECES or not tp_plain(p + self.target_start, self.target_end - self.target_start) or (
                referer != NULL and not tp_plain(p + referer.value, referer.end - referer.value)) or (
                agent != NULL and not tp_plain(p + agent.value, agent.end - agent.value)):
            return None
        return (
            "GET" if self._method is GET else "POST" if self._method is POST else _text(self.raw, self.t.first, self.target_start - 1),
            _text(self.raw, self.target_start, self.target_end),
            "HTTP/1.1" if self.t.minor else "HTTP/1.0",
            None if referer == NULL else _text(self.raw, referer.value, referer.end),
            None if agent == NULL else _text(self.raw, agent.value, agent.end),
        )


cdef inline str _text(bytes raw, Py_ssize_t start, Py_ssize_t end):
    return PyUnicode_DecodeASCII(PyBytes_AS_STRING(raw) + start, end - start, NULL)


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class ResponseHead:
    """A response; see ``messages.ResponseHead``."""

    cdef bytes raw
    cdef readonly bytes upgrade
    cdef readonly int status
    cdef Table t

    def __cinit__(self):
        _init(&self.t)

    def __init__(self):
        raise TypeError("heads come from parse_response")

    def __dealloc__(self):
        _free(&self.t)

    @property
    def size(self): return self.t.size
    @property
    def minor(self): return self.t.minor
    @property
    def content_length(self): return self.t.content_length
    @property
    def is_chunked(self): return (self.t.kinds & CODING) != 0
    @property
    def wants_close(self): return self.t.wants_close
    @property
    def kinds(self): return self.t.kinds

    def get(self, bytes name not None):
        """Value of the first field of that (lower-case) name."""
        return _get(&self.t, self.raw, name)

    def get_all(self, bytes name not None):
        """Values of all fields of that (lower-case) name, in order."""
        return _get_all(&self.t, self.raw, name)

    def fields(self):
        """(name as sent, value) in order."""
        return iter(_pairs(&self.t, self.raw))

    def write_h1(self, bytes start_line, int drop, tuple remove not None, bytes tail not None):
        """First line, the fields neither masked nor removed, tail."""
        return _write(&self.t, self.raw, start_line, drop, remove, tail)

    def body_length_for(self, bytes method not None):
        """How long the body of this answer to a request of that method is (RFC 9112 6.3)."""
        if self.status < 200 or self.status == 204 or self.status == 304 or method == b"HEAD":
            return NO_BODY
        if self.t.kinds & CODING:
            return CHUNKED
        return self.t.content_length if self.t.content_length >= 0 else UNTIL_CLOSE


cdef bytes GET = b"GET", POST = b"POST", HEAD = b"HEAD"


cdef bint _request_line(RequestHead head, const unsigned char* p, Py_ssize_t i, Py_ssize_t end) noexcept:
    """Recognises METHOD SP TARGET SP HTTP/1.x in [i, end) and notes the target; False when it is not exactly that."""
    cdef Py_ssize_t start = i
    while i < end and tp_token[p[i]]:
        i += 1
    if i == start or i - start > MAX_METHOD or i >= end or p[i] != 32:
        return False
    i += 1
    head.target_start = <uint32_t>i
    if end - i < 10:  # one byte of target, SP, HTTP/1.x
        return False
    end -= 9
    while i < end and 32 < p[i] < 127:
        i += 1
    if i != end:
        return False
    head.target_end = head.path_end = <uint32_t>end
    if p[end] != 32 or p[end + 1] != 72 or p[end + 2] != 84 or p[end + 3] != 84 or p[end + 4] != 80 or p[end + 5] != 47 or p[end + 6] != 49 or p[end + 7] != 46:
        return False
    if p[end + 8] != 48 and p[end + 8] != 49:
        return False
    head.t.minor = p[end + 8] - 48
    return True


cdef bint _is_canonical(RequestHead head, const unsigned char* p) noexcept:
    """Whether the target is origin-form and spelled as ``paths.canonical_path`` would; notes where its path ends."""
    cdef Py_ssize_t i = head.target_start, end = head.target_end
    cdef unsigned char c
    if p[i] != 47:
        return False
    while i < end:
        c = tp_path[p[i]]
        if c == 2:
            if i + 1 < end and (p[i + 1] == 47 or p[i + 1] == 46):
                return False
        elif not c:
            break
        i += 1
    if i < end:
        if p[i] != 63 or memchr(p + i, 35, end - i) != NULL:
            return False
    head.path_end = <uint32_t>i
    return True


def parse_request(bytes data not None, Limits limits not None):
    """The head at the beginning of `data`; None when it is incomplete so far and breaks no rule. Raises BadHead, HeadTooLarge."""
    cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data), start = 0, end, method_size
    cdef const unsigned char* found
    cdef RequestHead head
    cdef str rule
    if n and p[0] == 13:
        if n == 1:
            return None
        if p[1] != 10:
            raise refuse_request("bare_cr")
        start = 2
    found = <const unsigned char*>memchr(p + start, 10, n - start) if start < n else NULL
    end = found - p - 1 if found != NULL else -1
    head = RequestHead.__new__(RequestHead)
    if found == NULL or end < start or p[end] != 13 or end - start > limits.max_request_line or end + 2 > limits.max_head or (
            not _request_line(head, p, start, end)):
        rule = first_line(data, start, limits, True)[1]
        if rule is not None:
            raise refuse_request(rule)
        if found != NULL:
            raise refuse_request("version_form")  # the two codecs disagree: fail closed
        return None
    head.t.first = <uint32_t>start
    head.t.first_end = <uint32_t>(end + 2)
    method_size = head.target_start - 1 - start
    if method_size == 3 and p[start] == 71 and p[start + 1] == 69 and p[start + 2] == 84:
        head._method = GET
    elif method_size == 4 and p[start] == 80 and p[start + 1] == 79 and p[start + 2] == 83 and p[start + 3] == 84:
        head._method = POST
    elif method_size == 4 and p[start] == 72 and p[start + 1] == 69 and p[start + 2] == 65 and p[start + 3] == 68:
        head._method = HEAD
    else:
        head._method = _slice(data, start, head.target_start - 1)
    head.is_canonical = head.t.minor == 1
    if (method_size == 7 and head._method == b"CONNECT") or not _is_canonical(head, p):
        _odd_target(head, _slice(data, head.target_start, head.target_end))
    rule = _read_fields(&head.t, data, end + 2, limits, True)
    if rule is not None:
        if rule:
            raise refuse_request(rule)
        return None
    if head.t.minor and not head.t.kinds & HOST:
        raise refuse_request("host_missing")
    head.raw = _keep(data, head.t.size)
    if head.t.kinds & NOMINATED:
        head.upgrade = _upgrade(&head.t, head.raw)
    return head


cdef int _odd_target(RequestHead head, bytes target) except -1:
    """A target that is not a canonical path: what it means, or why it is refused."""
    found = read_target(head._method, target)
    if isinstance(found, str):
        raise refuse_request(found)
    authority, head._path, head._query = found
    head._target = target
    if authority is not None:
        head._authority = authority
        head._host = host_of(authority)
    head.is_canonical = head.is_canonical and authority is None and target.partition(b"?")[0] == head._path
    return 0


def parse_response(bytes data not None, Limits limits=None):
    """The head at the beginning of `data`; None when it is incomplete so far and breaks no rule. Raises BadResponse."""
    cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data), end
    cdef const unsigned char* found = <const unsigned char*>memchr(p, 10, n) if n else NULL
    cdef ResponseHead head
    cdef str rule
    if limits is None:
        limits = RESPONSE_LIMITS
    end = found - p - 1 if found != NULL else -1
    if end < 12 or p[end] != 13 or end > limits.max_request_line or end + 2 > limits.max_head or not _status_line(p, end):
        rule = first_line(data, 0, limits, False)[1]
        if rule is not None:
            raise refuse_response(rule)
        if found != NULL:
            raise refuse_response("status_line")  # the two codecs disagree: fail closed
        return None
    head = ResponseHead.__new__(ResponseHead)
    head.t.minor = p[7] - 48
    head.status = (p[9] - 48) * 100 + (p[10] - 48) * 10 + p[11] - 48
    head.t.first_end = <uint32_t>(end + 2)
    rule = _read_fields(&head.t, data, end + 2, limits, False)
    if rule is not None:
        if rule:
            raise refuse_response(rule)
        return None
    head.raw = _keep(data, head.t.size)
    if head.t.kinds & NOMINATED:
        head.upgrade = _upgrade(&head.t, head.raw)
    return head


cdef bint _status_line(const unsigned char* p, Py_ssize_t end) noexcept:
    """Recognises HTTP/1.x SP status [SP reason] in [0, end); end is at least 12."""
    if p[0] != 72 or p[1] != 84 or p[2] != 84 or p[3] != 80 or p[4] != 47 or p[5] != 49 or p[6] != 46 or (p[7] != 48 and p[7] != 49) or p[8] != 32:
        return False
    if not (49 <= p[9] <= 57 and 48 <= p[10] <= 57 and 48 <= p[11] <= 57) or (end > 12 and p[12] != 32):
        return False
    return tp_skip_value(p + 12, p + end) == p + end


cdef Py_ssize_t _hex_end(const unsigned char* p, Py_ssize_t at, Py_ssize_t n, Py_ssize_t* size) noexcept nogil:
    """Reads a chunk size of at most 15 digits and its CR LF: where the data begins; 0 when it is not exactly that or the size is 0."""
    cdef Py_ssize_t total = 0, i = at
    cdef unsigned char c
    while i < n and i - at < 15:
        c = p[i]
        if 48 <= c <= 57:
            total = total * 16 + (c - 48)
        elif 97 <= (c | 32) <= 102:
            total = total * 16 + ((c | 32) - 87)
        else:
            break
        i += 1
    if i == at or not total or n - i < 2 or p[i] != 13 or p[i + 1] != 10:
        return 0
    size[0] = total
    return i + 2


def take_chunks(bytes data not None, Py_ssize_t at):
    """(payload, where it ends) of the complete, non-empty chunks without extensions that follow one another from `at` on."""
    cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data), end = at, total = 0, size = 0, start
    cdef char* w
    cdef bytes out
    if at < 0 or at >= n:
        return b"", at
    while True:
        start = _hex_end(p, end, n, &size)
        if not start or size > n - start - 2 or p[start + size] != 13 or p[start + size + 1] != 10:
            break
        total += size
        end = start + size + 2
    if not total:
        return b"", at
    out = PyBytes_FromStringAndSize(NULL, total)
    w = PyBytes_AS_STRING(out)
    while at < end:
        start = _hex_end(p, at, end, &size)
        memcpy(w, p + start, size)
        w += size
        at = start + size + 2
    return out, end
