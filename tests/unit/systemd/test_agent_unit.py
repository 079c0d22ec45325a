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


@needs_analyze
def test_the_helper_that_blocks_is_little_exposed_and_systemd_knows_its_keys(tmp_path: Path):
    for name in ("vedette-nft-helper.service", "vedette-nft-helper.socket"):
        text = (UNITS / name).read_text().replace("/usr/lib/vedette-agent/bin/python3", "/bin/true")
        (tmp_path / name).write_text(text.replace("PartOf=vedette-agent.service", "").replace("SocketUser=", "#"))

    unit = tmp_path / "vedette-nft-helper.service"
    for command in (
        ["security", "--offline=true", "--no-pager", "--threshold=11"],
        ["verify", "--man=no", "--recursive-errors=no"],
    ):
        judged = subprocess.run(["systemd-analyze", *command, unit], capture_output=True, text=True, check=False)
        assert (judged.returncode, judged.stderr) == (0, ""), judged.stdout


def test_the_helper_has_one_capability_and_no_more():
    text = (UNITS / "vedette-nft-helper.service").read_text()
    assert [line for line in text.splitlines() if "CAP_" in line] == [
        "AmbientCapabilities=CAP_NET_ADMIN", "CapabilityBoundingSet=CAP_NET_ADMIN",
    ]  # fmt: skip


def test_the_agent_is_never_given_up():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)

    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["Restart"] == "on-failure"
    assert "RestartPreventExitStatus" not in unit["Service"]
