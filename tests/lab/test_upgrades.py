"""The next version and back, while flows arrive: what a host has, it keeps, and it is not away for long."""

from __future__ import annotations

import calendar
import re
import time
from pathlib import Path
from typing import Any

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, AGENT_STATE, BRISK, CONTROLLER, SLOT, VERDICTS, Lab
from tests.lab.models import flow_model

_SETTINGS = "/etc/vedette/agent.toml"
_DROP_IN = "/etc/systemd/system/vedette-agent.service.d/50-vedette.conf"
_SITE_PACKAGES = "/usr/lib/vedette-controller/lib/python3.11/site-packages"
_NEXT_SCHEMA = {
    f"{_SITE_PACKAGES}/vedette/controller/rooms.py": """
from vedette.controller.adapters.sqlite.database import script  # noqa: E402

MIGRATIONS = (*MIGRATIONS, script("lab-0001", "CREATE TABLE of_the_next_version (fact TEXT);"))
"""
}


def test_an_agent_goes_to_the_next_version_and_back_with_all_that_it_has(lab: Lab, record_property: Any) -> None:
    controller = lab.controller()
    edge = lab.agent("edge-1", settings=f"# edited here\n{BRISK}")
    edge.run(["vedette-agent", "configure", "--slots", "2"])
    lab.roll_out(lab.register(flow_model()))
    traffic = lab.traffic(edge)
    _wait_for_verdicts(edge)
    restart_s = _restarted(edge)
    controller.link.down()
    wait_until("telemetry waits", lambda: _spooled(edge))
    had = _belongings(edge)

    for package, version in ((lab.packages.newer("agent"), lab.packages.next_version), (lab.packages.agent, "")):
        waiting = _spooled(edge)
        edge.put(package, f"/root/{package.name}")
        edge.run(f"cd /root && apt install -y --allow-downgrades ./{package.name}", timeout=200)
        assert edge.run("vedette-agent --version").out.split()[1] == (version or _version_of(package))
        assert _away_since(edge) >= _unpacked_at(edge)
        gap_s = _away_s(edge)
        record_property("away for", f"{gap_s:.1f} s (a restart: {restart_s:.1f} s)")
        assert gap_s < 2 * restart_s + 2
        assert _belongings(edge) == had
        assert _spooled(edge) >= waiting
        assert edge.run(["dpkg", "--verify", AGENT]).out.split() == ["??5??????", "c", _SETTINGS]  # edited, as it was
        _wait_for_verdicts(edge)

    controller.link.up()
    wait_until("the agent is back", lambda: lab.fleet()["edge-1"]["state"] == "healthy")
    traffic.stop()
    wait_until("nothing waits any more", lambda: not _spooled(edge))
    wait_until("every scored flow is counted", lambda: lab.rows_counted(edge) == _verdicts(edge))


def _belongings(agent: Host) -> dict[str, Any]:
    """Return what no upgrade may change, the rights to it included."""
    models = agent.run(["vedette-agent", "models", "--output", "json"]).data
    return {
        "identity": agent.run(f"cd {AGENT_STATE}/enrolment && sha256sum *").out,
        "rights": agent.run(f"stat --format='%n %U %G %a' {AGENT_STATE} {AGENT_STATE}/* /var/log/vedette").out,
        "model": {name: slot["active"] for name, slot in models.items()},
        "settings": agent.read(_SETTINGS),
        "limits": agent.read(_DROP_IN),
        "enabled": agent.systemctl("is-enabled", AGENT).out,
    }


