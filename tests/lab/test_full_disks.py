"""Disks without a byte left, of either side: what serves serves on, what is refused says why, nobody needs to act."""

from __future__ import annotations

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, AGENT_STATE, BRISK, CONTROLLER, CONTROLLER_STATE, SLOT, VERDICTS, Lab
from tests.lab.models import flow_model
from tests.support.captures import CAPTURES

_RECOVERY_S = 90
"""A blocked assignment is tried again within a minute."""
_IMPORT = "data import --dataset lab --format flows /root/capture.pcap.gz"
_LOGS = "/var/log/vedette"


def _serving(lab: Lab, volume: str = "64M") -> Host:
    edge = lab.agent("edge-1", volume=volume, settings=BRISK)
    lab.roll_out(lab.register(flow_model(-5.0)))
    lab.traffic(edge)
    lab.await_verdicts(edge)
    return edge


def _wait_for(lab: Lab, edge: Host, code: str) -> str:
    return str(wait_until(f"{code} is told", lambda: lab.conditions(edge).get(code)))


def test_an_agent_whose_state_disk_is_full_serves_on_and_stops_the_rollout_with_its_reason(lab: Lab) -> None:
    lab.controller()
    edge = _serving(lab)
    disk = edge.volumes[AGENT_STATE]
    disk.fill()
    lab.await_verdicts(edge)
    version = lab.register(flow_model(-4.0))
    rollout = lab.start_rollout(version)
    wait_until("the rollout has stopped", lambda: _state(lab, rollout) == "stopped")
    shown = lab.vedette(f"rollout show {rollout}").out
    assert "edge-1" in shown
    assert "bytes free" in shown
    assert lab.active(edge) == f"{SLOT}:1"
    assert lab.is_online(edge)
    lab.await_verdicts(edge)

    disk.free()
    wait_until("nothing is wrong any more", lambda: lab.conditions(edge) == {}, _RECOVERY_S)
    lab.roll_out(version)
    assert lab.active(edge) == version
    lab.await_verdicts(edge)


def test_a_download_that_fills_the_state_disk_ends_by_itself_once_there_is_room(lab: Lab) -> None:
    controller = lab.controller()
    edge = _serving(lab)
    lab.agent("edge-2", labels={"ring": "new"}, settings=BRISK)
    version = lab.register(flow_model(-4.0, 4 << 20))
    lab.roll_out(version, to="ring=new")
    controller.link.limit("2mbit")
    lab.vedette("agent label edge-1 ring=new")
    partial = f"find {AGENT_STATE}/blobs/partial -type f -size +300k"
    wait_until("some of it is there", lambda: edge.run(partial).out)
    disk = edge.volumes[AGENT_STATE]
    disk.fill()
    text = wait_until("the controller has the reason", lambda: _told(lab, "edge-1").get("assignment-failed"))
    assert text.startswith("disk-full: ")
    assert lab.active(edge) == f"{SLOT}:1"
    lab.await_verdicts(edge)

    disk.free()
    wait_until("it takes the update by itself", lambda: lab.active(edge) == version, _RECOVERY_S)
    wait_until("nothing is wrong any more", lambda: lab.conditions(edge) == {}, _RECOVERY_S)


def _state(lab: Lab, rollout: str) -> str:
    return str(lab.ask(f"rollout show {rollout}")["state"])


def _told(lab: Lab, name: str) -> dict[str, str]:
    """Return what the controller knows to be wrong at an agent."""
    return {condition["code"]: condition["text"] for condition in lab.fleet()[name]["conditions"]}


