"""Claims about ``vedette-agent doctor`` beside a real agent, running and not, and about a host where things hang."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent.test_packaged_enrolment import agent as packaged
from tests.integration.agent.test_packaged_enrolment import host as packaged_host
from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.disks import full_disk
from tests.support.fake_controller import FakeController
from tests.support.flow_packets import export, packet_set, v4_flow
from vedette.agent.adapters.telling import doctor

host = packaged_host
Found = dict[str, list[tuple[str, str]]]


async def run(daemon: Daemon, *words: str, **environment: str) -> tuple[int, str]:
    """Run doctor; return its exit code and standard output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vedette.agent", "doctor", "--config", str(daemon.config), *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def found(daemon: Daemon) -> tuple[int, Found]:
    """Return doctor's exit code, and by name the level and words of each check."""
    code, said = await run(daemon, "--output", "json")
    report: dict[str, Any] = json.loads(said)
    assert report["healthy"] is (code == 0)
    checks: Found = {}
    for check in report["checks"]:
        checks.setdefault(check["name"], []).append((check["level"], f"{check['text']} {check['remedy']}"))
    return code, checks


async def serving(daemon: Daemon, controller: FakeController) -> None:
    """Enrol and start an agent, and have it serve and hear flows."""
    controller.time = None
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1 and r["link"]["state"] == "connected")
    daemon.send(capture_datagrams(CAPTURE)[:50])
    await daemon.until(lambda r: r["counters"]["datagrams"] >= 50)


def levels(checks: Found, *names: str) -> list[str]:
    return [level for name in names for level, _ in checks[name]]


async def test_an_agent_that_does_its_job_passes(daemon: Daemon, controller: FakeController) -> None:
    await serving(daemon, controller)
    code, checks = await found(daemon)
    assert (code, {level for name in checks for level in levels(checks, name)} & {"fail"}) == (0, set())
    passed = ("agent", "enrolment", "route", "link", "enrol port", "disk", "files", "runtime", "sink", "spool")
    assert set(levels(checks, *passed)) == {"ok"}
    (link,) = checks["link"]
    assert f"{controller.address}, TLS 1.3, " in link[1]
    assert "certificate without an end" in link[1]
    (model,) = checks["model"]
    assert re.search(r"flow-threat:1, self-test passed (now|\d+ s ago), worker ", model[1])
    assert " off the controller" in checks["clock"][0][1]
    code, said = await run(daemon, COLUMNS="80")
    assert max(len(line) for line in said.splitlines() if str(daemon.folder) not in line) <= 80  # paths stay whole
    assert "\x1b" not in said


async def test_a_dead_controller_a_wrong_clock_and_silence_are_found(
    daemon: Daemon, controller: FakeController
) -> None:
    await serving(daemon, controller)
    controller.time = datetime.now(UTC) + timedelta(hours=2)
    controller.drop_streams()
    await daemon.until(lambda r: r["process"]["clock_ahead_s"] < -7000)
    code, checks = await found(daemon)
    assert code == 0
    assert "1 h behind the controller" in checks["clock"][0][1]
    await controller.stop()
    await daemon.until(lambda r: r["link"]["state"] != "connected")
    code, checks = await found(daemon)
    assert code == 1
    assert levels(checks, "link", "enrol port") == ["fail", "warn"]
    assert "Connection refused" in checks["link"][0][1]


async def test_a_missing_template_is_named_with_its_exporter(daemon: Daemon, controller: FakeController) -> None:
    await serving(daemon, controller)

    class Datagram:
        payload = export(9, packet_set(300, v4_flow()))

    daemon.send([Datagram])
    await daemon.until(lambda r: any(e["templates_missing"] for e in r["flows"]["exporters"]))
    code, checks = await found(daemon)
    assert code == 0
    assert [words for _, words in checks["flows"] if "127.0.0.1 sends data of template 300" in words]


async def test_an_agent_that_does_not_run_is_told_from_its_disk_which_stays_as_it_is(
    daemon: Daemon, controller: FakeController
) -> None:
    await serving(daemon, controller)
    await daemon.stop()
    before = _tree(daemon.folder)
    code, checks = await found(daemon)
    assert code == 1
    assert [level for level, words in checks["agent"] if "not running" in words] == ["fail"]
    assert levels(checks, "enrolment", "link", "model") == ["ok", "ok", "ok"]
    assert " off the controller" in checks["clock"][0][1]  # asked of the enrolment port
    assert _tree(daemon.folder) == before


