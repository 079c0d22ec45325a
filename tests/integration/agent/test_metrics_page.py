"""Claims about ``/metrics`` of a real agent that has done a bit of everything."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.promlint import parse, problems

_DOCS = Path(__file__).parents[3] / "docs/metrics.md"


async def test_the_page_of_a_busy_agent_keeps_the_conventions_and_its_docs(
    daemon: Daemon, controller: FakeController
) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    daemon.send(capture_datagrams(CAPTURE))
    await daemon.until(lambda r: r["counters"]["rows_flagged"] > 50)
    page = daemon.metrics_page()
    assert problems(page) == []
    kinds = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", _DOCS.read_text(), re.MULTILINE))
    assert {name: metric.kind for name, metric in parse(page).items()}.items() <= kinds.items()
    latency = {name: value for name, _, value in parse(page)["vedette_agent_inference_latency_seconds"].series}
    mean_s = (
        latency["vedette_agent_inference_latency_seconds_sum"]
        / latency["vedette_agent_inference_latency_seconds_count"]
    )
    slot = daemon.report()["slots"]["flow-threat"]
    # Of a histogram whose bins are a third wide the percentiles are edges, and the mean lies between their extremes.
    assert 0 < mean_s * 1000 <= slot["latency_p99_ms"] * 2
