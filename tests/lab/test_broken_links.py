"""Links that break without saying so, or over and over: both ends know soon, agents infer on, nothing counts twice."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, BRISK, CONTROLLER, Lab
from tests.lab.models import flow_model

_KNOWN_WITHIN_S = 15
_BUSY_S = 1.0  # of a machine that others use too
_SESSIONS = "vedette_agent_link_sessions_total"


def _serving(lab: Lab) -> Host:
    edge = lab.agent("edge-1", settings=BRISK)
    lab.roll_out(lab.register(flow_model()))
    return edge


def _knows(lab: Lab, agent: Host) -> bool:
    return bool(lab.status(agent)["link"]["state"] != "connected")


def _told_after(begun: float, host: Host, unit: str, words: str) -> float:
    """Return how many seconds after an instant a unit's journal has a message."""
    told = [(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, entry["MESSAGE"]) for entry in host.journal(unit)]
    return next(at - begun for at, text in told if at > begun and words in text)


@pytest.mark.parametrize(
    "deaf", [("to", "from"), ("to",), ("from",)], ids=["either way", "towards the controller", "towards the agent"]
)
def test_a_line_that_falls_mute_is_known_at_both_ends_in_15_s(
    lab: Lab, deaf: tuple[str, ...], record_property: Any
) -> None:
    controller = lab.controller()
    edge = _serving(lab)
    traffic = lab.traffic(edge)
    wait_until("the controller counts", lambda: lab.rows_counted(edge) > 0)

    controller.link.block(*deaf)
    begun = time.time()
    wait_until("the agent knows", lambda: _knows(lab, edge), 2 * _KNOWN_WITHIN_S)
    wait_until("the controller knows", lambda: lab.fleet()["edge-1"]["state"] == "silent", 2 * _KNOWN_WITHIN_S)
    at_agent = _told_after(begun, edge, AGENT, "no answer from the controller")
    at_controller = _told_after(begun, controller, CONTROLLER, "agent edge-1 disconnected")
    record_property("known after", f"{at_agent:.1f} s at the agent, {at_controller:.1f} s at the controller")
    assert max(at_agent, at_controller) < _KNOWN_WITHIN_S + _BUSY_S
    lab.await_verdicts(edge)
    wait_until("it says why it is alone", lambda: "controller-unreachable" in lab.conditions(edge))
    wait_until("telemetry waits", lambda: lab.metrics(edge)["vedette_agent_spool_bytes"])

    traffic.stop()
    controller.link.block()
    wait_until("the controller has it back", lambda: lab.fleet()["edge-1"]["state"] == "healthy", 60)
    wait_until("nothing waits any more", lambda: not lab.metrics(edge)["vedette_agent_spool_bytes"])
    wait_until("every scored flow is counted once", lambda: lab.rows_counted(edge) == lab.verdict_count(edge))
    assert lab.conditions(edge) == {}


def test_a_line_that_flaps_brings_one_session_each_time_and_no_storm(lab: Lab) -> None:
    times = 20 if lab.is_soak else 2
    controller = lab.controller()
    edge = _serving(lab)
    before = lab.metrics(edge)
    for _ in range(times):
        controller.link.down()
        wait_until("the agent knows", lambda: _knows(lab, edge), 40)
        controller.link.up()
        wait_until("it is back", lambda: lab.is_online(edge) and not _knows(lab, edge), 40)
    after = lab.metrics(edge)
    assert after[_SESSIONS] - before[_SESSIONS] == times
    tries = sum(value for name, value in after.items() if name.startswith("vedette_agent_link_failures_total"))
    assert times <= tries < 40 * times
    assert len(lab.fleet()) == 1
