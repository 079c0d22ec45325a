"""An agent after a power cut at any moment of its life: nothing that it told its controller has become untrue.

The life of :mod:`tests.support.powercut.agent_life` is recorded once. Each state that a disk may hold is opened with
the agent's own parts; on some the real program is started.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.integration.powercut.conftest import Crashed
from tests.support.clock import NOON
from tests.support.daemon import Daemon, offer
from tests.support.powercut.agent_life import STATE, AgentLife, recorded_life
from tests.support.powercut.crashes import Crash, crashes, drawn, sampled
from tests.support.powercut.recording import Recording
from tests.support.powercut.share import share_of
from vedette.agent.adapters.clock import SystemClock
from vedette.agent.adapters.fleet.identity import Identity, IdentityStore
from vedette.agent.adapters.inference.serving import Serving, ServingSettings
from vedette.agent.adapters.storage.blobs import Blobs
from vedette.agent.adapters.storage.spool import Spool
from vedette.agent.adapters.storage.state import State
from vedette.agent.domain.reconcile import Accepted, Trust, verify
from vedette.models.flows.netflow import FlowDecoder
from vedette.models.release import Release
from vedette.wire.values import DesiredState, Outcome


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> AgentLife:
    return asyncio.run(recorded_life(tmp_path_factory.mktemp("agent-life")))


def told(crash: Crash, name: str) -> list[Any]:
    """Return what marks of a name said until the cut, oldest first."""
    return [fact[name] for fact in crash.facts if name in fact]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # all of it takes minutes
def test_after_a_power_cut_anywhere_everything_told_is_still_so(life: AgentLife, crashed: Crashed) -> None:
    for crash in sampled(crashes(life.records), share_of(0.1)):
        with crashed(crash) as folder:
            try:
                _check(folder / STATE, crash)
            except Exception as exc:
                raise AssertionError(f"{crash}: {type(exc).__name__}: {exc}") from exc


@pytest.mark.slow
@pytest.mark.timeout(1200)  # all of it takes minutes
async def test_after_a_power_cut_the_program_comes_back_and_takes_what_is_wanted(
    life: AgentLife, crashed: Crashed
) -> None:
    for crash in drawn(crashes(life.records), 1 if share_of(0) < 1 else 8):
        with crashed(crash) as folder:
            try:
                await _comes_back(Daemon(folder), life, crash)
            except BaseException:
                print(f"{crash}\n{folder.with_name(folder.name + '.log').read_text()}")
                raise


async def _comes_back(daemon: Daemon, life: AgentLife, crash: Crash) -> None:
    async with life.controller.reborn() as controller:
        if IdentityStore(daemon.settings.enrolment_dir).load() is None:
            token = controller.token()
            controller.tokens[token.token_id].spent_by |= {bytes.fromhex(key) for key in told(crash, "spent_by")}
            assert await daemon.command("enroll", "--token", token.encode()) == 0
        daemon.config.write_text(f'controller = ["{controller.address}"]\n{daemon.config.read_text()}')
        controller.desired = controller.assign(7, offer(controller, 2, bias=-6.0))
        await daemon.start()
        try:
            report = await daemon.until(lambda report: report["sequences"]["running"] == 7)
            assert report["slots"]["flow-threat"]["active"]["version"] == 2
            assert {r.outcome for r in controller.results if r.sequence == 7} <= {Outcome.APPLIED}
            assert not {path.name for path in daemon.settings.state_dir.iterdir()} - FILES
        finally:
            await daemon.stop()


FILES = {f"{base}.db{suffix}" for base in ("state", "spool") for suffix in ("", "-wal", "-shm", ".reserve")} | {
    *("agent.lock", "agent.sock", "inference.sock", "blobs", "enrolment", "templates.json", "state.db.copy"),
    *(".templates.json.new", ".state.db.copy.new"),  # of a write that was cut; the next one uses it
}


def _check(state_dir: Path, crash: Crash) -> None:
    identity = _checked_identity(state_dir, is_told=bool(told(crash, "enrolled")), spent_by=told(crash, "spent_by"))
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # as the program does
    state = State(state_dir / "state.db")
    try:
        _check_sequences(state, crash)
        _check_desired(state, identity)
        _check_slots(state, state_dir / "blobs", crash)
        epoch = state.begin_boot()
        assert epoch > max(told(crash, "boot_epoch"), default=0), "a boot epoch is used twice"
        _check_spool(state_dir / "spool.db", epoch, crash)
    finally:
        state.close()
    _check_templates(state_dir / "templates.json")


_DER = serialization.Encoding.DER


def _checked_identity(state_dir: Path, *, is_told: bool, spent_by: list[str]) -> Identity | None:
    store = IdentityStore(state_dir / "enrolment")
    identity = store.load()
    assert identity is not None or not is_told, "the enrolment is lost"
    if spent_by or (state_dir / "enrolment").exists():
        key = serialization.load_pem_private_key(store.key(), None)
        public = key.public_key().public_bytes(_DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        assert all(spent == public.hex() for spent in spent_by), "the token was spent on a key that is lost"
        if identity is not None:
            certificate = x509.load_pem_x509_certificate(identity.certificate)
            assert certificate.public_key() == key.public_key(), "the certificate is of another key"
            assert store.exposure() is None
    return identity


def _check_sequences(state: State, crash: Crash) -> None:
    stored = state.sequences
    for status in told(crash, "status"):
        for name in ("desired", "attempted", "failed", "running"):
            assert getattr(stored, name) >= status[name], f"{name} was {status[name]} and is {getattr(stored, name)}"
    highest = max([*told(crash, "highest"), *told(crash, "result")], default=0)
    assert stored.highest >= highest, f"sequence {highest} was accepted, {stored.highest} is the highest known"
    applied = [fact["result"] for fact in crash.facts if fact.get("outcome") == "APPLIED"]
    assert stored.running >= max(applied, default=0)
    floor = state.time_floor
    assert not highest or (floor is not None and floor >= NOON + timedelta(minutes=highest)), "the time floor went back"


def _check_desired(state: State, identity: Identity | None) -> Accepted | None:
    """The agent begins with the stored assignment: it must prove itself as one from the controller does."""
    desired = state.desired
    if desired is None:
        assert state.sequences.highest == 0
        return None
    assert identity is not None, "an assignment of a controller that is forgotten"
    return verify(
        DesiredState(assignment=desired.assignment, releases=desired.releases),
        Trust(identity.agent_id, identity.release_keys, identity.assignment_keys),
        highest_sequence=state.sequences.highest,
        highest_digest=desired.digest,
        now=state.time_floor or NOON,
    )


def _check_slots(state: State, folder: Path, crash: Crash) -> None:
    blobs, wanted = Blobs(folder), set()
    for record in state.slots.values():
        for build in (record.active, record.previous):
            if build is not None:
                needed = _files(state, build.release, build.build)
                assert all(map(blobs.is_whole, needed)), f"a file of {build.model}:{build.version} is not whole"
        for build in record.named:
            wanted |= {blob.digest.removeprefix("sha256:") for blob in _files(state, build.release, build.build)}
    statuses = told(crash, "status")
    if statuses and state.sequences.desired == statuses[-1]["desired"] == statuses[-1]["running"]:
        active = {name: record.active.build for name, record in state.slots.items() if record.active}
        assert active == {name: build["build"] for name, build in statuses[-1]["active"].items()}
    for status in statuses:
        assert set(status["quarantined"]) <= state.quarantine.keys(), "a bad build is forgotten"
    Serving(state, folder, ServingSettings(disk_bytes=0), SystemClock()).collect_garbage()
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert left <= wanted, f"nobody needs {left - wanted}"


def _files(state: State, release_digest: str, build_digest: str) -> list[Any]:
    body = state.release(release_digest)
    assert body is not None, f"release {release_digest} is lost"
    release = Release.from_bytes(body)
    assert release.digest == release_digest
    build = release.build(build_digest)
    assert build is not None
    return [blob for blob in (build.blob, release.golden, release.reference) if blob is not None]


def _check_spool(path: Path, epoch: int, crash: Crash) -> None:
    committed = {tuple(name) for name in told(crash, "batch")}
    spool = Spool(path, 1 << 20, epoch)
    waiting = set()
    try:
        while (batch := spool.oldest()) is not None:
            assert batch.gaps == (), "something that waited became a gap"
            waiting.add((batch.boot_epoch, batch.sequence))
            spool.acknowledge(batch.boot_epoch, batch.sequence)
        assert (spool.times_damaged, spool.batches_dropped) == (0, 0)
    finally:
        spool.close()
    for boot_epoch in {boot for boot, _ in committed | waiting}:
        numbers = {number for boot, number in committed | waiting if boot == boot_epoch}
        assert numbers == set(range(1, max(numbers) + 1)), f"batches of boot {boot_epoch} have a hole: {numbers}"


def _check_templates(path: Path) -> None:
    if path.exists():
        FlowDecoder().load_templates(path.read_bytes())


SPOOLING = """
import json, os
from pathlib import Path
from tests.support.powercut.records import mark
from vedette.agent.adapters.storage.spool import Spool
log = Path(os.environ["POWERCUT_LOG"])
spool = Spool(Path(os.environ["POWERCUT_ROOT"], "spool.db"), 1 << 20, 1)
for number in range(1, 41):
    spool.append(())
    mark(log, {"waits": number})
    if number % 4 == 0:
        spool.acknowledge(1, number - 1)
        mark(log, {"gone": number - 1})
"""


def test_a_batch_that_waits_is_kept_and_an_acknowledged_one_stays_gone(tmp_path: Path, crashed: Crashed) -> None:
    (tmp_path / "disk").mkdir()
    recording = Recording(tmp_path / "disk", tmp_path / "log")
    environment = {**os.environ, **recording.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", SPOOLING], env=environment, check=True, timeout=60)
    for crash in sampled(crashes(recording.records()), share_of(0.15)):
        with crashed(crash) as folder:
            spool = Spool(folder / "spool.db", 1 << 20, 2)
            kept = set()
            while (batch := spool.oldest()) is not None:
                kept.add(batch.sequence)
                spool.acknowledge(batch.boot_epoch, batch.sequence)
            spool.close()
            gone = set(told(crash, "gone"))
            assert kept >= set(told(crash, "waits")) - gone - {max(gone, default=-1) + 4}, str(crash)
            assert not kept & gone, str(crash)
            assert spool.times_damaged == 0, str(crash)
