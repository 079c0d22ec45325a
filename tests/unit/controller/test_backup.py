"""Backups: what is in them, what is refused, and what a restore leaves at every point where it may be cut."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.controller import prepare
from vedette.controller.adapters import restore
from vedette.controller.adapters.backup import back_up, back_up_into, read_manifest
from vedette.controller.adapters.blobs import BlobStore
from vedette.controller.adapters.initialise import check_initialised
from vedette.controller.adapters.keys import KeyRing
from vedette.controller.adapters.lock import locked
from vedette.controller.adapters.restore import commit, finish_restore, staged
from vedette.controller.adapters.sqlite.database import Database, Migration
from vedette.controller.adapters.sqlite.restores import RestoreStore
from vedette.controller.adapters.tar import add_member, end_archive, entries
from vedette.controller.app import opened
from vedette.controller.domain.backup import MANIFEST, MANIFEST_DIGEST, Manifest
from vedette.controller.domain.errors import ControllerError, DiskFull, InvalidInput, Refused
from vedette.controller.rooms import MIGRATIONS
from vedette.controller.settings import ControllerSettings

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)


def quiet(what: str, fraction: float) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> ControllerSettings:
    return prepare(tmp_path_factory.mktemp("controller") / "data")


@pytest.fixture(scope="module")
def backup(controller: ControllerSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("backups") / "one.tar"
    return back_up(controller, MIGRATIONS, target, with_blobs=False, now=NOW, told=quiet).file


def who(data_dir: Path) -> tuple[str, str, str, str]:
    """Return what tells a controller from every other."""
    keys = KeyRing.load(data_dir)
    return keys.controller_id, keys.release.key_id, keys.assignment.key_id, keys.authority.digest


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {item.name: archive.extractfile(item).read() for item in archive}  # type: ignore[union-attr]


def packed(content: dict[str, bytes]) -> BytesIO:
    target = BytesIO()
    for name, data in content.items():
        add_member(target, name, len(data), BytesIO(data), lambda _: None)
    end_archive(target)
    target.seek(0)
    return target


def put_back(data_dir: Path, backup: Path, **given: Path) -> Path | None:
    data_dir.mkdir(mode=0o700, exist_ok=True)
    blobs_from = given.get("blobs_from")
    with (
        backup.open("rb") as source,
        locked(data_dir),
        staged(data_dir, source, MIGRATIONS, blobs_from, quiet) as ready,
    ):
        return commit(ready, NOW + timedelta(days=1))


def test_a_backup_is_private_plain_tar_and_leaves_nothing_else_behind(backup: Path):
    assert backup.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in backup.parent.iterdir()] == ["one.tar"]
    names = list(members(backup))
    assert names[:2] == [MANIFEST, MANIFEST_DIGEST]
    assert {"controller.db", "keys/release.pem", "tls/ca.key", "admin.toml"} <= set(names)


def test_a_backup_put_back_elsewhere_is_the_same_controller(
    controller: ControllerSettings, backup: Path, tmp_path: Path
):
    assert put_back(tmp_path / "new", backup) is None

    assert who(tmp_path / "new") == who(controller.data_dir)
    with opened(ControllerSettings.load(tmp_path / "new" / "controller.toml")) as database:
        found = RestoreStore(database).newest()
    assert found
    assert (found.made, found.restored) == (NOW, NOW + timedelta(days=1))
    assert not (tmp_path / "new/restore.committed").exists()


def test_what_was_there_lies_aside_whole(controller: ControllerSettings, backup: Path, tmp_path: Path):
    other = prepare(tmp_path / "data")
    before = who(other.data_dir)

    aside = put_back(other.data_dir, backup)

    assert aside
    assert aside.parent == other.data_dir
    assert who(aside) == before
    with opened(ControllerSettings(data_dir=aside)) as database:
        assert database.damage() is None
    assert who(other.data_dir) == who(controller.data_dir)


def test_blobs_travel_inside_or_beside_and_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = prepare(tmp_path / "data")
    store = BlobStore(settings.data_dir / "blobs")
    one, two = store.put(b"one"), store.put(b"two" * 5000)
    monkeypatch.setattr("vedette.controller.adapters.backup.named_blobs", lambda _: {one.digest, two.digest})
    folder = tmp_path / "backups"
    folder.mkdir()

    whole = back_up(settings, MIGRATIONS, tmp_path / "whole.tar", with_blobs=True, now=NOW, told=quiet)
    beside = back_up_into(settings, MIGRATIONS, folder, keep=0, now=NOW, told=quiet)
    put_back(tmp_path / "a", whole.file)
    put_back(tmp_path / "b", beside.file, blobs_from=folder / "blobs")
    put_back(tmp_path / "c", beside.file)

    assert beside.mirrored == 2
    for name, expected in (("a", 2), ("b", 2), ("c", 0)):
        found = BlobStore(tmp_path / name / "blobs")
        assert len(list(found.digests())) == expected
        for digest in found.digests():
            found.verify(digest)
    mirrored = BlobStore(folder / "blobs").path(two.digest)
    mirrored.chmod(0o600)
    mirrored.write_bytes(b"too" * 5000)
    with pytest.raises(ControllerError, match="damaged"):
        put_back(tmp_path / "d", beside.file, blobs_from=folder / "blobs")
    assert not (tmp_path / "d/controller.db").exists()


def test_a_folder_keeps_the_newest_and_the_blobs_that_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = prepare(tmp_path / "data")
    store = BlobStore(settings.data_dir / "blobs")
    folder = tmp_path / "backups"
    folder.mkdir()
    blobs = [store.put(bytes([day])) for day in range(4)]
    for day, blob in enumerate(blobs):
        monkeypatch.setattr("vedette.controller.adapters.backup.named_blobs", lambda _, blob=blob: {blob.digest})
        made = back_up_into(settings, MIGRATIONS, folder, keep=2, now=NOW + timedelta(days=day), told=quiet)
        os.utime(BlobStore(folder / "blobs").path(blob.digest), (0, 0))

    assert made.removed == ("vedette-2026-11-24T030000Z.tar",)
    back_up_into(settings, MIGRATIONS, folder, keep=2, now=NOW + timedelta(days=4), told=quiet)
    assert sorted(path.name for path in folder.glob("*.tar")) == [
        "vedette-2026-11-26T030000Z.tar",
        "vedette-2026-11-27T030000Z.tar",
    ]
    assert set(BlobStore(folder / "blobs").digests()) == {blobs[3].digest}


def test_a_backup_that_cannot_be_read_keeps_every_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = prepare(tmp_path / "data")
    blob = BlobStore(settings.data_dir / "blobs").put(b"named once")
    folder = tmp_path / "backups"
    folder.mkdir()
    monkeypatch.setattr("vedette.controller.adapters.backup.named_blobs", lambda _: {blob.digest})
    first = back_up_into(settings, MIGRATIONS, folder, keep=0, now=NOW, told=quiet).file
    os.utime(BlobStore(folder / "blobs").path(blob.digest), (0, 0))
    first.write_bytes(first.read_bytes()[:1000])
    monkeypatch.setattr("vedette.controller.adapters.backup.named_blobs", lambda _: set())

    back_up_into(settings, MIGRATIONS, folder, keep=0, now=NOW + timedelta(days=1), told=quiet)

    assert BlobStore(folder / "blobs").has(blob.digest)


def test_a_damaged_database_is_no_backup(tmp_path: Path):
    settings = prepare(tmp_path / "data")
    path = settings.data_dir / "controller.db"
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 5] = b"\xff" * 8192
    path.write_bytes(bytes(data))

    with pytest.raises(ControllerError):
        back_up(settings, MIGRATIONS, tmp_path / "one.tar", with_blobs=False, now=NOW, told=quiet)

    assert [item.name for item in tmp_path.iterdir()] == ["data"]


def test_a_backup_inside_what_it_backs_up_is_refused(controller: ControllerSettings):
    with pytest.raises(Refused, match="cannot lie in"):
        back_up(controller, MIGRATIONS, controller.data_dir / "b.tar", with_blobs=False, now=NOW, told=quiet)


def test_room_is_looked_for_first(controller: ControllerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(DiskFull) as caught:
        back_up(controller, MIGRATIONS, tmp_path / "b.tar", with_blobs=False, now=NOW, told=quiet)
    assert "1000 bytes free" in caught.value.why
    assert list(tmp_path.iterdir()) == []


def evil_name(content: dict[str, bytes]) -> None:
    manifest = json.loads(content[MANIFEST])
    manifest["members"][0][0] = "../../etc/cron.d/x"
    content[MANIFEST] = json.dumps(manifest).encode()


def twice(content: dict[str, bytes]) -> None:
    manifest = json.loads(content[MANIFEST])
    manifest["members"].append(manifest["members"][0])
    content[MANIFEST] = json.dumps(manifest).encode()


def huge(content: dict[str, bytes]) -> None:
    manifest = json.loads(content[MANIFEST])
    manifest["members"][0][1] = 1 << 60
    content[MANIFEST] = json.dumps(manifest).encode()


def foreign(content: dict[str, bytes]) -> None:
    content[MANIFEST] = b'{"format": "somebody-else", "format_version": 1}'


def without_keys(content: dict[str, bytes]) -> None:
    manifest = json.loads(content[MANIFEST])
    manifest["members"] = [item for item in manifest["members"] if not item[0].startswith("keys/")]
    content[MANIFEST] = json.dumps(manifest).encode()


def other_keys(content: dict[str, bytes]) -> None:
    content["tls/ca.key"] = content["tls/server.key"]
    _redigest(content, "tls/ca.key")


def other_controller(content: dict[str, bytes]) -> None:
    manifest = json.loads(content[MANIFEST])
    manifest["controller_id"] = "c-0000000000000000"
    content[MANIFEST] = json.dumps(manifest).encode()


def no_database(content: dict[str, bytes]) -> None:
    content["controller.db"] = b"SQLite format 4\0" * 512
    _redigest(content, "controller.db")


def flipped_byte(content: dict[str, bytes]) -> None:
    content["controller.db"] = content["controller.db"][:-1] + b"!"


def extra_member(content: dict[str, bytes]) -> None:
    content["keys/another.pem"] = b"x"


def missing_member(content: dict[str, bytes]) -> None:
    del content["tls/server.crt"]


def _redigest(content: dict[str, bytes], name: str) -> None:
    import hashlib

    manifest = json.loads(content[MANIFEST])
    for item in manifest["members"]:
        if item[0] == name:
            item[1:] = [len(content[name]), hashlib.sha256(content[name]).hexdigest()]
    content[MANIFEST] = json.dumps(manifest).encode()


@pytest.mark.parametrize(
    "spoil",
    [evil_name, twice, huge, foreign, without_keys, other_keys, other_controller, no_database, flipped_byte,
     extra_member, missing_member],
)  # fmt: skip
def test_a_bad_backup_is_refused_and_nothing_is_touched(
    spoil: Callable[[dict[str, bytes]], None], backup: Path, tmp_path: Path
):
    import hashlib

    content = members(backup)
    spoil(content)
    content[MANIFEST_DIGEST] = hashlib.sha256(content[MANIFEST]).hexdigest().encode()
    settings = prepare(tmp_path / "data")
    before = _tree(tmp_path)

    with (
        pytest.raises(InvalidInput) as caught,
        locked(settings.data_dir),
        staged(settings.data_dir, packed(content), MIGRATIONS, None, quiet),
    ):
        pytest.fail("it was taken")

    assert caught.value.code == "backup-invalid"
    assert _tree(tmp_path) == before


def _tree(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file() and path.name != "controller.lock")
    return {str(path): path.read_bytes() for path in found}


def test_a_backup_of_a_newer_controller_says_so(backup: Path, controller: ControllerSettings, tmp_path: Path):
    manifest = json.loads(members(backup)[MANIFEST])
    with pytest.raises(Refused, match="newer controller"):
        Manifest.from_bytes(json.dumps(manifest | {"format_version": 2}).encode())
    newer = prepare(tmp_path / "newer")
    database = Database(newer.data_dir / "controller.db")
    future = Migration("from-the-future", lambda _: None)
    database.migrate([future])
    database.close()
    made = back_up(newer, (*MIGRATIONS, future), tmp_path / "n.tar", with_blobs=False, now=NOW, told=quiet)
    with pytest.raises(Refused, match="newer controller"):
        put_back(tmp_path / "data", made.file)


@given(cut=st.integers(0, 300_000))
def test_a_cut_backup_is_refused_wherever_it_is_cut(cut: int, backup: Path):
    data = backup.read_bytes()
    source = BytesIO(data[: cut % (len(data) - 1024)])
    with pytest.raises(InvalidInput):
        _read_all(source)


@given(place=st.integers(0, 8191), value=st.integers(0, 255))
def test_any_changed_byte_of_the_first_blocks_is_refused_or_harmless(place: int, value: int, backup: Path):
    data = bytearray(backup.read_bytes())
    data[place] = value
    try:
        _read_all(BytesIO(bytes(data)))
    except (InvalidInput, Refused):
        return
    content = members(backup)
    with BytesIO(bytes(data)) as source, tarfile.open(fileobj=source) as archive:
        assert all(archive.extractfile(item).read() == content[item.name] for item in archive)  # type: ignore[union-attr]


def _read_all(source: BytesIO) -> None:
    archive = entries(source)
    manifest = read_manifest(archive)
    for member in manifest.members:
        entry = next(archive, None)
        if entry is None or (entry.name, entry.size) != (member.name, member.size):
            raise InvalidInput("backup-invalid", "out of place")
        for _ in entry.pieces():
            pass
        restore._check_digest(entry, member.digest)


class Cut(BaseException):
    """The power goes."""


def _steps(monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    """Let every rename, link and removal of a name be the last thing that happens, once ``left`` is spent."""

    def doomed(real: Callable[..., object]) -> Callable[..., object]:
        def act(*arguments: object, **named: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Cut
            return real(*arguments, **named)

        return act

    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, doomed(getattr(Path, name)))
    monkeypatch.setattr(os, "link", doomed(os.link))


def test_a_restore_cut_at_any_step_leaves_the_old_controller_or_the_new_one(
    controller: ControllerSettings, backup: Path, tmp_path: Path
):
    new = who(controller.data_dir)
    outcomes = []
    for cuts in _counting():
        data_dir = tmp_path / str(cuts)
        old = who(prepare(data_dir).data_dir)
        with pytest.MonkeyPatch.context() as patched:
            _steps(patched, [cuts])
            try:
                put_back(data_dir, backup)
                break
            except Cut:
                pass
        assert (data_dir / "controller.db").exists()  # the unit's condition
        with opened(ControllerSettings(data_dir=data_dir)) as database:
            assert database.damage() is None
            was_restored = RestoreStore(database).newest() is not None
        assert who(data_dir) == (new if was_restored else old)
        check_initialised(data_dir)
        outcomes.append(was_restored)
    assert outcomes == sorted(outcomes)  # old up to the decision, new after it
    assert (outcomes.count(False) > 0, outcomes.count(True) > 8) == (True, True)


def _counting() -> Iterator[int]:
    yield from range(200)
    pytest.fail("a restore has no end")


def test_finishing_twice_changes_nothing(backup: Path, tmp_path: Path):
    put_back(tmp_path / "data", backup)
    before = _tree(tmp_path)
    finish_restore(tmp_path / "data")
    assert _tree(tmp_path) == before


def test_what_killed_backups_and_restores_left_is_cleared_away(backup: Path, tmp_path: Path):
    settings = prepare(tmp_path / "data")
    folder = tmp_path / "backups"
    (settings.data_dir / "restore.new" / "keys").mkdir(parents=True)
    folder.mkdir()
    for suffix in ("db", "db-wal", "partial"):
        (folder / f".vedette-2026-11-20T030000Z.tar.{suffix}").touch()
    (folder / "notes.txt").touch()

    back_up_into(settings, MIGRATIONS, folder, keep=0, now=NOW, told=quiet)
    with opened(settings):
        pass

    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "blobs",
        "notes.txt",
        "vedette-2026-11-23T030000Z.tar",
    ]
    assert not (settings.data_dir / "restore.new").exists()


def test_two_backups_into_one_folder_do_not_meet(tmp_path: Path):
    settings = prepare(tmp_path / "data")
    folder = tmp_path / "backups"
    folder.mkdir()

    def meanwhile(what: str, fraction: float) -> None:
        if what == "writing":
            with pytest.raises(Refused, match="another backup"):
                back_up_into(settings, MIGRATIONS, folder, keep=0, now=NOW, told=quiet)
            met.append(fraction)

    met: list[float] = []
    back_up_into(settings, MIGRATIONS, folder, keep=0, now=NOW, told=meanwhile)
    assert met
