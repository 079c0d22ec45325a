import os
from pathlib import Path

import pytest

from vedette.controller.adapters import initialise as module
from vedette.controller.adapters.examine import examine
from vedette.controller.adapters.initialise import MARKER, Plan, check_initialised, initialise
from vedette.controller.adapters.keys import KeyRing
from vedette.controller.adapters.sqlite.database import Database
from vedette.controller.context import AdminContext
from vedette.controller.domain.errors import AlreadyThere, ControllerError, InvalidInput, Refused
from vedette.controller.rooms import MIGRATIONS
from vedette.controller.settings import ControllerSettings, advertised
from vedette.models.toml_settings import SettingsError


def plan(data_dir: Path, **changes: object) -> Plan:
    made = {
        "data_dir": data_dir,
        "listen": "127.0.0.1:7443",
        "enrol_listen": "127.0.0.1:7444",
        "addresses": ("ctl.example:7443",),
        "admin_address": "127.0.0.1:7443",
        **changes,
    }
    return Plan(**made)  # type: ignore[arg-type]


def test_a_new_controller_is_whole(tmp_path: Path):
    made = initialise(plan(tmp_path / "data"), MIGRATIONS)
    settings = ControllerSettings.load(made.config)
    context = AdminContext.load(made.context)
    assert settings.data_dir == tmp_path / "data"
    assert (settings.listen, settings.enrol_listen) == ("127.0.0.1:7443", "127.0.0.1:7444")
    assert settings.addresses == ("ctl.example:7443",)
    assert (context.name, context.address) == ("admin", "127.0.0.1:7443")
    assert context.key not in repr(context)
    assert KeyRing.load(made.data_dir).controller_id == made.controller_id
    assert made.context.stat().st_mode & 0o777 == 0o600
    assert made.data_dir.stat().st_mode & 0o777 == 0o700
    assert all(finding.is_good for finding in examine(settings, MIGRATIONS))
    check_initialised(made.data_dir)


def test_what_is_there_is_never_touched(tmp_path: Path):
    initialise(plan(tmp_path / "data"), MIGRATIONS)
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    with pytest.raises(AlreadyThere, match="holds a controller already"):
        initialise(plan(tmp_path / "data"), MIGRATIONS)
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()} == before
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").touch()
    with pytest.raises(AlreadyThere, match="not empty"):
        initialise(plan(tmp_path / "home"), MIGRATIONS)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter"]


class Cut(BaseException):
    """The power goes."""


def test_a_cut_at_any_write_is_told_and_mended_by_the_next_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``os.fsync`` stands behind every durable step: the k-th one never returns."""
    real, left = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Cut
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    cuts = 0
    while True:
        data_dir = tmp_path / str(cuts)
        left[0] = cuts
        try:
            initialise(plan(data_dir), MIGRATIONS)
        except Cut:
            cuts += 1
        else:
            break
        left[0] = 1000
        if (data_dir / MARKER).exists():
            with pytest.raises(Refused, match="not initialised to the end"):
                check_initialised(data_dir)
            initialise(plan(data_dir), MIGRATIONS)
        elif not any(data_dir.iterdir()):  # cut before the marker: an empty folder, as good as none
            initialise(plan(data_dir), MIGRATIONS)
        check_initialised(data_dir)
        KeyRing.load(data_dir)
        AdminContext.load(data_dir / "admin.toml")
    assert cuts > 15


def test_a_volume_of_its_own_counts_as_empty(tmp_path: Path):
    (tmp_path / "lost+found").mkdir()
    made = initialise(plan(tmp_path), MIGRATIONS)
    check_initialised(made.data_dir)
    assert (tmp_path / "lost+found").is_dir()


def test_what_init_learnt_counts_where_the_settings_file_is_silent(tmp_path: Path):
    made = initialise(plan(tmp_path / "data"), MIGRATIONS)
    file = tmp_path / "etc.toml"
    file.write_text(f'data_dir = "{made.data_dir}"\nlisten = "127.0.0.1:1"\n')
    settings = ControllerSettings.load(file)
    assert (settings.listen, settings.enrol_listen) == ("127.0.0.1:1", "127.0.0.1:7444")
    assert settings.addresses == ("ctl.example:7443",)
    made.config.write_text("listne = 1")
    with pytest.raises(SettingsError, match="listne"):
        ControllerSettings.load(file)


def test_a_name_that_no_certificate_can_hold_leaves_a_directory_for_the_next_try(tmp_path: Path):
    with pytest.raises(InvalidInput):
        initialise(plan(tmp_path / "data", names=("bäd",)), MIGRATIONS)
    initialise(plan(tmp_path / "data"), MIGRATIONS)


def test_an_empty_directory_is_no_controller(tmp_path: Path):
    with pytest.raises(Refused, match="holds no controller"):
        check_initialised(tmp_path)


def spoil_key(data_dir: Path) -> None:
    (data_dir / "keys" / "release.pem").chmod(0o644)


def spoil_context(data_dir: Path) -> None:
    (data_dir / "admin.toml").chmod(0o644)


def spoil_blob(data_dir: Path) -> None:
    blobs = module.BlobStore(data_dir / "blobs")
    path = blobs.path(blobs.put(b"whole").digest)
    path.chmod(0o600)
    path.write_bytes(b"whale")


def spoil_database(data_dir: Path) -> None:
    path = data_dir / "controller.db"
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 5] = b"\xff" * 8192
    path.write_bytes(bytes(data))


def newer_database(data_dir: Path) -> None:
    database = Database(data_dir / "controller.db")
    database.migrate([module.Migration("from-the-future", lambda _: None)])
    database.close()


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (spoil_key, "keys and certificates"),
        (spoil_context, "admin's context file"),
        (spoil_blob, "blobs"),
        (spoil_database, "database"),
        (newer_database, "database"),
    ],
)
def test_check_finds_what_is_wrong_and_looks_at_the_rest(tmp_path: Path, spoil, name: str):  # type: ignore[no-untyped-def]
    made = initialise(plan(tmp_path / "data"), MIGRATIONS)
    spoil(made.data_dir)
    findings = list(examine(ControllerSettings.load(made.config), MIGRATIONS))
    assert [finding.text.split(":")[0] for finding in findings if not finding.is_good] == [name]
    assert len(findings) == (7 if name in ("database", "keys and certificates") else 8)


def test_check_of_nothing_says_so(tmp_path: Path):
    findings = list(examine(ControllerSettings(data_dir=tmp_path), MIGRATIONS))
    assert [finding.is_good for finding in findings] == [True, False]


@pytest.mark.parametrize(
    ("listen", "names", "expected"),
    [
        ("127.0.0.1:7443", (), ("127.0.0.1:7443",)),
        ("0.0.0.0:7443", ("ctl.example", "fd00::1"), ("ctl.example:7443", "[fd00::1]:7443")),
        ("[::1]:7443", (), ("[::1]:7443",)),
        ("10.0.0.5:7443", ("ctl.example",), ("ctl.example:7443", "10.0.0.5:7443")),
    ],
)
def test_addresses_that_agents_are_told(listen: str, names: tuple[str, ...], expected: tuple[str, ...]):
    assert advertised(listen, names) == expected


def test_full_disks_at_init_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ControllerError, match="no room"):
        initialise(plan(tmp_path / "data"), MIGRATIONS)
    monkeypatch.undo()
    initialise(plan(tmp_path / "data"), MIGRATIONS)
