"""Backups that the timer makes, and the day on which one is needed: the controller's disk is gone."""

from __future__ import annotations

import re
from pathlib import Path

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import ADMIN, BRISK, CONTROLLER, CONTROLLER_STATE, SLOT, Lab
from tests.lab.models import flow_model

_BACKUPS = "/var/backups/vedette-controller"
_RESTORE = "vedette-controller restore /root/saved/vedette-*.tar --blobs-from /root/saved/blobs"


def test_the_timer_makes_whole_backups_that_only_the_service_can_read(lab: Lab) -> None:
    controller = lab.controller()
    lab.register(flow_model())
    assert "vedette-backup.service" in controller.systemctl("list-timers", "vedette-backup.timer").out
    assert controller.unit("vedette-backup.timer", "UnitFileState", "ActiveState") == {
        "UnitFileState": "enabled", "ActiveState": "active",
    }  # fmt: skip

    controller.systemctl("start", "vedette-backup")
    made = controller.run("date +%s").out
    wait_until("backups have another name", lambda: controller.run("date +%s").out != made)  # which is their second
    controller.systemctl("start", "vedette-backup")
    assert controller.unit("vedette-backup", "Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
    assert controller.is_active(CONTROLLER)
    files = controller.run(f"cd {_BACKUPS} && stat --format='%n %U %a' . *").out.splitlines()
    assert files[0] == ". vedette-controller 700"
    assert len([line for line in files if re.fullmatch(r"vedette-\S+\.tar vedette-controller 600", line)]) == 2
    blobs = f"find {CONTROLLER_STATE}/blobs -type f | wc -l"
    kept = f"find {_BACKUPS}/blobs -type f | wc -l"
    assert int(controller.run(kept).out) == int(controller.run(blobs).out) > 0
    said = "\n".join(controller.told("vedette-backup"))
    assert "It holds private keys" in said


def test_a_controller_whose_disk_died_comes_back_on_a_fresh_host_and_downgrades_nobody(
    lab: Lab, tmp_path: Path
) -> None:
    controller = lab.controller(settings="[backup]\nkeep = 3\n")
    edge, late = (lab.agent(name, labels={"site": name[-1]}, settings=BRISK) for name in ("edge-1", "edge-2"))
    lab.roll_out(lab.register(flow_model()))
    unused = lab.token({})
    controller.systemctl("start", "vedette-backup")
    _copy_away(controller, tmp_path / "saved.tar")
    lab.roll_out(lab.register(flow_model(-4.0)), to="site=1")
    assert (lab.active(edge), lab.active(late)) == (f"{SLOT}:2", f"{SLOT}:1")
    lab.traffic(edge)
    wait_until("a verdict is written", lambda: lab.verdicts(edge))
    running = {host.name: host.main_pid("vedette-agent") for host in (edge, late)}
    controller.kill()
    controller.replace()
    controller.boot()
    controller.put(tmp_path / "saved.tar", "/root/saved.tar")
    controller.run("mkdir /root/saved && tar -xf /root/saved.tar -C /root/saved")
    refused = controller.run(_RESTORE, check=False)
    assert refused.code == 4
    assert "there is no terminal to ask on\nadd --yes" in refused.err
    assert controller.run(f"ls {CONTROLLER_STATE}").out.split() in ([], ["controller.lock"])
    said = controller.run(f"{_RESTORE} --yes").out
    assert "2 agents, flow-threat:1." in said
    assert "Every enrolment token made before is revoked." in said
    assert said.endswith(
        "Next:\n  systemctl start vedette-controller\n"
        "  vedette agent ls          held: it runs what this controller does not know\n"
    )

    controller.systemctl("start", CONTROLLER)
    controller.run(["vedette", "login", ADMIN])
    assert controller.run(["vedette-controller", "check"]).ok
    wait_until("both are back", lambda: lab.is_online(late) and "held" in lab.vedette("agent ls").out)
    assert "held: it runs flow-threat:2" in lab.vedette("agent show edge-1").out
    assert _served(edge) == f"{SLOT}:2"
    assert _served(late) == f"{SLOT}:1"
    assert {host.name: host.main_pid("vedette-agent") for host in (edge, late)} == running
    stranger = lab.with_package("edge-3", lab.packages.agent)
    stranger.boot()
    assert "revoked" in stranger.run(["vedette-agent", "enroll", "--token", unused], check=False).err

    # The operator decides, and the held one goes on.
    lab.roll_out(lab.register(flow_model(-3.0)), to="name=edge-1")
    assert lab.active(edge) not in {f"{SLOT}:1", f"{SLOT}:2"}
    assert "held" not in lab.vedette("agent ls").out


def test_nothing_is_restored_under_a_running_controller_or_from_a_file_that_is_cut(lab: Lab) -> None:
    controller = lab.controller()
    controller.systemctl("start", "vedette-backup")
    before = controller.run(f"sha256sum {CONTROLLER_STATE}/keys/*").out
    file = controller.run(f"ls {_BACKUPS}/*.tar").out.strip()

    running = controller.run(["vedette-controller", "restore", file, "--yes"], check=False)
    assert running.code == 4
    assert "systemctl stop vedette-controller" in running.err

    controller.systemctl("stop", CONTROLLER)
    controller.run(f"head -c -20000 {file} > /root/cut.tar && head -c 20000 /dev/urandom > /root/noise.tar")
    for bad in ("/root/cut.tar", "/root/noise.tar"):
        refused = controller.run(["vedette-controller", "restore", bad, "--yes"], check=False)
        assert refused.code == 2
        assert "no whole backup of a controller" in refused.err
    assert controller.run(f"sha256sum {CONTROLLER_STATE}/keys/*").out == before
    controller.systemctl("start", CONTROLLER)
    assert lab.vedette("agent ls").ok


def _copy_away(controller: Host, file: Path) -> None:
    """Do what a copy of the folder to another machine does."""
    controller.run(f"tar -cf /root/saved.tar -C {_BACKUPS} .")
    controller.get("/root/saved.tar", file)


def _served(agent: Host) -> str:
    slot = agent.run(["vedette-agent", "models", "--output", "json"]).data[SLOT]
    return f"{slot['active']['model']}:{slot['active']['version']}"
