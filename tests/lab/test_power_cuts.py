"""Power cuts and kills of either side, at changes of their disks: what is stored is enough to go on, with no operator.

Each scenario first does its work undisturbed and counts the changes, then again and again with a cut at one of them:
every other cut takes from the disk what was not synced, the others only end all processes. ``make soak`` tries every
change both ways, CI a seeded sample of them that is spread evenly.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests.lab.commands import LabError, wait_until
from tests.lab.host import Host
from tests.lab.instants import Instant, Told, cut, recorded
from tests.lab.lab import AGENT_STATE, BRISK, CONTROLLER_STATE, SLOT, Lab
from tests.lab.models import flow_model
from tests.lab.volume import Volume

_SEED = 4
_TELEMETRY = ("spool.db", "templates.json")  # written all the time, and not what these scenarios cut
_RECOVERY_S = 30


def _instants(lab: Lab, changes: int, sample: int) -> Iterator[Instant]:
    if lab.is_soak:
        yield from (Instant(change, is_power) for change in range(1, changes + 2) for is_power in (True, False))
        return
    chance, width = random.Random(_SEED), changes / sample
    for number in range(sample):
        yield Instant(1 + int((number + chance.random()) * width), is_power=number % 2 == 0)


def test_what_either_side_said_it_had_done_survives_a_power_cut_right_after(lab: Lab) -> None:
    controller = lab.controller(volume="256M")
    edge = lab.agent("edge-1", volume="64M", settings=BRISK)
    version = lab.register(_model(0))
    lab.roll_out(version)
    edge.power_cut()
    controller.power_cut()
    edge.boot()
    lab.traffic(edge)
    lab.await_verdicts(edge)
    assert _name(lab.status(edge)["slots"][SLOT]["active"]) == version
    controller.boot()
    wait_until("all is as it was", lambda: lab.fleet()["edge-1"]["state"] == "healthy", _RECOVERY_S)
    assert [(each["version"], each["state"]) for each in lab.ask("rollout ls")] == [(version, "succeeded")]
    assert [each["used"] for each in lab.ask("token ls")] == [1]
    _runs_only(lab, edge, version)


def test_agents_cut_off_during_an_installation_finish_it(lab: Lab) -> None:
    lab.controller()
    edges = [lab.agent(f"edge-{number}", volume="64M", settings=BRISK) for number in (1, 2, 3)]
    with recorded(edges[0].volumes[AGENT_STATE], _TELEMETRY) as clean:
        lab.roll_out(lab.register(_model(0)))
    for edge in edges:
        lab.traffic(edge, factor=4)
    cuts = list(_instants(lab, len(clean.changes), 2 * len(edges)))
    for number in range(0, len(cuts), len(edges)):
        rollout, version = _installed_with_cuts(lab, edges, cuts[number : number + len(edges)], 1 + number)
        for edge in edges:
            lab.await_verdicts(edge)
        assert lab.vedette(f"rollout watch {rollout}", timeout=_RECOVERY_S).ok
        _is_counted_once(lab, rollout)
        wait_until("all are healthy", lambda: {a["state"] for a in lab.fleet().values()} == {"healthy"}, _RECOVERY_S)
        for edge in edges:
            _runs_only(lab, edge, version)


def _installed_with_cuts(lab: Lab, edges: list[Host], cuts: list[Instant], number: int) -> tuple[str, str]:
    """Begin to roll a new version out to all, cut each off at its instant, and boot them again."""
    version = lab.register(_model(number))
    with ExitStack() as block:
        told = [
            block.enter_context(cut(edge, edge.volumes[AGENT_STATE], instant, _TELEMETRY))
            for edge, instant in zip(edges, cuts, strict=False)
        ]
        rollout = lab.start_rollout(version)
        wait_until("cut or done", lambda: all(each.came for each in told) or _state(lab, rollout) != "running")
    for edge, instant, each in zip(edges, cuts, told, strict=False):
        _tell(edge, each, instant, f"stored was {_stored_stage(edge.volumes[AGENT_STATE])}")
        edge.boot()
    return rollout, version


def _tell(host: Host, told: Told, instant: Instant, more: str = "") -> None:
    print(f"{host.name}: {'power' if instant.is_power else 'processes'} {told}; {more}", flush=True)


def test_a_controller_cut_off_during_a_rollout_goes_on_with_it(lab: Lab) -> None:
    controller = lab.controller(volume="256M")
    edges = [lab.agent(f"edge-{number}", settings=BRISK) for number in (1, 2)]
    disk = controller.volumes[CONTROLLER_STATE]
    with recorded(disk) as clean:
        lab.roll_out(lab.register(_model(0)), waves="1,100%")
    for edge in edges:
        lab.traffic(edge, factor=4)
    for number, instant in enumerate(_instants(lab, len(clean.changes), 3), 1):
        version = lab.register(_model(number))
        with cut(controller, disk, instant) as told:
            begun = lab.vedette(f"rollout start {version} --to '' --waves 1,100% --soak 1s --output json", check=False)
            if begun.ok:
                with suppress(LabError):  # it is down already
                    lab.vedette(f"rollout watch {begun.data['rollout']}", check=False)
        _tell(controller, told, instant, "it had not answered" if not begun.ok else "it had answered")
        controller.boot()
        known = [each for each in lab.ask("rollout ls") if each["version"] == version]
        assert len(known) <= 1
        assert known or not begun.ok, "it had answered, and forgot"
        rollout = known[0]["rollout"] if known else lab.start_rollout(version, waves="1,100%")
        assert lab.vedette(f"rollout watch {rollout}", timeout=_RECOVERY_S).ok
        _is_counted_once(lab, rollout)
        for edge in edges:
            lab.await_verdicts(edge)
            _runs_only(lab, edge, version)


def test_enrolments_cut_off_on_either_side_are_finished_by_the_same_command(lab: Lab) -> None:
    controller = lab.controller(volume="256M")
    disk = controller.volumes[CONTROLLER_STATE]
    first = _unenrolled(lab, "edge-0")
    token = lab.token({"site": "lyon"})
    with recorded(disk) as at_controller, recorded(first.volumes[AGENT_STATE]) as at_agent:
        lab.enrol(first, token)
    for number, instant in enumerate(_instants(lab, len(at_agent.changes), 3), 1):
        edge = _unenrolled(lab, f"edge-a{number}")
        _enrol_with_a_cut(lab, edge, edge, edge.volumes[AGENT_STATE], instant)
    for number, instant in enumerate(_instants(lab, len(at_controller.changes), 2), 1):
        edge = _unenrolled(lab, f"edge-c{number}")
        _enrol_with_a_cut(lab, edge, controller, disk, instant)


def _unenrolled(lab: Lab, name: str) -> Host:
    edge = lab.with_package(name, lab.packages.agent)
    edge.configure("agent", BRISK)
    edge.add_volume(AGENT_STATE, "64M")
    edge.boot()
    return edge


def _enrol_with_a_cut(lab: Lab, edge: Host, host: Host, disk: Volume, instant: Instant) -> None:
    """Enrol an agent while a host is cut off, then again; it is one agent, and its token is spent once."""
    token = lab.ask("token create --label site=lyon")
    with ThreadPoolExecutor() as pool:
        with cut(host, disk, instant) as told:
            words = ["vedette-agent", "enroll", "--token", token["token"]]
            ends = pool.submit(edge.run, words, check=False, timeout=120)
            wait_until("cut or done", lambda: told.came or ends.done(), 120)
        host.boot()
        _tell(host, told, instant, f"enroll ended with {ends.result().code}")
    lab.enrol(edge, token["token"])
    agents = [agent for agent in lab.ask("agent ls") if agent["name"].startswith(edge.name)]
    assert [(agent["name"], agent["labels"]) for agent in agents] == [(edge.name, {"site": "lyon"})]
    assert [each["used"] for each in lab.ask("token ls") if each["id"] == token["id"]] == [1]
    edge.stop()


def _model(number: int) -> bytes:
    return flow_model(-5.0 + number / 100, size_bytes=1 << 20)


def _state(lab: Lab, rollout: str) -> str:
    return str(lab.ask(f"rollout show {rollout}")["state"])


def _stored_stage(disk: Volume) -> str:
    """Return the stage of the slot on the disk of a host that is down, from a copy: reading would write."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("state.db", "state.db-wal"):
            if (disk.mounted / name).exists():
                shutil.copy(disk.mounted / name, folder)
        connection = sqlite3.connect(Path(folder) / "state.db")
        try:
            rows = connection.execute("SELECT stage, saves FROM slots").fetchall()
        finally:
            connection.close()
    return " ".join(f"{stage} ({saves} saves)" for stage, saves in rows) or "nothing"


