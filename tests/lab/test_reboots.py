"""Orderly reboots of either side, and a controller that is gone: nobody types anything, and nothing is lost."""

from __future__ import annotations

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, BRISK, CONTROLLER, SLOT, Lab
from tests.lab.models import flow_model


def test_a_rebooted_agent_serves_its_last_model_before_it_has_a_link(lab: Lab) -> None:
    controller = lab.controller()
    edge = lab.agent("edge-1", settings=BRISK)
    lab.roll_out(lab.register(flow_model()))
    lab.traffic(edge)
    edge.stop()
    controller.link.down()
    edge.boot()
    lab.await_verdicts(edge)
    assert edge.is_active(AGENT)
    assert lab.status(edge)["link"]["state"] != "connected"
    controller.link.up()
    wait_until("the controller has it back", lambda: lab.fleet()["edge-1"]["state"] == "healthy")
    told = edge.told(AGENT)
    ready = next(at for at, text in enumerate(told) if text.startswith("Started vedette-agent.service"))
    linked = next(at for at, text in enumerate(told) if text.startswith("connected to the controller"))
    assert ready < linked


def test_a_rebooted_controller_has_its_fleet_back_and_goes_on_with_its_rollout(lab: Lab) -> None:
    controller = lab.controller()
    edges = [lab.agent(name, labels={"site": name[-1]}, settings=BRISK) for name in ("edge-1", "edge-2")]
    lab.roll_out(lab.register(flow_model(-5.0)))
    before = {name: (agent["labels"], agent["state"]) for name, agent in lab.fleet().items()}
    rollout = lab.start_rollout(lab.register(flow_model(-4.0)), waves="1,100%", soak="4s")
    wait_until("the first wave soaks", lambda: _waves(lab, rollout)[0] == "soaking")
    controller.reboot()
    assert controller.is_active(CONTROLLER)
    assert lab.vedette(f"rollout watch {rollout}").ok
    assert [lab.active(edge) for edge in edges] == [f"{SLOT}:2"] * 2
    wait_until("all is as it was", lambda: _standing(lab) == before)


def _standing(lab: Lab) -> dict[str, tuple[dict[str, str], str]]:
    return {name: (agent["labels"], agent["state"]) for name, agent in lab.fleet().items()}


def _waves(lab: Lab, rollout: str) -> list[str]:
    return [wave["state"] for wave in lab.ask(f"rollout show {rollout}")["waves"]]


def test_what_an_agent_saw_while_the_controller_was_gone_is_counted_exactly_once(lab: Lab) -> None:
    controller = lab.controller()
    edge = lab.agent("edge-1", settings=BRISK)
    lab.roll_out(lab.register(flow_model()))
    traffic = lab.traffic(edge)
    wait_until("the controller counts", lambda: lab.rows_counted(edge) > 0)
    controller.kill()
    lab.await_verdicts(edge)
    edge.reboot()
    lab.await_verdicts(edge)
    wait_until("it says why it is alone", lambda: "controller-unreachable" in lab.conditions(edge))
    waiting = wait_until("telemetry waits", lambda: _spooled(edge))
    traffic.stop()
    assert waiting > 0
    controller.boot()
    wait_until("the agent is back", lambda: lab.fleet()["edge-1"]["state"] == "healthy")
    wait_until("nothing waits any more", lambda: not _spooled(edge))
    wait_until("every scored flow is counted", lambda: lab.rows_counted(edge) == lab.verdict_count(edge))
    assert lab.conditions(edge) == {}


def _spooled(agent: Host) -> int:
    program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
    lines = agent.run(["python3", "-c", program]).out.splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("vedette_agent_spool_bytes "))
