"""What each role pulls in and imports; decided once in pyproject.toml and kept true here."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TRAINING = {"scikit-learn", "lightgbm", "onnx", "skl2onnx", "onnxmltools", "pyarrow", "scipy"}
CONTROLLER_ONLY = TRAINING | {"apscheduler", "sqlite-utils", "click", "rich"}


def closure(name: str, extras: frozenset[str]) -> set[str]:
    """Return every distribution an installation of ``name[extras]`` brings, by the metadata of what is installed."""
    found: set[str] = set()
    waiting = [(name, extras)]
    while waiting:
        name, extras = waiting.pop()
        for text in requires(name) or ():
            wanted = Requirement(text)
            applies = any(wanted.marker is None or wanted.marker.evaluate({"extra": extra}) for extra in extras | {""})
            if applies and canonicalize_name(wanted.name) not in found:
                found.add(canonicalize_name(wanted.name))
                waiting.append((wanted.name, frozenset(wanted.extras)))
    return found


def test_the_agent_brings_nothing_of_the_controllers():
    brought = closure("vedette", frozenset({"agent"}))
    assert brought >= {"grpcio", "onnxruntime", "cryptography", "numpy", "protobuf"}
    assert not brought & CONTROLLER_ONLY


def test_the_agents_dependencies_stay_few():
    # onnxruntime brings flatbuffers and packaging, cryptography cffi, grpcio typing_extensions.
    allowed = {"grpcio", "onnxruntime", "cryptography", "numpy", "protobuf"}
    allowed |= {"grpcio-health-checking", "grpcio-reflection", "psutil"}
    allowed |= {"flatbuffers", "packaging", "cffi", "pycparser", "typing-extensions"}
    assert closure("vedette", frozenset({"agent"})) <= allowed


def test_the_controller_brings_no_heavy_trainer():
    assert not closure("vedette", frozenset({"controller"})) & {"torch", "tensorflow", "xgboost"}


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join(sorted(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_agent_loads_no_runtime_and_no_training_library():
    loaded = modules_after("import vedette.agent.app, vedette.agent.cli")
    assert not loaded & ({"onnxruntime", "sklearn"} | CONTROLLER_ONLY)


def test_importing_the_controller_loads_no_training_library():
    # Training, conversion and parsing run in child processes; the server stays small.
    assert not modules_after("import vedette.controller.app") & ({"onnxruntime", "sklearn"} | TRAINING)


def test_the_cli_is_up_before_anything_heavy_is():
    assert not modules_after("import vedette.controller.cli") & {"grpc", "numpy", "pyarrow", "onnx", "sklearn"}


@pytest.mark.parametrize(
    ("script", "extra"), [("vedette", "controller"), ("vedette_controller", "controller"), ("vedette_agent", "agent")]
)
def test_a_program_without_its_extra_says_which_is_missing(script, extra):
    # No library is found, as in an installation without extras.
    code = (
        "import sys\n"
        "from vedette.models import entry\n"
        "entry.find_spec = lambda name: None\n"
        "sys.argv = ['program', 'status']\n"
        f"sys.exit(entry.{script}())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"vedette[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("side", ["agent", "controller"])
def test_neither_side_imports_the_other(side):
    other = {"agent": "controller", "controller": "agent"}[side]
    code = f"import sys, vedette.{side}.app; print([m for m in sys.modules if m.startswith('vedette.{other}')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
