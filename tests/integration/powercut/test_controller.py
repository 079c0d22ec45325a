"""A controller after a power cut at any moment of its life: what it answered is there, and ``check`` finds it whole.

The life of :mod:`tests.support.powercut.controller_life` is recorded once. Each state that a disk may hold is examined
and opened with the controller's own parts; on some the real server is started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.powercut.conftest import Crashed
from tests.support.controller import Appliance, prepare, running
from tests.support.powercut.controller_life import ABLE, DATA, UNRECORDED, recorded_life
from tests.support.powercut.crashes import Crash, crashes, drawn, sampled
from tests.support.powercut.records import Record
from tests.support.powercut.share import share_of
from vedette.controller.adapters.blobs import BlobStore
from vedette.controller.adapters.examine import examine
from vedette.controller.adapters.initialise import check_initialised
from vedette.controller.adapters.keys import KeyRing
from vedette.controller.adapters.sqlite.agents import AgentStore
from vedette.controller.adapters.sqlite.database import Database
from vedette.controller.adapters.sqlite.datasets import DatasetStore
from vedette.controller.adapters.sqlite.registry import RegistryStore
from vedette.controller.adapters.sqlite.rollouts import SqliteRollouts
from vedette.controller.adapters.sqlite.telemetry import TelemetryStore
from vedette.controller.adapters.sqlite.tokens import TokenStore
from vedette.controller.app import opened
from vedette.controller.domain.desired import StoredAgent
from vedette.controller.domain.errors import AlreadyThere
from vedette.controller.rooms import MIGRATIONS
from vedette.controller.settings import ControllerSettings
from vedette.wire.v1 import admin_pb2

Fact = dict[str, Any]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return asyncio.run(recorded_life(tmp_path_factory.mktemp("controller-life")))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # all of it takes minutes
def test_after_a_power_cut_anywhere_everything_answered_is_there(life: list[Record], crashed: Crashed) -> None:
    for crash in sampled(crashes(life, unrecorded=UNRECORDED), share_of(0.15)):
        with crashed(crash) as folder:
            try:
                _check(folder / DATA, crash)
            except Exception as exc:
                raise AssertionError(f"{crash}: {type(exc).__name__}: {exc}") from exc


@pytest.mark.slow
@pytest.mark.timeout(1200)  # all of it takes minutes
async def test_after_a_power_cut_the_server_comes_back_and_serves_its_agents(
    life: list[Record], crashed: Crashed
) -> None:
    served = [record for record in crashes(life, unrecorded=UNRECORDED) if record.facts]
    for crash in drawn(served, 1 if share_of(0) < 1 else 20):
        with crashed(crash) as folder:
            settings = ControllerSettings(data_dir=folder / DATA, listen="127.0.0.1:0", enrol_listen="127.0.0.1:0")
            async with running(settings) as made:
                assert list((folder / DATA / "staging").iterdir()) == []
                assert list((folder / DATA / "blobs/incoming").iterdir()) == []
                agent = Appliance(made)
                await made.enrol(agent, await made.token(), name="late", facts=ABLE)
                async with agent.connected(), made.admin() as admin:
                    agents = (await admin.ListAgents(admin_pb2.ListAgentsRequest())).agents
            told = {fact["enrolled"] for fact in crash.facts if "enrolled" in fact}
            assert {"late", *told} <= {each.name for each in agents}, str(crash)


def _check(data_dir: Path, crash: Crash) -> None:
    if crash.facts:
        check_initialised(data_dir)  # init had said that it was done
    else:
        with suppress(AlreadyThere):
            prepare(data_dir)  # what a refusal tells the operator to do
    settings = ControllerSettings(data_dir=data_dir)
    assert [finding.text for finding in examine(settings, MIGRATIONS) if not finding.is_good] == []
    with opened(settings) as database:
        shelf = _Shelf(data_dir, database)
        for fact in crash.facts:
            _CHECKS[next(iter(fact))](shelf, fact)
        for digest in shelf.named_blobs():
            shelf.blobs.verify(digest)


class _Shelf:
    """Every store of a controller."""

    def __init__(self, data_dir: Path, database: Database) -> None:
        keys = KeyRing.load(data_dir)
        self.blobs = BlobStore(data_dir / "blobs")
        self.agents = {agent.record.name: agent for agent in AgentStore(database).load()}
        self.tokens = {token.id: token for token in TokenStore(database).list_all()}
        self.datasets = DatasetStore(database)
        self.versions = RegistryStore(database, keys.release)
        self.rollouts = SqliteRollouts(database)
        self.telemetry = TelemetryStore(database)

    def named_blobs(self) -> Iterator[str]:
        """Yield the file of every part and version."""
        for dataset in self.datasets.datasets():
            yield from (part.digest for part in self.datasets.contents(dataset.name).parts)
        for version in self.versions.versions():
            release = self.versions.release(version.version)
            yield from (build.digest for build in release.builds)
            yield from (blob.digest for blob in (release.golden, release.reference) if blob is not None)

    def agent(self, agent_id: str) -> StoredAgent:
        return next(agent for agent in self.agents.values() if agent.record.id == agent_id)


def _token(shelf: _Shelf, fact: Fact) -> None:
    assert fact["token"] in shelf.tokens


def _enrolled(shelf: _Shelf, fact: Fact) -> None:
    assert shelf.agents[fact["enrolled"]].record.id == fact["id"]


def _labelled(shelf: _Shelf, fact: Fact) -> None:
    assert shelf.agents[fact["labelled"]].record.labels == {"site": "s1"}


def _imported(shelf: _Shelf, fact: Fact) -> None:
    found = shelf.datasets.find_import("lab", fact["imported"])
    assert found is not None
    assert found.rows == fact["rows"]


def _windows(shelf: _Shelf, fact: Fact) -> None:
    assert shelf.datasets.dataset("lab").label_windows == fact["windows"]


def _snapshot(shelf: _Shelf, fact: Fact) -> None:
    name, _, number = fact["snapshot"].partition("@")
    assert shelf.datasets.snapshot(name, int(number))[0].digest == fact["digest"]


def _version(shelf: _Shelf, fact: Fact) -> None:
    release = shelf.versions.release(fact["version"])
    assert shelf.versions.envelope(release.digest) is not None


def _batch(shelf: _Shelf, fact: Fact) -> None:
    [totals] = shelf.telemetry.totals().values()
    assert totals.rows >= 100 * fact["batch"]


def _rollout(shelf: _Shelf, fact: Fact) -> None:
    found = shelf.rollouts.load(fact["rollout"])
    assert found is not None
    if fact["state"] != "ROLLOUT_STATE_RUNNING":
        assert f"ROLLOUT_STATE_{found.state.name}" == fact["state"]


def _assigned(shelf: _Shelf, fact: Fact) -> None:
    newest = shelf.agent(fact["agent"]).newest
    assert newest is not None
    assert newest.sequence >= fact["sequence"], "a sequence number would be given twice"
    assert newest.sequence > fact["sequence"] or newest.digest == fact["digest"], "a number means two assignments"


def _revoked(shelf: _Shelf, fact: Fact) -> None:
    assert shelf.agents[fact["revoked"]].record.revoked is not None


_CHECKS: dict[str, Callable[[_Shelf, Fact], None]] = {
    "made": lambda shelf, fact: None,
    "token": _token,
    "enrolled": _enrolled,
    "labelled": _labelled,
    "imported": _imported,
    "windows": _windows,
    "snapshot": _snapshot,
    "version": _version,
    "batch": _batch,
    "rollout": _rollout,
    "agent": _assigned,
    "revoked": _revoked,
}
