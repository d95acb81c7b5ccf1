"""The shared HTTP cache (RFC 9111): what may be kept, for whom, and for how long.

    request ─▶ policy.may_use ─▶ keys.primary ─▶ (a store) ─▶ Stored ─▶ policy.usable ─▶ conditional, ranges ─▶ Stored.head
    answer  ─▶ policy.storable ─▶ Freshness ─▶ policy.store ─▶ Stored ─▶ (a store)      └─ status: the Cache-Status field

The files that decide are pure: no sockets, no files, no clock; times are seconds since the epoch, handed in.

    control      Cache-Control, CDN-Cache-Control, Expires, Age and dates: bytes to values, strict and bounded
    policy       may this request use the cache, may this answer be kept, may this copy be sent now
    freshen      what becomes of copies afterwards: conditional requests, 304 answers, unsafe methods
    stored       one kept answer without its body, and its bytes for a store
    keys         what distinguishes one thing from another: the primary key, variants by Vary
    conditional  If-Match, If-None-Match, If-Modified-Since … of a client, answered from a copy
    ranges       parts of a complete body: which, and how they are framed
    status       the Cache-Status field (RFC 9211)
"""
