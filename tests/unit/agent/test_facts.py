"""Claims about what an agent says of its appliance, and about its documentation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vedette.agent.app
from vedette.agent.adapters.host import gpus
from vedette.agent.adapters.host.facts import cpu_features, host_facts, runtime_versions
from vedette.agent.domain.advice import AdvisedError
from vedette.wire.convert import FACTS
from vedette.wire.values import Gpu


def test_facts_of_this_machine_travel() -> None:
    facts = host_facts(runtime_versions())
    assert facts.cpu_cores >= 1
    assert facts.memory_bytes > 2**28
    assert facts.runtimes["onnxruntime"]
    assert FACTS.from_wire(FACTS.to_wire(facts)) == facts


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["processor : 0", "flags\t\t: fpu vme AVX2 avx512_vnni fma", "flags : avx"], ("avx2", "avx512_vnni", "fma")),
        (["Features\t: fp asimd asimddp sve crc32"], ("asimd", "asimddp", "sve")),
        (["nothing of use"], ()),
        ([], ()),
    ],
)
def test_vector_features_are_read_on_x86_and_arm(lines: list[str], found: tuple[str, ...]) -> None:
    assert cpu_features(lines) == found


class FakeDriver:
    """NVIDIA's management library with one GPU; ``broken`` is the function that fails."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.is_open = False

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self.broken:
                return 999
            self._answer(name, arguments)
            return 0

        return call

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> None:
        match name:
            case "nvmlInit_v2" | "nvmlShutdown":
                self.is_open = name == "nvmlInit_v2"
            case "nvmlDeviceGetCount_v2":
                arguments[0]._obj.value = 1
            case "nvmlDeviceGetName":
                arguments[1].value = b"NVIDIA Test"
            case "nvmlDeviceGetCudaComputeCapability":
                arguments[1]._obj.value, arguments[2]._obj.value = 9, 0
            case "nvmlDeviceGetMemoryInfo":
                arguments[1]._obj.total = 2**37
            case "nvmlSystemGetDriverVersion":
                arguments[0].value = b"580.1"


def test_a_gpu_is_described_and_the_driver_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr("ctypes.CDLL", lambda _: driver)
    assert gpus.gpus() == (Gpu(name="NVIDIA Test", compute_capability="9.0", memory_bytes=2**37, driver="580.1"),)
    assert not driver.is_open


@pytest.mark.parametrize("broken", ["nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlDeviceGetMemoryInfo"])
def test_a_driver_that_fails_is_no_gpu(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    driver = FakeDriver(broken)
    monkeypatch.setattr("ctypes.CDLL", lambda _: driver)
    assert gpus.gpus() == ()
    assert not driver.is_open


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_LIBRARY", "libno-such-driver.so.1")
    assert gpus.gpus() == ()


def test_the_wired_agent_loads_no_runtime_and_nothing_of_the_controller() -> None:
    code = (
        "import sys, vedette.agent.app; from vedette.agent.adapters.host.facts import host_facts; host_facts({});"
        "heavy = [m for m in sys.modules if m.startswith(('onnxruntime', 'vedette.controller', 'onnx', 'sklearn'))];"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def _codes(kind: type[AdvisedError]) -> Iterator[str]:
    yield kind.code
    for below in kind.__subclasses__():
        yield from _codes(below)


def test_every_error_an_operator_can_see_is_documented() -> None:
    assert vedette.agent.app.AlreadyRunning in AdvisedError.__subclasses__()
    page = "".join(page.read_text() for page in (Path(__file__).parents[3] / "docs").glob("*.md"))
    codes = set(_codes(AdvisedError)) - {AdvisedError.code}
    assert sorted(code for code in codes if f"`{code}`" not in page) == []
