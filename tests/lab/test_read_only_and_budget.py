"""Appliances with little: a ``/`` that nobody may write, a disk that fails, a model that is too large."""

from __future__ import annotations

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, AGENT_STATE, BRISK, SLOT, Lab
from tests.lab.models import flow_model

_TIGHT = BRISK + '[budget]\nmemory = "320MiB"\n'


def test_an_appliance_with_a_read_only_root_enrols_serves_and_reboots(lab: Lab) -> None:
    lab.controller()
    edge = lab.agent("edge-1", settings=BRISK, is_read_only=True)
    assert "Read-only file system" in edge.run("touch /etc/x", check=False).err
    lab.roll_out(lab.register(flow_model()))
    lab.traffic(edge)
    lab.await_verdicts(edge)
    edge.reboot()
    lab.await_verdicts(edge)
    wait_until("the controller has it back", lambda: lab.fleet()["edge-1"]["state"] == "healthy")
    assert lab.conditions(edge) == {}


def test_a_state_disk_that_turns_read_only_stops_no_model_and_is_told_of_until_a_boot_mends_it(lab: Lab) -> None:
    lab.controller()
    edge = lab.agent("edge-1", settings=BRISK, volume="64M")
    lab.roll_out(lab.register(flow_model()))
    lab.traffic(edge)
    lab.await_verdicts(edge)
    edge.volumes[AGENT_STATE].fail()
    wait_until("it says so", lambda: "state-read-only" in lab.conditions(edge))
    lab.await_verdicts(edge)
    wait_until("the controller says so", lambda: lab.fleet()["edge-1"]["state"] == "degraded")
    known = lab.rows_counted(edge)
    wait_until("telemetry goes on", lambda: lab.rows_counted(edge) > known)
    edge.systemctl("restart", AGENT)
    lab.await_verdicts(edge)
    edge.reboot()
    lab.await_verdicts(edge)
    wait_until("the controller calls it healthy", lambda: lab.fleet()["edge-1"]["state"] == "healthy")
    lab.roll_out(lab.register(flow_model(-4.0)))
    assert lab.active(edge) == f"{SLOT}:2"
    assert lab.conditions(edge) == {}


def test_a_model_over_the_memory_budget_is_refused_once_and_the_old_one_serves(lab: Lab) -> None:
    lab.controller()
    edge = lab.agent("edge-1", settings=_TIGHT)
    lab.roll_out(lab.register(flow_model()))
    lab.traffic(edge)
    lab.await_verdicts(edge)
    rollout = lab.start_rollout(lab.register(flow_model(-4.0, size_bytes=64 << 20)))
    watched = lab.vedette(f"rollout watch {rollout}", check=False, timeout=120)
    assert watched.code == 1, watched
    assert "(out-of-memory)" in lab.ask(f"rollout show {rollout}")["reason"]
    assert lab.active(edge) == f"{SLOT}:1"
    lab.await_verdicts(edge)
    before, told = lab.status(edge)["slots"][SLOT]["quarantined"], _told_of_memory(edge)
    assert len(before) == 1
    assert told >= 1
    edge.reboot()
    lab.await_verdicts(edge)
    assert lab.status(edge)["slots"][SLOT]["quarantined"] == before
    assert _told_of_memory(edge) == told


def _told_of_memory(edge: Host) -> int:
    return len([entry for entry in edge.journal(AGENT) if entry.get("VEDETTE_CODE") == "out-of-memory"])