def test_a_controller_goes_to_the_next_version_and_no_older_one_spoils_its_database(lab: Lab) -> None:
    controller = lab.controller()
    edge = lab.agent("edge-1", labels={"site": "lyon"}, settings=BRISK)
    lab.roll_out(lab.register(flow_model()))
    newer, older = lab.packages.newer("controller", _NEXT_SCHEMA), lab.packages.controller
    known = _known(lab)

    lab.install(controller, newer)
    assert controller.run("vedette --version").out.split()[1] == lab.packages.next_version
    wait_until("the agent is back", lambda: lab.fleet()["edge-1"]["state"] == "healthy")
    assert _known(lab) == known
    assert controller.run(["dpkg", "--verify", CONTROLLER]).out == ""

    controller.put(older, f"/root/{older.name}")
    controller.run(f"cd /root && apt install -y --allow-downgrades ./{older.name}", timeout=200)
    assert controller.unit(CONTROLLER, "ActiveState", "ExecMainStatus", "NRestarts") == {
        "ActiveState": "failed", "ExecMainStatus": "4", "NRestarts": "0",
    }  # fmt: skip
    said = controller.run(f"journalctl -u {CONTROLLER} -o cat VEDETTE_CODE=database-newer").out
    assert "written by a newer controller" in said
    assert "lab-0001" in said

    controller.run(f"cd /root && apt install -y ./{newer.name} && systemctl start {CONTROLLER}", timeout=200)
    wait_until("the agent is back", lambda: lab.fleet()["edge-1"]["state"] == "healthy")
    assert _known(lab) == known
    lab.roll_out(lab.register(flow_model(-4.0)))
    assert lab.active(edge) == f"{SLOT}:2"


def _known(lab: Lab) -> Any:
    agents = {name: (agent["labels"], agent["slots"]) for name, agent in lab.fleet().items()}
    rollouts = [(each["rollout"], each["state"]) for each in lab.ask("rollout ls")]
    return agents, rollouts, lab.vedette(f"model show {SLOT}:1").out


def test_settings_that_nobody_edited_are_replaced_and_edited_ones_are_not(lab: Lab) -> None:
    host = lab.with_package("one", lab.packages.agent)
    host.boot()
    newer, older = lab.packages.newer("agent", {_SETTINGS: "# of the next version\n"}), lab.packages.agent
    before = host.read(_SETTINGS)
    lab.install(host, newer)
    assert host.read(_SETTINGS) == f"{before}# of the next version\n"

    host.run(f"echo '# edited here' >> {_SETTINGS}")
    edited = host.read(_SETTINGS)
    host.put(older, f"/root/{older.name}")
    keep = "-o Dpkg::Options::=--force-confold"
    host.run(f"cd /root && apt install -y --allow-downgrades {keep} ./{older.name}", timeout=200)
    assert host.read(_SETTINGS) == edited
    assert host.read(f"{_SETTINGS}.dpkg-dist") == before


def _verdicts(agent: Host) -> int:
    return int(agent.run(f"cat {VERDICTS} 2>/dev/null | wc -l").out)


def _wait_for_verdicts(agent: Host) -> None:
    known = _verdicts(agent)
    wait_until("more verdicts are written", lambda: _verdicts(agent) > known)


def _spooled(agent: Host) -> int:
    program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
    lines = agent.run(["python3", "-c", program]).out.splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("vedette_agent_spool_bytes "))


def _version_of(package: Path) -> str:
    return package.name.split("_")[1]


def _restarted(agent: Host) -> float:
    agent.systemctl("restart", AGENT)
    return _away_s(agent)


def _away_s(agent: Host) -> float:
    """Return from when to when the unit was not active at its last restart, in seconds."""
    at = agent.unit(AGENT, "ActiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    left, entered = int(at["ActiveExitTimestampMonotonic"]), int(at["ActiveEnterTimestampMonotonic"])
    assert entered > left > 0
    return (entered - left) / 1e6


def _away_since(agent: Host) -> int:
    return int(agent.run(f'date +%s -d "$(systemctl show {AGENT} -P ActiveExitTimestamp)"').out)


def _unpacked_at(agent: Host) -> int:
    """Return when dpkg had put the last of the files in place, by its own log; whole seconds."""
    lines = agent.run(f"grep ' status unpacked {AGENT}:' /var/log/dpkg.log").out.splitlines()
    found = re.match(r"\S+ \S+", lines[-1])
    assert found is not None
    return calendar.timegm(time.strptime(found[0], "%Y-%m-%d %H:%M:%S"))
