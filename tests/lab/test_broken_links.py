"""Links that break without saying so, or over and over: both ends know soon, agents infer on, nothing counts twice."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import BRISK, Lab
from tests.lab.models import flow_model

_KNOWN_WITHIN_S = 15
_ASKING_S = 3.0  # how long a command takes that asks on a busy machine
_SESSIONS = "vedette_agent_link_sessions_total"


def _serving(lab: Lab) -> Host:
    edge = lab.agent("edge-1", settings=BRISK)
    lab.roll_out(lab.register(flow_model()))
    return edge


def _knows(lab: Lab, agent: Host) -> bool:
    return bool(lab.status(agent)["link"]["state"] != "connected")


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
    begun = time.monotonic()
    known: dict[str, float] = {}

    def is_known_at_both() -> bool:
        if "agent" not in known and _knows(lab, edge):
            known["agent"] = time.monotonic() - begun
        if "controller" not in known and lab.fleet()["edge-1"]["state"] == "silent":
            known["controller"] = time.monotonic() - begun
        return len(known) == 2

    wait_until("both ends know", is_known_at_both, 2 * _KNOWN_WITHIN_S)
    record_property("known after", ", ".join(f"{took:.1f} s at the {end}" for end, took in known.items()))
    assert max(known.values()) < _KNOWN_WITHIN_S + _ASKING_S
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
