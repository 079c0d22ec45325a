"""Claims about bringing the packaged unit up, on a service manager that does what a test says."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vedette.agent.adapters.host.unit import UNIT, NotConnected, Systemctl, UnitFailed, bring_up
from vedette.agent.domain.report import Report


def report(link: str, *, agent_id: str = "agent-1", **conditions: str) -> Report:
    return {
        "agent_id": agent_id,
        "link": {"state": link, "address": "ctl:7443"},
        "conditions": [{"code": code.replace("_", "-"), "text": text} for code, text in conditions.items()],
    }


class Host:
    """A service manager and an agent that go through given states, one a look."""

    def __init__(self, state: str, *later: tuple[str, Report | None], answers: Report | None = None) -> None:
        self._looks: Iterator[tuple[str, Report | None]] = iter(later)
        self._state, self._report = state, answers
        self.asked: list[str] = []
        self.said: list[str] = []

    def state(self) -> str:
        return self._state

    def ask(self, *words: str) -> None:
        self.asked.append(" ".join(words))

    def report(self) -> Report | None:
        return self._report

    def pause(self, _: float) -> None:
        self._state, self._report = next(self._looks)

    def bring_up(self, limit_s: float = 60.0) -> None:
        bring_up(self, self.report, limit_s, self.said.append, self.pause)


def test_a_stopped_unit_is_started_and_waited_for_until_it_is_connected():
    host = Host("inactive", ("activating", None), ("active", report("connecting")), ("active", report("connected")))
    host.bring_up()
    assert host.asked == [f"enable --quiet {UNIT}", f"start --no-block {UNIT}"]
    with pytest.raises(StopIteration):
        host.pause(0)


def test_a_running_unit_that_waits_for_an_enrolment_is_not_restarted():
    host = Host("active", ("active", report("connected")), answers=report("not enrolled", agent_id=""))
    host.bring_up()
    assert host.asked == [f"enable --quiet {UNIT}"]
    assert "runs already" in host.said[0]


def test_a_running_unit_with_an_identity_that_gets_no_link_is_restarted_for_the_new_one():
    host = Host("active", ("active", report("connected")), answers=report("waiting"))
    host.bring_up()
    assert host.asked[1] == f"restart --no-block {UNIT}"


def test_the_same_enrolment_again_disturbs_no_agent_that_is_connected():
    host = Host("active", answers=report("connected"))
    host.bring_up()
    assert host.asked == [f"enable --quiet {UNIT}"]


def test_a_unit_that_fails_is_told_with_its_state_and_where_its_log_is():
    host = Host("inactive", ("activating", None), ("failed", None))
    with pytest.raises(UnitFailed) as caught:
        host.bring_up()
    assert caught.value.why == "its state is failed"
    assert "journalctl -u vedette-agent.service" in caught.value.remedy


def test_a_link_that_does_not_come_is_told_with_the_agents_own_reason():
    waits = report("waiting", controller_unreachable="no answer from ctl:7443: refused", clock_wrong="the clock")
    host = Host("inactive", answers=waits)
    host._state = "active"
    with pytest.raises(NotConnected) as caught:
        host.bring_up(limit_s=0.0)
    assert caught.value.exit_code == 5
    assert caught.value.why == "no answer from ctl:7443: refused"


@pytest.mark.parametrize(
    ("script", "why"),
    [("echo 'Access denied' >&2; exit 4", "Access denied"), ("exit 3", "it ended with 3"), (None, "No such file")],
)
def test_what_systemctl_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, why: str):
    if script is not None:
        (tmp_path / "systemctl").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnitFailed) as caught:
        Systemctl().ask("start", UNIT)
    assert why in caught.value.why


def test_a_systemctl_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch):
    def hang(command: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, 30)

    monkeypatch.setattr("vedette.agent.adapters.host.unit.subprocess.run", hang)
    with pytest.raises(UnitFailed, match="timed out"):
        Systemctl().state()
