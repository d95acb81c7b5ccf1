"""P1 inside: what a client hears of a worker that cannot keep up."""

from __future__ import annotations

import script
from stage import Inside

from twistedproxy.errors import Overloaded


def test_P1_who_is_refused_for_overload_is_told_when_to_come_back_and_keeps_the_connection() -> None:
    """503 with Retry-After at once, counted and logged as a limit; the server is not asked, and a later request is served."""
    stage = Inside()
    player = script.Player(stage)
    player.play("server answers by itself")
    player.play("client asks GET /")
    player.play("client is answered 200 ok")
    (place,) = stage.worker.places.values()
    place.front.shed(1.0, Overloaded("too much"))
    player.play("client asks GET /")
    player.play("client is answered 503")
    player.play("proxy counts overloaded 1")
    player.play("proxy logs 503 limit/queue")
    player.play("server saw 1 to 1")
    player.play("proxy waits 0.3s")
    player.play("client asks GET /")
    player.play("client is answered 200 ok")
    stage.finish()
