"""Training on a packaged controller: LightGBM, its OpenMP, Arrow and the converters work inside the hardened unit."""

from __future__ import annotations

import re

import pytest

from tests.lab.lab import CONTROLLER, Lab

_CAPTURES = "/usr/lib/vedette-controller/lib/python3.11/site-packages/vedette/controller/data/captures"


@pytest.mark.timeout(600)
def test_a_model_trained_under_the_hardened_unit_is_registered_signed_and_rolled_out(lab: Lab) -> None:
    controller = lab.controller()
    edge = lab.agent("edge-1")
    capture = f"{_CAPTURES}/base2"
    lab.vedette(f"data import {capture}/softflowd-v9.pcap.gz --dataset lab --format flows", timeout=120)
    lab.vedette(f"label import {capture}/labels.json --dataset lab")
    assert "lab@1" in lab.vedette("data snapshot lab").out

    lab.vedette("train flow-threat --data lab@1", timeout=500)

    (version,) = lab.ask("model ls")
    assert version["version"] == "flow-threat:1"
    assert re.search(r"^signed by +[0-9a-f]{16}$", lab.vedette("model show flow-threat:1").out, re.MULTILINE)
    lab.roll_out("flow-threat:1")
    assert lab.active(edge) == "flow-threat:1"
    assert controller.unit(CONTROLLER, "NRestarts")["NRestarts"] == "0"
    assert controller.run(f"journalctl -u {CONTROLLER} -p warning -o cat").out == ""
