"""Appliances that no network reaches: models come by file, telemetry goes by file."""

from __future__ import annotations

from pathlib import Path

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import BRISK, SLOT, Lab
from tests.lab.models import flow_model

_BUNDLE, _TELEMETRY = "/root/island.bundle", "/root/edge-1.telemetry"


def _carry(tmp_path: Path, source: Host, path: str, target: Host) -> None:
    source.get(path, tmp_path / "stick")
    target.put(tmp_path / "stick", path)


def test_an_appliance_with_no_link_gets_its_model_and_is_counted_by_file(lab: Lab, tmp_path: Path) -> None:
    controller = lab.controller()
    edge = lab.agent("edge-1", labels={"site": "island"}, settings=BRISK)
    controller.link.down()
    wait_until("the controller misses it", lambda: not lab.is_online(edge), 60)

    version = lab.register(flow_model(size_bytes=1 << 20))
    lab.vedette(f"model export {version} {_BUNDLE} --for site=island")
    _carry(tmp_path, controller, _BUNDLE, edge)
    said = edge.run(["vedette-agent", "import", _BUNDLE])
    assert f"{SLOT}: nothing → {version}" in said.text
    assert "Nothing to do" in edge.run(["vedette-agent", "import", _BUNDLE]).text
    again = edge.run(["vedette-agent", "import", "/etc/hostname"], check=False)
    assert (again.code, "bundle-invalid" in again.text or "no bundle" in again.text) == (2, True)

    edge.reboot()
    wait_until("it serves it after a reboot", lambda: f"{SLOT}:1" in edge.run("vedette-agent models").out)
    traffic = lab.traffic(edge)
    lab.await_verdicts(edge)
    wait_until("windows wait on the disk", lambda: lab.status(edge)["spool"]["batches"] > 1)
    edge.run(["vedette-agent", "export-telemetry", _TELEMETRY])
    _carry(tmp_path, edge, _TELEMETRY, controller)
    lab.vedette(f"telemetry import {_TELEMETRY}")
    counted = lab.rows_counted(edge)
    assert 0 < counted <= lab.verdict_count(edge)
    lab.vedette(f"telemetry import {_TELEMETRY}")
    assert lab.rows_counted(edge) == counted

    traffic.stop()
    controller.link.up()
    wait_until("it is back, with what the file brought", lambda: lab.is_online(edge), 60)
    assert lab.active(edge) == version
    wait_until("each flow is counted once", lambda: lab.rows_counted(edge) == lab.verdict_count(edge))
    assert lab.conditions(edge) == {}
