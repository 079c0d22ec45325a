"""``enroll`` and its neighbours on a packaged host: whoever asks, the files are the service user's."""

from __future__ import annotations

import asyncio
import io
import pwd
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles import bundle_of
from tests.support.daemon import offer
from tests.support.fake_controller import AGENT_ID, FakeController
from vedette.models.telemetry_file import read_head

pytestmark = pytest.mark.root

NOBODY = pwd.getpwnam("nobody").pw_uid


@pytest.fixture
def host() -> Iterator[Path]:
    """A folder that other users may enter, which those of pytest are not, with the packaged settings."""
    folder = Path(tempfile.mkdtemp(prefix="vedette-packaged-"))
    folder.chmod(0o755)
    (folder / "agent.toml").write_text(f'state_dir = "{folder}/state"\nname = "edge-7"\n')
    yield folder
    shutil.rmtree(folder)


async def agent(host: Path, *words: str, user: int = 0) -> tuple[int, str]:
    """Run the program; return its exit code and all that it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.packaged_agent", str(host / "agent.toml"), str(user), *words),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


def owners(folder: Path) -> set[int]:
    return {path.stat().st_uid for path in (folder, *folder.rglob("*"))}


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_roots_enrolment_leaves_nothing_of_roots(host: Path, controller: FakeController) -> None:
    code, said = await agent(host, "enroll", "--token", controller.token().encode())
    assert code == 0, said
    assert "Enrolled as edge-7" in said
    assert "systemctl start vedette-agent" in said
    assert owners(host / "state") == {NOBODY}
    assert (host / "state").stat().st_mode & 0o777 == 0o700
    assert {path.name for path in (host / "state/enrolment").iterdir()} >= {"key.pem", "enrolment.json"}


async def test_a_refused_enrolment_starts_nothing_and_keeps_its_exit_code(
    host: Path, controller: FakeController
) -> None:
    code, said = await agent(host, "enroll", "--token", controller.token(refuse="token-used").encode())
    assert (code, "systemctl" in said) == (4, False)


async def test_a_look_by_root_makes_no_file_of_roots(host: Path, controller: FakeController) -> None:
    await agent(host, "enroll", "--token", controller.token().encode())
    code, said = await agent(host, "status")
    assert (code, "NOT RUNNING" in said) == (0, True)
    assert owners(host / "state") == {NOBODY}


@pytest.mark.parametrize(
    "words",
    [("enroll", "--token", "x"), ("run",), ("status",), ("models",), ("import", "-"), ("export-telemetry", "-")],
)
async def test_others_are_told_to_use_sudo(host: Path, words: tuple[str, ...]) -> None:
    stranger = 54_321
    code, said = await agent(host, *words, user=stranger)
    assert code == 4, said
    assert f"you are user {stranger}" in said
    assert f"sudo vedette-agent {words[0]}" in said
    assert not (host / "state").exists()


async def test_root_carries_files_that_only_root_may_touch_and_leaves_nothing_of_roots(
    host: Path, tmp_path: Path, controller: FakeController
) -> None:
    await agent(host, "enroll", "--token", controller.token().encode())
    stick = tmp_path / "stick"
    stick.mkdir(mode=0o700)
    bundle = stick / "edge.bundle"
    bundle.write_bytes(bundle_of(controller.assign(1, offer(controller, 1)), blobs=controller.blobs.values()))
    bundle.chmod(0o600)
    code, said = await agent(host, "import", str(bundle))
    assert (code, "Assignment 1 is stored" in said) == (0, True), said
    code, said = await agent(host, "export-telemetry", str(stick / "edge.telemetry"))
    assert (code, "0 batches" in said) == (0, True), said
    assert read_head(io.BytesIO((stick / "edge.telemetry").read_bytes())).agent == AGENT_ID
    assert entries(stick) == {"edge.bundle", "edge.telemetry"}
    assert owners(host / "state") == {NOBODY}


async def test_an_export_that_fails_as_the_service_user_leaves_what_was_there(host: Path, tmp_path: Path) -> None:
    (host / "state").mkdir()
    shutil.chown(host / "state", "nobody")
    file = tmp_path / "edge.telemetry"
    file.write_bytes(b"old")
    code, said = await agent(host, "export-telemetry", str(file))
    assert (code, "this appliance belongs to no controller" in said) == (4, True), said
    assert file.read_bytes() == b"old"
    assert entries(tmp_path) == {"edge.telemetry"}


async def test_settings_of_ones_own_make_nobody_a_service(host: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(f'state_dir = "{tmp_path}/own"\n')
    code, said = await agent(host, "status", "--config", str(own))
    assert (code, "not enrolled" in said) == (0, True)
