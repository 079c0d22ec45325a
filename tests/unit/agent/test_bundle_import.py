"""Claims about bringing a bundle in, with no agent running and a disk that does as it likes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.bundles import bundle_of
from tests.support.clock import NOON
from tests.support.fake_controller import AGENT_ID
from tests.unit.agent.test_reconcile import ASSIGNMENT_KEY, RELEASE_KEY, assignment, desired, release
from vedette.agent.adapters.fleet import bundle_import
from vedette.agent.adapters.fleet.bundle_import import Brought, BundleInvalid, BundleRefused, Standing, bring_in
from vedette.agent.adapters.fleet.identity import Identity, IdentityStore
from vedette.agent.adapters.fleet.inbox import Inbox
from vedette.agent.adapters.storage.blobs import Blobs
from vedette.agent.domain.errors import DiskFull
from vedette.agent.settings import Settings, read_settings
from vedette.models.documents import digest_of
from vedette.models.release import Blob, Release

NEVER = Standing(0, "", 0, NOON)
MODEL, GOLDEN = b"a model", b"golden"


@pytest.fixture
def settings(tmp_path: Path, agent_key: bytes) -> Settings:
    config = tmp_path / "agent.toml"
    config.write_text(f'state_dir = "{tmp_path}/s"\n')
    made = read_settings(config)
    store = IdentityStore(made.enrolment_dir)
    store.key()
    keys = (RELEASE_KEY.public,), (ASSIGNMENT_KEY.public,)
    store.commit(Identity(AGENT_ID, "edge-7", "c1", "", ("c:1",), *keys, agent_key, b"certificate", b"ca"))
    return made


def whole_release() -> Release:
    one = release()
    build = replace(one.builds[0], blob=Blob(digest_of(MODEL), len(MODEL)))
    return replace(one, builds=(build,), golden=Blob(digest_of(GOLDEN), len(GOLDEN)))


def bundle(*blobs: bytes) -> bytes:
    one = whole_release()
    return bundle_of(desired(assignment(one), one), blobs=blobs)


def bring(settings: Settings, data: bytes, standing: Standing = NEVER) -> Brought:
    return bring_in(io.BytesIO(data), settings, standing, lambda *_: None)


def left(settings: Settings) -> list[str]:
    return sorted(path.name for path in (settings.state_dir / "import").glob("*/*"))


def test_only_what_the_assignment_names_is_written(settings: Settings) -> None:
    bring(settings, bundle(b"of somebody else", MODEL, GOLDEN))
    names = {digest_of(data).removeprefix("sha256:") for data in (MODEL, GOLDEN)}
    assert set(left(settings)) == {"assignment", "release-00", *names}
    inbox = Inbox(settings.state_dir / "import", Blobs(settings.state_dir / "blobs"))
    found = inbox.newest()
    assert found is not None
    assert found.desired == desired(assignment(whole_release()), whole_release())


def test_what_is_in_the_store_need_not_be_in_the_file_and_is_kept_from_being_removed(settings: Settings) -> None:
    blobs = Blobs(settings.state_dir / "blobs")
    blobs.path(digest_of(MODEL)).write_bytes(MODEL)
    bring(settings, bundle(GOLDEN))
    assert blobs.path(digest_of(MODEL)).stat().st_nlink == 2


def test_a_disk_without_room_for_it_is_told_before_anything_is_written(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_import, "free_bytes", lambda _: bundle_import.RESERVE_BYTES + len(MODEL))
    with pytest.raises(DiskFull, match=f"the bundle needs {len(MODEL + GOLDEN)}"):
        bring(settings, bundle(MODEL, GOLDEN))
    assert left(settings) == []


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda data: data[:-1], BundleInvalid),
        (lambda data: data[:-1] + b"x", BundleInvalid),
        (lambda data: data + b"x", BundleInvalid),
    ],
)
def test_a_file_that_turns_out_damaged_at_its_end_leaves_nothing(
    settings: Settings, spoil: Callable[[bytes], bytes], error: type[Exception]
) -> None:
    with pytest.raises(error):
        bring(settings, spoil(bundle(MODEL, GOLDEN)))
    assert left(settings) == []


def test_the_time_floor_judges_expiry(settings: Settings) -> None:
    late = replace(NEVER, floor=assignment().not_after.replace(year=2030))
    with pytest.raises(BundleRefused) as caught:
        bring(settings, bundle(MODEL, GOLDEN), late)
    assert caught.value.code == "expired"


def test_what_runs_already_is_not_read_again(settings: Settings) -> None:
    runs = Standing(5, assignment(whole_release()).digest, 5, NOON)
    assert bring(settings, bundle(), runs).place == ""
    assert left(settings) == []


def test_what_is_wanted_and_does_not_run_yet_is_taken(settings: Settings) -> None:
    waits = Standing(5, assignment(whole_release()).digest, 4, NOON)
    assert bring(settings, bundle(MODEL, GOLDEN), waits).place


def test_how_an_agent_stands_survives_its_page() -> None:
    standing = Standing(7, "sha256:x", 6, NOON, {"sequence": 7, "outcome": "failed"}, "ready-7")
    said = json.loads(standing.to_json())
    assert said["outcome"]["outcome"] == "failed"
    assert (said["highest_sequence"], said["running_sequence"], said["taken"]) == (7, 6, "ready-7")
