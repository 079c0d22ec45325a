"""The agent's unit and its drop-ins, judged by systemd's own tools."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[3] / "systemd"
UNIT = UNITS / "vedette-agent.service"
DROP_INS = UNITS / "vedette-agent.service.d"

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")


@needs_analyze
@pytest.mark.parametrize(
    ("drop_ins", "most_tenths"),
    [((), 12), (("gpu.conf",), 16), (("worker-cgroups.conf",), 14), (("gpu.conf", "worker-cgroups.conf"), 16)],
)
def test_the_agents_exposure_stays_below_its_limit(tmp_path: Path, drop_ins: tuple[str, ...], most_tenths: int):
    unit = shutil.copy(UNIT, tmp_path)
    folder = tmp_path / "vedette-agent.service.d"
    folder.mkdir()
    for name in drop_ins:
        shutil.copy(DROP_INS / name, folder)

    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={most_tenths}", unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert judged.returncode == 0, judged.stdout + judged.stderr


@needs_analyze
@pytest.mark.parametrize("drop_in", ["", *sorted(path.name for path in DROP_INS.glob("*.conf"))])
def test_systemd_knows_every_key_of_the_unit(tmp_path: Path, drop_in: str):
    text = UNIT.read_text().replace("/usr/bin/vedette-agent", "/bin/true").replace("Documentation=", "#")
    (tmp_path / "vedette-agent.service").write_text(text)
    if drop_in:
        (tmp_path / "vedette-agent.service.d").mkdir()
        shutil.copy(DROP_INS / drop_in, tmp_path / "vedette-agent.service.d")

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", tmp_path / "vedette-agent.service"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_agent_is_never_given_up():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)

    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["Restart"] == "on-failure"
    assert "RestartPreventExitStatus" not in unit["Service"]
