"""Every file under cases/, played on a whole data plane in this process; the file's name says which row of the catalogue it is."""

from __future__ import annotations

import pytest
import script

ALL = script.all_cases()
VERDICTS = script.Verdicts()


@pytest.mark.parametrize("case", ALL, ids=[case.file.stem for case in ALL])
def test_case(case: script.Case) -> None:
    """The file's `says`."""
    script.play(case, "every", VERDICTS)


def test_the_oracles_can_fail() -> None:
    """A case that expects what does not happen fails, and says which oracle or step it was."""
    wrong = script.text("GET / HTTP/1.1\nHost: example.com\n\n")
    probe = script.Probe("x", wrong, (200,), (b"GET /other",), False, "", None, None, True, False, False, False, False)
    stage = script.Inside()
    with pytest.raises(script.Broken, match="O1"):
        script.play_probe(stage, probe, "none", script.Verdicts())
    stage.finish()
    player = script.Player(script.Inside())
    player.play("client asks GET /")
    player.play("server is asked GET /")
    player.stage.worker.metrics.listener("x").open = 1
    with pytest.raises(script.Broken, match="O3"):
        player.stage.finish()
