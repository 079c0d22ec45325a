"""Backup and restore, with a power cut at any moment: a backup that was told of is whole, a restore is all or nothing.

A controller is made, gets a token, is backed up, gets another token and is restored. Which tokens a disk holds
afterwards says which controller it is: the one before the restore or the one that was backed up.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from tests.integration.powercut.conftest import Crashed
from tests.support.powercut.crashes import Crash, crashes, sampled
from tests.support.powercut.recording import Recording
from tests.support.powercut.records import Record
from tests.support.powercut.share import share_of
from vedette.controller.adapters.examine import examine
from vedette.controller.adapters.keys import KeyRing
from vedette.controller.adapters.restore import staged
from vedette.controller.adapters.sqlite.tokens import TokenStore
from vedette.controller.app import opened
from vedette.controller.rooms import MIGRATIONS
from vedette.controller.settings import ControllerSettings

ADD_TOKEN = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from vedette.controller.adapters.sqlite.tokens import TokenStore
from vedette.controller.app import opened
from vedette.controller.domain.tokens import TokenRecord
from vedette.controller.settings import ControllerSettings
now = datetime.now(UTC)
with opened(ControllerSettings(data_dir=Path(sys.argv[1]))) as database:
    TokenStore(database).add(TokenRecord(id=sys.argv[2], secret_digest="", uses=1, created=now, expires=now))
"""


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("recovery")
    (folder / "disk").mkdir()
    recording = Recording(folder / "disk", folder / "log")
    data, backup = str(recording.root / "data"), str(recording.root / "backup.tar")

    def run(*words: str) -> None:
        environment = {**os.environ, **recording.environment}
        subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True, timeout=60)

    def controller(*words: str) -> None:
        run("-m", "vedette.controller", *words)

    controller("init", "--data-dir", data, "--listen", "127.0.0.1:0")
    recording.mark(controller=KeyRing.load(Path(data)).controller_id)
    run("-c", ADD_TOKEN, data, "kept")
    recording.mark(token="kept")
    controller("backup", backup, "--config", f"{data}/controller.toml")
    recording.mark(backed_up=True)
    run("-c", ADD_TOKEN, data, "lost")
    recording.mark(token="lost")
    recording.mark(restoring=True)
    controller("restore", backup, "--data-dir", data, "--yes")
    recording.mark(restored=True)
    controller("restore", backup, "--data-dir", str(recording.root / "copy"), "--yes")
    recording.mark(copied=True)
    return recording.records()


@pytest.mark.slow
@pytest.mark.timeout(1200)  # all of it takes minutes
def test_after_a_power_cut_anywhere_it_is_the_old_controller_or_the_restored_one(
    life: list[Record], crashed: Crashed
) -> None:
    for crash in sampled(crashes(life), share_of(0.1)):
        if crash.facts:
            with crashed(crash) as folder:
                try:
                    _check(folder, crash)
                except Exception as exc:
                    raise AssertionError(f"{crash}: {type(exc).__name__}: {exc}") from exc


def _check(folder: Path, crash: Crash) -> None:
    settings = ControllerSettings(data_dir=folder / "data")
    tokens = _tokens(settings)
    assert [finding.text for finding in examine(settings, MIGRATIONS) if not finding.is_good] == []
    told = {name: value for fact in crash.facts for name, value in fact.items()}
    assert KeyRing.load(folder / "data").controller_id == told["controller"]
    before = {fact["token"] for fact in crash.facts if "token" in fact}
    is_restored = tokens.get("kept") is not None  # a restore revokes every token
    assert is_restored or "restored" not in told, "what was restored is gone"
    assert not is_restored or "restoring" in told
    assert tokens.keys() == {"kept"} if is_restored else tokens.keys() >= before
    if "copied" in told:
        assert KeyRing.load(folder / "copy").controller_id == told["controller"]
        assert _tokens(ControllerSettings(data_dir=folder / "copy")).keys() == {"kept"}
    if "backed_up" in told:
        (folder / "elsewhere").mkdir()
        nowhere = folder / "elsewhere"
        with (folder / "backup.tar").open("rb") as source, staged(nowhere, source, MIGRATIONS, None, _ignore) as ready:
            assert ready.manifest.controller_id == told["controller"]


def _tokens(settings: ControllerSettings) -> dict[str, datetime | None]:
    """Return when each token was revoked. Opens as a start does: it carries a restore that was decided to its end."""
    with opened(settings) as database:
        return {token.id: token.revoked for token in TokenStore(database).list_all()}


def _ignore(what: str, done: float) -> None:
    """Progress is for people."""
