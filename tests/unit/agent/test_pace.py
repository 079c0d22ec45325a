"""Claims about how fast something goes just now."""

from __future__ import annotations

import pytest

from vedette.agent.domain.pace import WINDOW_S, Pace
from vedette.agent.domain.report import models_text


def test_a_steady_flow_has_its_own_rate_and_one_that_stopped_has_none() -> None:
    pace = Pace()
    for second in range(60):
        pace.add(float(second), 32_000)
    assert pace.per_second(59.0) == 32_000
    assert pace.per_second(59.0 + WINDOW_S / 2) == 16_000
    assert pace.per_second(59.0 + WINDOW_S) == 0.0


@pytest.mark.parametrize(
    ("bytes_per_s", "shown"), [(31_250, "downloading 62 % of 5 MiB, 31.2 kB/s"), (0, "downloading 62 % of 5 MiB ")]
)
def test_a_download_is_shown_with_its_share_and_its_rate(bytes_per_s: int, shown: str) -> None:
    slot = {
        "slot": "flow-threat",
        "state": "downloading",
        "candidate_bytes_done": 3_300_000,
        "candidate_bytes_total": 5 * 2**20,
        "active": None,
        "previous": None,
        "rows": 0,
        "reason": "",
        "quarantined": [],
    }
    text = models_text({"slots": {"flow-threat": slot}, "download_bytes_per_s": bytes_per_s})
    assert shown in text
