"""A program killed while it syncs, started again, and then the power goes.

What the killed one wrote is in the kernel's memory: the next one finds it and acts on it, though it is not durable yet.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.powercut.conftest import Crashed
from tests.support.powercut.crashes import crashes
from tests.support.powercut.recording import Recording
from vedette.agent.adapters.storage.state import State
from vedette.controller.adapters.sqlite.tokens import TokenStore
from vedette.controller.app import opened
from vedette.controller.settings import ControllerSettings

PRELUDE = """
import os, signal
from datetime import UTC, datetime
from pathlib import Path
from tests.support.powercut.records import mark
root, log = Path(os.environ["POWERCUT_ROOT"]), Path(os.environ["POWERCUT_LOG"])
now = datetime(2026, 11, 23, tzinfo=UTC)
"""
CONTROLLER = """
from tests.support.controller import prepare
from vedette.controller.adapters.sqlite.tokens import TokenStore
from vedette.controller.app import opened
from vedette.controller.domain.tokens import TokenRecord
from vedette.controller.settings import ControllerSettings
settings = ControllerSettings(data_dir=root / "data")
"""
MAKE_AND_DIE = """
prepare(root / "data")
with opened(settings) as database:
    for name in ("first", "second"):  # with the first, the log file itself is made and synced
        TokenStore(database).add(TokenRecord(id=name, secret_digest="", uses=1, created=now, expires=now))
        os.environ["POWERCUT_KILL_AT_SYNC"] = "1"
"""
TELL = """
with opened(settings) as database:
    for token in TokenStore(database).list_all():
        mark(log, {"token": token.id})
    os.kill(os.getpid(), signal.SIGKILL)
"""
STATE = """
from vedette.agent.adapters.storage.state import State
state = State(root / "state.db")
state.begin_boot()
"""
RAISE_AND_DIE = """
keep = state._keep_copy
def keep_and_doom(image):  # the copy is synced before the log
    keep(image)
    os.environ["POWERCUT_KILL_AT_SYNC"] = "1"
state._keep_copy = keep_and_doom
state.raise_time_floor(now)
"""
TELL_FLOOR = """
mark(log, {"floor": state.time_floor.isoformat()})
os.kill(os.getpid(), signal.SIGKILL)
"""


def run(recording: Recording, *code: str) -> None:
    environment = {**os.environ, **recording.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", "".join(code)], env=environment, check=False, timeout=60)
    assert done.returncode == -9


def test_what_a_controller_found_after_a_kill_outlives_a_power_cut(tmp_path: Path, crashed: Crashed) -> None:
    (tmp_path / "disk").mkdir()
    recording = Recording(tmp_path / "disk", tmp_path / "log")
    run(recording, PRELUDE, CONTROLLER, MAKE_AND_DIE)
    run(recording, PRELUDE, CONTROLLER, TELL)
    found = [crash for crash in crashes(recording.records()) if crash.facts]
    assert {"token": "second"} in found[-1].facts
    for crash in found:
        with crashed(crash) as folder, opened(ControllerSettings(data_dir=folder / "data")) as database:
            kept = {token.id for token in TokenStore(database).list_all()}
            assert kept >= {fact["token"] for fact in crash.facts}, str(crash)


def test_what_an_agent_found_after_a_kill_outlives_a_power_cut(tmp_path: Path, crashed: Crashed) -> None:
    (tmp_path / "disk").mkdir()
    recording = Recording(tmp_path / "disk", tmp_path / "log")
    run(recording, PRELUDE, STATE, RAISE_AND_DIE)
    run(recording, PRELUDE, STATE, TELL_FLOOR)
    found = [crash for crash in crashes(recording.records()) if crash.facts]
    assert found
    for crash in found:
        with crashed(crash) as folder:
            state = State(folder / "state.db")
            assert state.time_floor is not None, str(crash)
            state.close()
