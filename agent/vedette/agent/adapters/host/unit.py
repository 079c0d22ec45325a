"""The packaged unit on this host: is it up, bring it up, wait until it serves and is connected."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vedette.agent.domain.advice import EXIT_UNREACHABLE, AdvisedError
from vedette.agent.domain.report import Report

logger = logging.getLogger(__name__)

UNIT = "vedette-agent.service"
_SYSTEMD_RUNS = Path("/run/systemd/system")  # sd_booted(3)
_COMMAND_TIMEOUT_S = 30.0
_LOOK_S = 0.2
_SHOWN = (
    *("ActiveState", "SubState", "Result", "UnitFileState", "NRestarts", "NeedDaemonReload"),
    *("MemoryCurrent", "MemoryMax"),
)


class UnitFailed(AdvisedError):
    """The service manager did not do what it was asked, or the unit does not get ready."""

    code = "unit-failed"


class NotConnected(AdvisedError):
    """The agent is enrolled and serves, and the controller does not answer it."""

    code = "not-connected"
    exit_code = EXIT_UNREACHABLE


class Units(Protocol):
    """The service manager."""

    def state(self) -> str:
        """Return the unit's ActiveState: ``active``, ``inactive``, ``activating``, ``failed``, …."""
        ...

    def ask(self, *words: str) -> None:
        """Have something done, such as ``start``; does not wait for it to be done. Raises UnitFailed."""
        ...


class Systemctl:
    """systemd, by its own command."""

    def state(self) -> str:
        """Return the unit's ActiveState."""
        return _run("show", "--property=ActiveState", "--value", UNIT)

    def shown(self) -> dict[str, str]:
        """Return the unit's state and limits by systemd's names.

        Raises:
            UnitFailed: It does not say.
        """
        lines = _run("show", f"--property={','.join(_SHOWN)}", UNIT).splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def ask(self, *words: str) -> None:
        """Run one systemctl command.

        Raises:
            UnitFailed: It failed.
        """
        _run(*words)


def systemd_runs() -> bool:
    """Return whether systemd is this host's service manager."""
    return _SYSTEMD_RUNS.is_dir()


def _run(*words: str) -> str:
    command = ["systemctl", "--no-ask-password", *words]
    logger.debug("%s", " ".join(command))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise UnitFailed(f"systemctl {words[0]} did not work", str(exc), "systemctl status") from exc
    if done.returncode != 0:
        said = done.stderr.strip() or f"it ended with {done.returncode}"
        raise UnitFailed(f"systemctl {words[0]} did not work", said, f"systemctl status {UNIT}")
    return done.stdout.strip()


def bring_up(
    units: Units,
    ask: Callable[[], Report | None],
    limit_s: float,
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Have the unit run, now and after each boot, and wait until it serves and is connected.

    Args:
        units: The service manager.
        ask: Returns the running agent's report; None when none answers.
        limit_s: Of the wait.
        say: Takes a line for the operator.
        pause: Waits between two looks, seconds.

    Raises:
        UnitFailed: It does not get ready.
        NotConnected: It is ready and the controller does not answer.
    """
    before = ask()
    units.ask("enable", "--quiet", UNIT)
    if units.state() != "active":
        say(f"Starting {UNIT} …")
        units.ask("start", "--no-block", UNIT)
    elif before is not None and before["agent_id"] and not _is_connected(before):
        say(f"{UNIT} runs with its earlier identity: restarting it …")
        units.ask("restart", "--no-block", UNIT)
    else:
        say(f"{UNIT} runs already and takes the identity up by itself …")
    ends = time.monotonic() + limit_s
    while True:
        state, report = units.state(), ask()
        if state == "active" and report is not None and _is_connected(report):
            return
        if state == "failed" or time.monotonic() >= ends:
            raise _not_up(state, report, limit_s)
        pause(_LOOK_S)


def _not_up(state: str, report: Report | None, limit_s: float) -> AdvisedError:
    if state != "active" or report is None:
        return UnitFailed(
            f"the appliance is enrolled, but {UNIT} is not ready after {limit_s:.0f} s",
            f"its state is {state}",
            f"journalctl -u {UNIT} -n 30; it is tried again by itself, enrolling once more is not needed",
        )
    why = next((c["text"] for c in report["conditions"] if c["code"].startswith("controller-")), "no answer yet")
    return NotConnected(
        f"the appliance is enrolled and {UNIT} runs, but has no link after {limit_s:.0f} s",
        why,
        f"open {report['link'].get('address') or 'the controller'} (TCP) on the way; it is tried again by itself",
    )


def _is_connected(report: Report) -> bool:
    return bool(report["link"]["state"] == "connected")