def _is_counted_once(lab: Lab, rollout: str) -> None:
    texts = [event["text"] for event in lab.ask(f"rollout show {rollout}")["events"]]
    assert len(texts) == len(set(texts)), texts


def _runs_only(lab: Lab, edge: Host, version: str) -> None:
    """Check that agent, controller and disk say the same: one verified version, whole, and nothing half fetched."""
    report = lab.status(edge)
    slot, sequences = report["slots"][SLOT], report["sequences"]
    assert (slot["state"], _name(slot["active"]), slot["candidate"]) == ("active", version, None)
    assert slot["quarantined"] == []
    assert report["conditions"] == []
    assert sequences["desired"] == sequences["attempted"] == sequences["running"]
    assert lab.active(edge) == version
    files = _files(edge)
    assert files >= _named(edge)
    assert _damaged(edge) == "", "builds of before may be kept, but whole"
    assert not {name for name in files if name.startswith("partial-")}
    assert _builds(lab, edge) == {(slot["active"]["version"], slot["active"]["build"])}


def _name(build: dict[str, Any]) -> str:
    return f"{build['model']}:{build['version']}"


def _files(edge: Host) -> set[str]:
    return set(edge.run(f"cd {AGENT_STATE}/blobs && ls -A sha256 && ls -A partial | sed s/^/partial-/").out.split())