def _tree(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        found[str(path)] = (stat.st_mode, stat.st_uid, stat.st_size, stat.st_mtime_ns if path.is_file() else 0)
    return found


async def test_a_killed_agents_state_is_read_and_not_mended(daemon: Daemon, controller: FakeController) -> None:
    await serving(daemon, controller)
    await daemon.stop(signal.SIGKILL)
    before = {name: kept for name, kept in _tree(daemon.folder).items() if not name.endswith(("-shm", "-wal"))}
    code, checks = await found(daemon)
    assert (code, levels(checks, "model")) == (1, ["ok"])
    after = {name: kept for name, kept in _tree(daemon.folder).items() if not name.endswith(("-shm", "-wal"))}
    assert after == before


async def test_a_refused_certificate_is_told(daemon: Daemon, controller: FakeController) -> None:
    await serving(daemon, controller)
    await daemon.stop()
    await controller.stop()
    async with FakeController() as other:  # of another authority, on the known port
        await other.stop()
        await other.start(controller.port)
        code, checks = await found(daemon)
        assert code == 1
        assert "does not speak as the controller" in checks["link"][0][1]
        assert "proxy that opens TLS" in checks["link"][0][1]


async def test_settings_that_cannot_be_read_are_a_finding(daemon: Daemon) -> None:
    daemon.config.write_text('statedir = "/x"\n')
    code, checks = await found(daemon)
    assert (code, list(checks)) == (1, ["settings"])
    assert "did you mean state_dir?" in checks["settings"][0][1]


@pytest.mark.root
async def test_a_full_disk_is_found(tmp_path: Path, controller: FakeController) -> None:
    with full_disk(tmp_path, "64m") as fill:
        daemon = Daemon(tmp_path)
        await serving(daemon, controller)
        fill()
        code, checks = await found(daemon)
        try:
            assert code == 1
            assert levels(checks, "disk") == ["fail"]
            assert "du -xh" in checks["disk"][0][1]
        finally:
            await daemon.stop(signal.SIGKILL)


@pytest.mark.root
async def test_a_plain_user_sees_less_and_is_told_so(host: Path, controller: FakeController) -> None:
    with (host / "agent.toml").open("a") as settings:
        settings.write('sink.json.path = ""\n')
    assert (await packaged(host, "enroll", "--token", controller.token().encode()))[0] == 0
    code, said = await packaged(host, "doctor", "--output", "json", user=12345)
    checks = {check["name"]: check for check in json.loads(said)["checks"]}
    assert code == 0, said
    for name in ("agent", "enrolment", "files"):
        assert (checks[name]["level"], "not seen" in checks[name]["text"]) == ("warn", True), checks[name]
        assert "sudo vedette-agent doctor" in checks[name]["remedy"]
    code, said = await packaged(host, "doctor", "--output", "json")
    checks = {check["name"]: check for check in json.loads(said)["checks"]}
    assert code == 1
    assert checks["agent"]["remedy"].endswith("systemctl start vedette-agent")
    assert (checks["enrolment"]["level"], checks["files"]["level"]) == ("ok", "ok")


@pytest.mark.root
async def test_a_file_of_roots_among_the_agents_is_found(host: Path, controller: FakeController) -> None:
    with (host / "agent.toml").open("a") as settings:
        settings.write('sink.json.path = ""\n')
    assert (await packaged(host, "enroll", "--token", controller.token().encode()))[0] == 0
    os.chown(host / "state/enrolment/ca.pem", 0, 0)
    _, said = await packaged(host, "doctor", "--output", "json")
    (files,) = [check for check in json.loads(said)["checks"] if check["name"] == "files"]
    assert (files["level"], "ca.pem belongs to user 0" in files["text"]) == ("fail", True)
    assert "chown" in files["remedy"]


def test_a_look_that_hangs_or_fails_costs_itself_alone() -> None:
    def hanging() -> Iterator[int]:
        time.sleep(5)
        yield 1

    def failing() -> Iterator[int]:
        raise RuntimeError("no such thing")

    began = time.monotonic()
    got = doctor._at_once({"hangs": hanging, "fails": failing, "works": lambda: [7]}, 0.3)
    assert time.monotonic() - began < 2
    assert got["works"] == [7]
    assert isinstance(got["hangs"], TimeoutError)
    assert str(got["fails"]) == "no such thing"
