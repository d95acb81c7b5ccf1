"""What sites look like over plain HTTP: those that redirect to HTTPS do nothing else, and authorities find their challenges.

Pure: the routes of the redirect are ordinary routes, compiled by the same router, so a request pays nothing for any of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from twistedproxy.config.model import Respond, Route, Site

CHALLENGES = "/.well-known/acme-challenge/"


def plain_sites(sites: Iterable[Site], https_port: int, challenges: Mapping[str, str]) -> list[Site]:
    """`sites` for the listeners without TLS. `https_port`: where HTTPS is, 0 for nowhere; `challenges`: token to answer (RFC 8555 8.3)."""
    answers = tuple(
        Route(f"={CHALLENGES}{token}", respond=Respond(200, answer, "application/octet-stream")) for token, answer in challenges.items()
    )
    return [_plain(site, https_port, answers) for site in sites]


def _plain(site: Site, https_port: int, answers: tuple[Route, ...]) -> Site:
    if site.tls is None or site.tls.source != "auto":
        answers = ()
    if site.redirect_http and https_port:
        port = "" if https_port == 443 else f":{https_port}"
        redirect = Route("/", redirect=f"https://${{host}}{port}/", status=308)
        return replace(site, routes=(redirect, *answers), rules=(), maintenance=False, maintenance_set=None)
    return replace(site, routes=(*site.routes, *answers)) if answers else site