def _damaged(edge: Host) -> str:
    """Return the names of files whose bytes are not those that they are named by."""
    return edge.run(f"cd {AGENT_STATE}/blobs/sha256 && sha256sum * | awk '$1 != $2 {{print $2}}'").out.strip()


def _named(edge: Host) -> set[str]:
    """Return the digests of files that the stored releases of its slots name."""
    program = (
        "import re, sqlite3; made = sqlite3.connect('state.db');"
        "builds = [b for row in made.execute('SELECT active, previous, candidate FROM slots') for b in row if b];"
        "bodies = [bytes(row[0]).decode() for row in made.execute('SELECT body FROM releases')];"
        "print(*{d for text in bodies for d in re.findall('sha256:([0-9a-f]{64})', text)})"
    )
    return set(edge.run(f'cd {AGENT_STATE} && python3 -c "{program}"', user="vedette-agent").out.split())


def _builds(lab: Lab, edge: Host) -> set[tuple[int, str]]:
    """Return which builds gave the newest verdicts."""
    program = (
        "import json, sys; said = [json.loads(line)['vedette'] for line in sys.stdin];"
        "print(json.dumps(sorted({(v['version'], v['build']) for v in said})))"
    )
    known = lab.verdict_count(edge)
    lab.await_verdicts(edge)
    command = f'tail -n +{known + 1} /var/log/vedette/verdicts.jsonl | grep "}}$" | python3 -c "{program}"'
    return {(version, build) for version, build in edge.run(command).data}
