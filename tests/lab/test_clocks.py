"""Wrong clocks on either side: nothing that runs stops, and verdicts bear the right time where it is known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, BRISK, CONTROLLER, SLOT, Lab
from tests.lab.models import flow_model

_A_MINUTE = timedelta(minutes=1)


def test_an_agent_whose_clock_is_wrong_serves_connects_and_dates_its_verdicts_right(lab: Lab) -> None:
    lab.controller()
    edge = lab.agent("edge-1", settings=BRISK)
    lab.roll_out(lab.register(flow_model()))
    lab.traffic(edge, factor=4)
    edge.clock(AGENT, "@1970-01-02 00:00:00")
    _serves_rightly(lab, edge)
    assert "behind the controller's" in lab.conditions(edge)["clock-wrong"]
    edge.clock(AGENT, "+20y")
    wait_until("it notices the step", lambda: "ahead of" in lab.conditions(edge).get("clock-wrong", ""))
    edge.systemctl("restart", AGENT)
    _serves_rightly(lab, edge)
    assert "ahead of the controller's" in lab.conditions(edge)["clock-wrong"]
    lab.roll_out(lab.register(flow_model(-4.0)))
    edge.clock(AGENT, None)
    wait_until("nothing is wrong any more", lambda: lab.conditions(edge) == {})
    assert lab.active(edge) == f"{SLOT}:2"


def _serves_rightly(lab: Lab, edge: Host) -> None:
    wait_until("it is connected", lambda: "clock-wrong" in lab.conditions(edge))
    wait_until("the controller calls it healthy", lambda: lab.fleet()[edge.name]["state"] == "healthy")
    lab.await_verdicts(edge)
    newest = edge.run("tail -n 1 /var/log/vedette/verdicts.jsonl").data
    assert abs(datetime.fromisoformat(newest["timestamp"]) - datetime.now(UTC)) < _A_MINUTE


def test_agents_serve_on_and_take_versions_while_and_after_the_controllers_clock_is_a_year_ahead(lab: Lab) -> None:
    controller = lab.controller()
    edge = lab.agent("edge-1", settings=BRISK)
    lab.roll_out(lab.register(flow_model()))
    lab.traffic(edge, factor=4)
    controller.clock(CONTROLLER, "+365d")
    wait_until("the agent says that clocks differ", lambda: "clock-wrong" in lab.conditions(edge))
    lab.await_verdicts(edge)
    lab.roll_out(lab.register(flow_model(-4.0)))
    controller.clock(CONTROLLER, None)
    controller.systemctl("restart", CONTROLLER)
    wait_until("the clocks agree", lambda: lab.conditions(edge) == {})
    lab.roll_out(lab.register(flow_model(-3.0)))
    assert lab.active(edge) == f"{SLOT}:3"
    lab.await_verdicts(edge)
