"""``enroll`` and its neighbours on a packaged host: whoever asks, the files are the service user's."""

from __future__ import annotations

import asyncio
import pwd
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_controller import FakeController

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


@pytest.mark.parametrize("words", [("enroll", "--token", "x"), ("run",), ("status",), ("models",)])
async def test_others_are_told_to_use_sudo(host: Path, words: tuple[str, ...]) -> None:
    stranger = 54_321
    code, said = await agent(host, *words, user=stranger)
    assert code == 4, said
    assert f"you are user {stranger}" in said
    assert f"sudo vedette-agent {words[0]}" in said
    assert not (host / "state").exists()


async def test_settings_of_ones_own_make_nobody_a_service(host: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(f'state_dir = "{tmp_path}/own"\n')
    code, said = await agent(host, "status", "--config", str(own))
    assert (code, "not enrolled" in said) == (0, True)