def test_an_agent_that_boots_on_a_full_state_disk_serves_its_model_and_is_connected(lab: Lab) -> None:
    lab.controller()
    edge = _serving(lab)
    disk = edge.volumes[AGENT_STATE]
    edge.stop()
    disk.fill()
    edge.boot()
    assert edge.is_active(AGENT)
    lab.await_verdicts(edge)
    wait_until("it is connected", lambda: lab.is_online(edge))
    assert lab.active(edge) == f"{SLOT}:1"
    disk.fill()
    _wait_for(lab, edge, "spool-failed")

    disk.free()
    wait_until("nothing is wrong any more", lambda: lab.conditions(edge) == {}, _RECOVERY_S)
    counted = lab.rows_counted(edge)
    wait_until("telemetry goes on", lambda: lab.rows_counted(edge) > counted)


def test_a_full_disk_of_verdicts_costs_lines_that_are_counted_and_nothing_else(lab: Lab) -> None:
    lab.controller()
    edge = lab.with_package("edge-1", lab.packages.agent)
    edge.configure("agent", BRISK)
    disk = edge.add_volume(_LOGS, "16M")
    edge.boot()
    lab.enrol(edge, lab.token({}))
    lab.roll_out(lab.register(flow_model()))
    lab.traffic(edge)
    lab.await_verdicts(edge)

    disk.fill()
    assert VERDICTS in _wait_for(lab, edge, "sink-failed")
    wait_until("losses are counted", lambda: _lost(lab, edge) > 0)
    assert lab.fleet()["edge-1"]["state"] == "degraded"
    assert "cannot be written" in lab.vedette("agent show edge-1").out
    counted = lab.rows_counted(edge)
    wait_until("flows are scored and counted all the same", lambda: lab.rows_counted(edge) > counted)

    disk.free()
    wait_until("the condition is over", lambda: "sink-failed" not in lab.conditions(edge), _RECOVERY_S)
    lab.await_verdicts(edge)
    assert lab.verdicts(edge)  # every line is whole, also the one that the disk cut
    wait_until("the controller sees it healthy", lambda: lab.fleet()["edge-1"]["state"] == "healthy")


def _lost(lab: Lab, edge: Host) -> float:
    return lab.metrics(edge)['vedette_agent_sink_lost_total{sink="json",where="disk"}']


def test_a_controller_on_a_full_disk_keeps_its_fleet_refuses_by_name_and_counts_everything_later(lab: Lab) -> None:
    controller = lab.controller(volume="128M")
    edge = lab.agent("edge-1", settings=BRISK)
    lab.roll_out(lab.register(flow_model()))
    traffic = lab.traffic(edge)
    wait_until("the controller counts", lambda: lab.rows_counted(edge) > 0)
    disk = controller.volumes[CONTROLLER_STATE]
    sessions = lab.metrics(edge)["vedette_agent_link_sessions_total"]

    disk.fill()
    wait_until("telemetry waits at the agent", lambda: lab.metrics(edge)["vedette_agent_spool_bytes"])
    lab.await_verdicts(edge)
    assert lab.is_online(edge)
    assert lab.metrics(edge)["vedette_agent_link_sessions_total"] == sessions
    controller.put(CAPTURES / "shifted/softflowd-v9.pcap.gz", "/root/capture.pcap.gz")
    for refused in (_IMPORT, "model register /root/model.onnx --name other", "token create"):
        answer = lab.vedette(refused, check=False)
        assert (answer.ok, "no room" in answer.err) == (False, True), answer

    controller.systemctl("restart", CONTROLLER)
    disk.fill()
    wait_until("the agent is back", lambda: lab.is_online(edge))
    lab.await_verdicts(edge)
    traffic.stop()
    assert not lab.vedette(_IMPORT, check=False).ok

    disk.free()
    wait_until("nothing waits any more", lambda: not lab.metrics(edge)["vedette_agent_spool_bytes"], _RECOVERY_S)
    wait_until("every scored flow is counted once", lambda: lab.rows_counted(edge) == lab.verdict_count(edge))
    assert lab.vedette(_IMPORT).ok
    assert lab.register(flow_model(-4.0)) == f"{SLOT}:2"
    assert controller.unit(CONTROLLER, "NRestarts")["NRestarts"] == "0"
