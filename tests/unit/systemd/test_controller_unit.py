"""The controller's units, judged by systemd's own tools."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[3] / "systemd"
SERVICES = ["vedette-controller.service", "vedette-backup.service"]

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")


@needs_analyze
@pytest.mark.parametrize("name", SERVICES)
def test_the_controllers_exposure_stays_below_its_limit(name: str):
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", UNITS / name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert judged.returncode == 0, judged.stdout + judged.stderr


@needs_analyze
@pytest.mark.parametrize("name", SERVICES)
def test_systemd_knows_every_key_of_the_unit(tmp_path: Path, name: str):
    text = (UNITS / name).read_text().replace("/usr/bin/vedette-controller", "/bin/true").replace("Documentation=", "#")
    (tmp_path / name).write_text(text)

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", tmp_path / name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_controller_is_tried_for_ever_but_not_when_a_person_must_act_first():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNITS / "vedette-controller.service")

    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Service"]["RestartPreventExitStatus"].split() == ["2", "3", "4"]
