"""What people do first: install, enrol, roll a model out, look at verdicts and at the journal."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.commands import Result, wait_until
from tests.lab.ground import ROOT
from tests.lab.host import Host
from tests.lab.lab import ADMIN, AGENT, BRISK, CONTROLLER, VERDICTS, Lab
from tests.lab.models import flow_model

_PLACEHOLDER = "vdt1.…"
_README_NAME = "ctl.example"
_EXPOSURE_AT_MOST = {AGENT: 1.2, CONTROLLER: 1.5}
_COME_UP_WITHIN_S = 90


def _readme_commands(heading: str) -> Iterator[str]:
    """Yield the commands that the README shows under a heading of its section on installing."""
    text = (ROOT / "README.md").read_text()
    section = text.split("\n## Install\n", 1)[1].split("\n## ", 1)[0]
    part = section.split(f"\n### {heading}\n", 1)[1].split("\n### ", 1)[0]
    for block in re.findall(r"```sh\n(.*?)```", part, re.DOTALL):
        yield from block.splitlines()


def _as_typed(host: Host, commands: Iterator[str], placeholder: str = "") -> list[Result]:
    """Run commands as root types them in the folder that the package was copied to."""
    typed = [command.replace(_PLACEHOLDER, placeholder) for command in commands]
    assert not [command for command in typed if "…" in command]
    return [host.run(f"cd /root && {command}", timeout=300) for command in typed]


def test_the_readme_s_commands_install_a_controller_and_an_appliance(lab: Lab) -> None:
    controller, appliance = lab.bare("ctl"), lab.bare("edge-1")
    lab.network.alias("ctl", _README_NAME)
    for host, package in ((controller, lab.packages.controller), (appliance, lab.packages.agent)):
        host.rename_others()
        host.boot()
        host.put(package, f"/root/{package.name}")

    at_controller = _as_typed(controller, _readme_commands("The controller"))
    token = at_controller[-1].out.strip()
    assert token.startswith("vdt1.")
    at_appliance = _as_typed(appliance, _readme_commands("An appliance"), token)

    assert controller.is_active(CONTROLLER)
    assert appliance.is_active(AGENT)
    assert "edge-1" in at_appliance[-1].out
    wait_until("the appliance is connected", lambda: lab.is_online(appliance))
    assert lab.fleet()["edge-1"]["labels"] == {"site": "paris"}
    assert token not in appliance.log() + controller.log()


def test_a_controller_and_three_agents_come_up_from_packages_in_90_s(lab: Lab, record_property: Any) -> None:
    begun = time.monotonic()
    controller = lab.bare("ctl")
    controller.boot()
    lab.install(controller, lab.packages.controller)
    lab.initialise(controller)
    for number in (1, 2, 3):
        agent = lab.bare(f"edge-{number}")
        agent.boot()
        lab.install(agent, lab.packages.agent)
        lab.enrol(agent, lab.token({}))
    took = time.monotonic() - begun
    record_property("up in", f"{took:.0f} s")
    assert {agent["state"] for agent in lab.fleet().values()} == {"healthy"}
    assert took < _COME_UP_WITHIN_S


def test_a_model_that_is_rolled_out_flags_flows_into_the_verdict_file(lab: Lab) -> None:
    lab.controller()
    edge = lab.agent("edge-1", labels={"site": "lyon"})
    lab.roll_out(lab.register(flow_model()), to="site=lyon")
    lab.traffic(edge)
    verdicts = wait_until("a verdict is written", lambda: lab.verdicts(edge))

    assert lab.active(edge) == "flow-threat:1"
    shown = lab.vedette("agent ls").out
    assert re.search(r"^edge-1 +healthy +flow-threat:1 ", shown, re.MULTILINE)
    assert verdicts[0]["event_type"] == "vedette"
    assert verdicts[0]["host"] == "edge-1"
    assert edge.run(f"stat --format='%U %a' {VERDICTS}").out.split()[0] == AGENT
    # What runs writes to its own folders only: dpkg finds every file of the packages as it was unpacked.
    for host, package in ((edge, AGENT), (lab.hosts["ctl"], CONTROLLER)):
        assert host.run(["dpkg", "--verify", package]).out == ""
        assert host.run("systemctl --failed --no-legend").out == ""


def test_the_journal_has_levels_and_fields_and_no_secret(lab: Lab) -> None:
    controller = lab.controller()
    edge = lab.with_package("edge-1", lab.packages.agent)
    edge.boot()
    token = lab.token({})
    lab.enrol(edge, token)
    lab.roll_out(lab.register(flow_model()))

    said = [entry for entry in edge.journal(AGENT) if entry.get("SYSLOG_IDENTIFIER") == AGENT]
    assert {entry["PRIORITY"] for entry in said} <= {"4", "6"}
    assert all(entry["LOGGER"].startswith("vedette.") for entry in said)
    assert any("connected to the controller" in entry["MESSAGE"] for entry in said)
    served = [entry for entry in controller.journal(CONTROLLER) if entry.get("SYSLOG_IDENTIFIER") == CONTROLLER]
    assert {entry["PRIORITY"] for entry in served} <= {"4", "6"}
    assert any(entry["MESSAGE"] == "rollout 1 (flow-threat:1): succeeded: 1 moved" for entry in served)
    assert "succeeded" in controller.run(f"journalctl -u {CONTROLLER} -o cat LOGGER={served[-1]['LOGGER']}").out

    told = edge.log() + controller.log()
    secret = re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s*(\S{20})", controller.read(ADMIN))
    assert secret is not None
    assert token not in told
    assert token.removeprefix("vdt1.")[-20:] not in told
    assert secret[1] not in told


def _found(host: Host, match: str) -> list[str]:
    """Return what an operator gets who asks the journal for one field."""
    lines = host.run(f"journalctl -o json --output-fields=MESSAGE {match}").out.splitlines()
    return [json.loads(line)["MESSAGE"] for line in lines]


def test_the_journal_tells_the_story_of_a_slot_a_rollout_and_an_appliance(lab: Lab) -> None:
    controller = lab.controller()
    edge = lab.agent("edge-1", labels={"site": "lyon"}, settings=BRISK)
    for bias in (-5.0, -4.0):
        lab.roll_out(lab.register(flow_model(bias)), to="site=lyon")
    lab.vedette("agent label edge-1 rack=4")

    of_slot = _found(edge, "VEDETTE_SLOT=flow-threat")
    assert [re.sub(r"[0-9a-f]{12}|\d+\.\d", "…", message) for message in of_slot] == [
        f"slot flow-threat serves {version} (build sha256:…), fetched, tested and switched to in … s; {before}"
        for version, before in (
            ("flow-threat:1", "it is the first there"),
            ("flow-threat:2", "flow-threat:1 stays at hand"),
        )
    ]
    assert _found(controller, "VEDETTE_ROLLOUT=2") == [
        "rollout 2 (flow-threat:2 to site=lyon): started by admin: 1 agent in 1 wave",
        "rollout 2 (flow-threat:2 to site=lyon): wave 1 (100%): 1 agent assigned",
        "rollout 2 (flow-threat:2): edge-1 serves it",
        "rollout 2 (flow-threat:2): wave 1 (100%): 1 moved; soaking 1 s",
        "rollout 2 (flow-threat:2): wave 1 (100%) passed",
        "rollout 2 (flow-threat:2): succeeded: 1 moved",
    ]
    of_agent = "\n".join(_found(controller, "VEDETTE_AGENT=edge-1"))
    for word in ("enrolled from", "connected from", "applied assignment", "admin labelled agent edge-1"):
        assert word in of_agent
    assert edge.run(f"journalctl -u {AGENT} -p err -o cat").out == controller.run("journalctl -p err -o cat").out == ""


def test_a_controller_that_is_away_for_long_costs_an_appliance_s_journal_two_lines(lab: Lab) -> None:
    controller = lab.controller()
    edge = lab.agent("edge-1", settings=BRISK)
    before = len(edge.told(AGENT))
    controller.systemctl("stop", CONTROLLER)
    wait_until("it was tried five times", lambda: sum(_link_failures(lab, edge).values()) >= 5)
    codes = len(_link_failures(lab, edge))  # the controller's farewell may be another trouble than its silence
    assert len(edge.told(AGENT)[before:]) <= 2 * codes
    controller.systemctl("start", CONTROLLER)
    wait_until("it is connected", lambda: lab.is_online(edge))
    *_, over, connected = edge.told(AGENT)[before:]
    assert re.fullmatch(r"controller-unreachable is over, it lasted \d:\d\d:\d\d", over)
    assert connected == "connected to the controller at ctl:7443"


def _link_failures(lab: Lab, edge: Host) -> dict[str, float]:
    return {
        name: value for name, value in lab.metrics(edge).items() if name.startswith("vedette_agent_link_failures_total")
    }


@pytest.mark.parametrize("unit", [AGENT, CONTROLLER])
def test_systemd_finds_the_service_little_exposed(lab: Lab, unit: str) -> None:
    host = lab.with_package("one", lab.packages.agent if unit == AGENT else lab.packages.controller)
    host.boot()
    said = host.run(["systemd-analyze", "security", "--no-pager", unit]).out
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None
    assert float(found[1]) <= _EXPOSURE_AT_MOST[unit]
    assert host.run(["systemd-analyze", "verify", "--man=no", f"{unit}.service"]).text == ""
