"""Programs that hang, die or cannot start: who notices, what the journal says, and that it ends well by itself."""

from __future__ import annotations

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, BRISK, CONTROLLER, SLOT, Lab
from tests.lab.models import flow_model

_DEADLINE_S = 75  # of a batch it is a minute at most, by the pace of those before; then SIGKILL and a start
_WATCHDOG_S = 120  # WatchdogSec and what an abort and a start take, on a busy machine


def _serving(lab: Lab) -> Host:
    edge = lab.agent("edge-1", settings=BRISK)
    lab.roll_out(lab.register(flow_model()))
    lab.traffic(edge)
    lab.await_verdicts(edge)
    return edge


def test_a_frozen_agent_is_aborted_and_started_again_by_its_watchdog(lab: Lab) -> None:
    lab.controller()
    edge = _serving(lab)
    before = edge.main_pid(AGENT)
    edge.freeze(AGENT)
    wait_until("the watchdog has started another", lambda: _is_replaced(edge, AGENT, before), _WATCHDOG_S)
    lab.await_verdicts(edge)
    wait_until("the controller has it back", lambda: lab.fleet()["edge-1"]["state"] == "healthy")
    assert edge.unit(AGENT, "NRestarts")["NRestarts"] == "1"
    told = " ".join(edge.told(AGENT))
    assert "Watchdog timeout" in told
    assert "Failed with result 'watchdog'" in told
    assert len(_worker(edge).split()) == 1


def test_a_frozen_controller_is_aborted_and_started_again_by_its_watchdog(lab: Lab) -> None:
    controller = lab.controller()
    edge = _serving(lab)
    before = controller.main_pid(CONTROLLER)
    controller.freeze(CONTROLLER)
    wait_until("the agent says so", lambda: "controller-unreachable" in lab.conditions(edge), 60)
    lab.await_verdicts(edge)
    wait_until("the watchdog has started another", lambda: _is_replaced(controller, CONTROLLER, before), _WATCHDOG_S)
    wait_until("the agent is back", lambda: lab.fleet()["edge-1"]["state"] == "healthy")
    assert controller.unit(CONTROLLER, "NRestarts")["NRestarts"] == "1"
    assert "Watchdog timeout" in " ".join(controller.told(CONTROLLER))


def _is_replaced(host: Host, unit: str, before: int) -> bool:
    return host.is_active(unit) and host.main_pid(unit) not in (0, before)


def test_workers_that_die_or_hang_are_replaced_within_their_deadline(lab: Lab) -> None:
    lab.controller()
    edge = _serving(lab)
    main = edge.main_pid(AGENT)
    for times, name in enumerate(("KILL", "STOP"), 1):
        worker = _worker(edge)
        edge.run(["kill", f"-{name}", worker])
        wait_until("another worker runs", lambda worker=worker: _worker(edge) not in ("", worker), _DEADLINE_S)
        lab.await_verdicts(edge)
        wait_until("it is counted", lambda times=times: lab.status(edge)["slots"][SLOT]["worker_restarts"] == times)
        assert len(_warnings(edge)) == times, _warnings(edge)
    assert edge.main_pid(AGENT) == main
    assert lab.active(edge) == f"{SLOT}:1"
    assert lab.status(edge)["slots"][SLOT]["quarantined"] == []


def _warnings(edge: Host) -> list[str]:
    entries = edge.journal(AGENT)
    return [entry["MESSAGE"] for entry in entries if entry.get("VEDETTE_SLOT") == SLOT and entry["PRIORITY"] <= "4"]


def _worker(edge: Host) -> str:
    return edge.run(["pgrep", "-x", "vedette-worker"], check=False).out.strip()


def test_an_agent_with_wrong_settings_waits_longer_each_time_and_starts_once_they_are_right(lab: Lab) -> None:
    lab.controller()
    edge = _serving(lab)
    edge.put(BRISK.replace("retry_cap_s", "retry_cap"), "/etc/vedette/agent.toml")
    edge.systemctl("restart", AGENT, check=False)
    wait_until("it has failed four times", lambda: "this start waits 10 s" in " ".join(edge.told(AGENT)), 60)
    assert edge.unit(AGENT, "ActiveState", "StatusText")["ActiveState"] == "activating"
    said = " ".join(edge.told(AGENT))
    assert "this start waits 5 s" in said
    assert "link.retry_cap" in said
    assert "did you mean link.retry_cap_s?" in said
    edge.put(BRISK, "/etc/vedette/agent.toml")
    wait_until("it starts by itself", lambda: edge.is_active(AGENT))
    lab.await_verdicts(edge)


def test_a_controller_whose_port_is_taken_says_so_and_starts_once_it_is_free(lab: Lab) -> None:
    controller = lab.controller()
    edge = lab.agent("edge-1", settings=BRISK)
    controller.systemctl("stop", CONTROLLER)
    controller.run(["systemd-run", "--unit=squatter", "python3", "-m", "http.server", "7443"])
    wait_until("the port is taken", lambda: ":7443 " in controller.run("ss -ltn").out)
    controller.systemctl("start", CONTROLLER, check=False)
    wait_until("it was tried again", lambda: int(controller.unit(CONTROLLER, "NRestarts")["NRestarts"]) >= 1)
    assert "7443" in " ".join(text for text in controller.told(CONTROLLER) if "use" in text)
    controller.systemctl("stop", "squatter")
    wait_until("it starts by itself", lambda: controller.is_active(CONTROLLER))
    wait_until("the agent is back", lambda: lab.is_online(edge))
