"""``init`` on a packaged host: root asks, and everything belongs to the service user."""

from __future__ import annotations

import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vedette.controller.adapters.initialise import MARKER
from vedette.controller.settings import ControllerSettings

pytestmark = pytest.mark.root

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def host() -> Iterator[Path]:
    """A folder that other users may enter, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="vedette-packaged-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def run(host: Path) -> Run:
    """Run the program with the packaged settings; the data directory is ``data``."""
    config = host / "etc.toml"
    config.write_text(f'data_dir = "{host}/data"\n')

    def program(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.support.packaged", str(config), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return program


def test_everything_that_root_makes_belongs_to_the_service_user(host: Path, run: Run):
    done = run("init", "--dns", "ctl.example")

    assert done.returncode == 0, done.stderr
    nobody = pwd.getpwnam("nobody").pw_uid
    made = [host / "data", *(host / "data").rglob("*")]
    assert len(made) > 12
    assert {path.stat().st_uid for path in made} == {nobody}
    assert not any(path.stat().st_mode & 0o077 for path in made if path.suffix in (".pem", ".key", ".db"))
    assert (host / "data").stat().st_mode & 0o777 == 0o700


def test_it_prints_what_comes_next_on_a_packaged_host(host: Path, run: Run):
    said = run("init", "--dns", "ctl.example").stdout

    assert "systemctl start vedette-controller" in said
    assert f"vedette login {host}/data/admin.toml" in said
    assert "vedette token create --label site=" in said
    assert "edit it" not in said


def test_what_it_learnt_counts_where_the_packaged_settings_are_silent(host: Path, run: Run):
    assert run("init", "--dns", "ctl.example", "--listen", "127.0.0.1:0").returncode == 0

    settings = ControllerSettings.load(host / "etc.toml")

    assert settings.addresses[0].startswith("ctl.example:")
    assert settings.listen.startswith("127.0.0.1:")
    assert settings.files == (host / "etc.toml", host / "data/controller.toml")
    assert f"listen {settings.listen}" in run("check").stdout


def test_it_says_what_to_edit_where_the_packaged_settings_say_otherwise(host: Path, run: Run):
    with (host / "etc.toml").open("a") as file:
        file.write('listen = "127.0.0.1:17443"\n')

    said = run("init", "--listen", "127.0.0.1:17555").stdout

    assert f"{host}/etc.toml says listen = 127.0.0.1:17443, and that counts, not 127.0.0.1:17555: edit it." in said


def test_a_cut_one_is_made_anew_by_the_same_command(host: Path, run: Run):
    assert run("init", "--dns", "bäd").returncode == 2
    assert (host / "data" / MARKER).exists()

    assert run("init", "--dns", "ctl.example").returncode == 0

    assert not (host / "data" / MARKER).exists()


def test_a_backup_that_root_makes_among_the_nightly_ones_is_the_service_users(host: Path, run: Run):
    assert run("init", "--dns", "ctl.example").returncode == 0
    folder = host / "backups"
    folder.mkdir()
    shutil.chown(folder, "nobody")

    done = run("backup", str(folder))

    assert done.returncode == 0, done.stderr
    nobody = pwd.getpwnam("nobody").pw_uid
    assert {path.stat().st_uid for path in (*folder.rglob("*"), *(host / "data").rglob("*"))} == {nobody}
    assert len(list(folder.glob("vedette-*.tar"))) == 1


def test_what_root_restores_is_the_service_users_though_only_root_can_read_the_backup(host: Path, run: Run):
    assert run("init", "--dns", "ctl.example").returncode == 0
    assert run("backup", str(host / "root.tar")).returncode == 0
    assert (host / "root.tar").stat().st_uid == 0

    done = run("restore", str(host / "root.tar"), "--data-dir", str(host / "data"), "--yes")

    assert done.returncode == 0, done.stderr
    nobody = pwd.getpwnam("nobody").pw_uid
    assert {path.stat().st_uid for path in (host / "data").rglob("*")} == {nobody}
    assert run("check").returncode == 0


def test_root_that_acts_as_the_owner_opens_what_only_root_may_read_where_it_says_so(host: Path):
    (host / "data").mkdir()
    shutil.chown(host / "data", "nobody")
    (host / "secret").write_text("of root")
    (host / "secret").chmod(0o600)

    done = subprocess.run(
        [sys.executable, "-c", _AS_OWNER, str(host)], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout.split("\n") == ["refused", "of root", "refused", ""], done.stderr
    assert (host / "data/made").stat().st_uid == pwd.getpwnam("nobody").pw_uid


_AS_OWNER = """
import sys
from pathlib import Path
from vedette.controller.adapters.service_user import as_who_asked, become_owner
host = Path(sys.argv[1])
def look():
    try:
        return (host / "secret").read_text()
    except PermissionError:
        return "refused"
become_owner(host / "data", may_return=True)
print(look())
with as_who_asked():
    print(look())
print(look())
(host / "data/made").touch()
"""


def test_an_ordinary_user_is_told_to_be_root(host: Path, run: Run):
    config = host / "etc.toml"
    words = [sys.executable, "-c", _AS_USER, str(config)]

    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, "run it as root" in done.stderr) == (4, True), done.stderr
    assert not (host / "data").exists()


_AS_USER = """
import os, sys
from pathlib import Path
from vedette.controller import __main__, first_use
from vedette.controller.adapters import service_user
service_user.SERVICE_USER = "nobody"
first_use.DEFAULT_CONFIG = Path(sys.argv[1])
os.setuid(4242)
sys.exit(__main__.main(["init"]))
"""
