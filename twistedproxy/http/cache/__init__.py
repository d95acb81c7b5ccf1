"""The shared HTTP cache (RFC 9111): what may be kept, for whom and for how long; where it is kept; how an answer gets there and out again.

    request ─▶ caching ─▶ cache.find ─▶ store ─▶ Entry ─▶ policy.usable ─▶ conditional, ranges ─▶ sending ─▶ client
                  │ not there, or to be renewed                                     ▲
                  └─▶ fills: the one that is on, or a new one ─▶ fetch ─▶ server    │ followers read as it comes
                        │ policy.storable, policy.store                             │
                        └─▶ memory, or a file that grows ───────────────────────────┘ ─▶ store, once it is whole

The files that decide are pure: no sockets, no files, no clock; times are seconds since the epoch, handed in.

    control      Cache-Control, CDN-Cache-Control, Expires, Age and dates: bytes to values, strict and bounded
    policy       may this request use the cache, may this answer be kept, may this copy be sent now
    freshen      what becomes of copies afterwards: conditional requests, 304 answers, unsafe methods
    stored       one kept answer without its body, and its bytes for a store
    keys         what distinguishes one thing from another: the primary key, variants by Vary
    conditional  If-Match, If-None-Match, If-Modified-Since … of a client, answered from a copy
    ranges       parts of a complete body: which, and how they are framed
    status       the Cache-Status field (RFC 9211)
    entries      what is kept under a key: an answer with its URL, or the list of a URL's variants
    purges       which kept answers are not to be given any more

The files that keep, shared by all workers of the machine:

    store        both tiers behind one face
    arena        memory: one mapped file of append-only logs with a lossy index (geometry, segments, places, checksum)
    disk         plain files (files, breaker)

The files that act, in a worker:

    cache        what is kept and on its way; keys of requests; what routes have to do with it
    ready        the way of nearly all hits
    caching      an exchange on a route with a cache
    sending      an exchange whose body is read from a fill or a file (kept)
    fills        one answer on its way; who follows it (fetch: its request)
    neighbours   fills of other workers
"""
