"""The wheel is whole: it works outside the checkout, with its data, and each role installs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the wheel's files and the dependencies of this environment, but not the checkout."""
    # Entries of PYTHONPATH are no site directories: the editable install's .pth file is not read.
    path = os.pathsep.join([str(installed), sysconfig.get_paths()["purelib"]])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "HOME": str(installed)}
    return subprocess.run(
        [sys.executable, "-S", "-P", *arguments], env=environment, cwd="/", capture_output=True, text=True, check=False
    )


def test_the_wheel_runs_outside_the_checkout(installed: Path):
    code = "import vedette.models as m, vedette.controller.app as c; print(m.__file__, c.__file__)"
    done = run(installed, "-c", code)
    assert done.returncode == 0, done.stderr
    assert all(place.startswith(str(installed)) for place in done.stdout.split())


@pytest.mark.parametrize("module", ["vedette.agent", "vedette.controller", "vedette.controller.cli"])
def test_each_program_answers_from_the_wheel(installed: Path, module: str):
    done = run(installed, "-m", module, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_recipes_and_captures_travel_as_the_controllers_data(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert "vedette/controller/data/recipes/flow-threat/recipe.toml" in names
    assert "vedette/controller/data/captures/base/softflowd-v9.pcap.gz" in names
    assert not [name for name in names if name.startswith(("tests/", "vedette/agent/data", "vedette/__init__"))]


def test_recipes_are_found_in_the_wheel(installed: Path):
    code = (
        "import json; from vedette.controller.adapters.recipes_loader import recipe_names; "
        "print(json.dumps(sorted(recipe_names())))"
    )
    done = run(installed, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "flow-threat" in json.loads(done.stdout)


@pytest.mark.registry
@pytest.mark.timeout(600)
def test_the_agent_installs_without_the_training_libraries(wheel: Path, tmp_path: Path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    constraints = ROOT / "constraints.txt"
    command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), f"{wheel}[agent]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("no package registry is reachable")
    assert done.returncode == 0, done.stderr
    listed = subprocess.run([str(python), "-m", "pip", "list", "--format", "json"], capture_output=True, check=True)
    names = {item["name"].lower() for item in json.loads(listed.stdout)}
    assert {"vedette", "onnxruntime", "grpcio"} <= names
    assert not names & {"scikit-learn", "onnx", "apscheduler", "lightgbm", "sqlite-utils", "click"}
    answer = subprocess.run([str(tmp_path / "venv/bin/vedette"), "--help"], capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert "vedette[controller]" in answer.stderr
