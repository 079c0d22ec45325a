"""Claims about `vedette-agent configure`: what the unit is made to say, and how the files come and go."""

from __future__ import annotations

import configparser
from dataclasses import replace
from pathlib import Path, PurePath

import pytest

from vedette.agent.adapters.host import configure
from vedette.agent.adapters.host.configure import NotPackaged, planned
from vedette.agent.adapters.host.unit import UnitFailed
from vedette.agent.cli import run_command
from vedette.agent.domain.unit_limits import MIB, BudgetTooLarge, FolderUnusable, Wanted, drop_in, slots_of, unit_limits
from vedette.agent.settings import OPTIONS as KEYS
from vedette.agent.settings import BudgetSettings, Settings, settings_from

UNIT = Path(__file__).parents[3] / "systemd/vedette-agent.service"
WANTED = Wanted(512 * MIB, 80 * MIB, 100, 1, (PurePath("/var/lib/vedette-agent"), PurePath("/var/log/vedette")))
DEFAULTS = settings_from({option.key: option.default for option in KEYS})


def lines(wanted: Wanted, memory: int = 64 * 1024 * MIB, cores: int = 8) -> list[str]:
    return list(unit_limits(wanted, host_memory_bytes=memory, host_cores=cores).lines())


def test_the_shipped_unit_says_what_the_default_settings_ask_for():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    for line in lines(configure._wanted(DEFAULTS, 1)):
        key, _, value = line.partition("=")
        assert unit["Service"][key] == value


def test_memory_is_for_the_main_process_its_queues_each_model_and_one_in_test():
    assert lines(replace(WANTED, slots=3, memory_bytes=100 * MIB))[:2] == ["MemoryHigh=588M", "MemoryMax=672M"]


def test_folders_of_ones_own_are_opened_once_and_quoted():
    own = PurePath('/data/a "b" 100%')
    assert lines(replace(WANTED, folders=(own, PurePath("/var/log/vedette/deep"), own)))[3:] == [
        'ReadWritePaths="-/data/a \\"b\\" 100%%"'
    ]


@pytest.mark.parametrize("folder", ["/home/x", "/root", "/tmp/x", "relative", "/da\nta"])
def test_a_folder_that_the_unit_cannot_open_is_refused(folder: str):
    with pytest.raises(FolderUnusable):
        lines(replace(WANTED, folders=(PurePath(folder),)))


def test_a_budget_that_the_host_does_not_have_is_refused_with_one_that_it_has():
    with pytest.raises(BudgetTooLarge) as caught:
        lines(WANTED, memory=1024 * MIB)
    assert "1296 MiB, the host has 1024 MiB" in caught.value.why
    assert caught.value.remedy == 'set budget.memory = "376MiB" or less'
    assert lines(replace(WANTED, memory_bytes=376 * MIB), memory=1024 * MIB)[1] == "MemoryMax=1024M"
    with pytest.raises(BudgetTooLarge, match=r"budget\.cpu_percent is 900"):
        lines(replace(WANTED, cpu_percent=900))


def test_the_number_of_slots_is_kept_in_the_drop_in():
    limits = unit_limits(WANTED, host_memory_bytes=2**40, host_cores=1)
    assert slots_of(drop_in(limits, config="/etc/x", slots=7)) == 7
    assert [slots_of(text) for text in ("", "# slots: 0\n", "# slots: many\n")] == [1, 1, 1]


class Systemd:
    """A service manager that counts."""

    def __init__(self, state: str = "active") -> None:
        self._state = state
        self.asked: list[str] = []

    def state(self) -> str:
        return self._state

    def ask(self, *words: str) -> None:
        self.asked.append(" ".join(words))


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    folder = tmp_path / "shipped"
    folder.mkdir()
    for name in configure.OPTIONAL:
        (folder / f"{name}.conf").write_text("[Service]\n")
    return folder


def run(tmp_path: Path, settings: Settings = DEFAULTS, *, slots: int | None = None, **optional: bool) -> list[str]:
    """Plan and apply; return what was said."""
    said: list[str] = []
    changes = planned(
        settings, config="/etc/vedette/agent.toml", slots=slots, folder=tmp_path / "d", shipped=tmp_path / "shipped",
        optional={name.replace("_", "-"): flag for name, flag in optional.items()},
    )  # fmt: skip
    manager = Systemd()
    configure.apply(changes, manager, said.append)
    assert manager.asked == ["daemon-reload"]
    return said


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "d").iterdir())


def test_the_same_command_again_changes_nothing(tmp_path: Path, shipped: Path):
    assert "systemctl restart vedette-agent" in run(tmp_path, slots=2, gpu=True)[-1]
    before = {path.name: path.lstat().st_ino for path in (tmp_path / "d").iterdir()}
    assert run(tmp_path, slots=2, gpu=True) == ["Nothing to change."]
    assert run(tmp_path) == ["Nothing to change."]  # what is not named stays
    assert {path.name: path.lstat().st_ino for path in (tmp_path / "d").iterdir()} == before


def test_a_change_of_the_settings_is_shown_line_by_line(tmp_path: Path, shipped: Path):
    run(tmp_path)
    said = run(tmp_path, replace(DEFAULTS, budget=BudgetSettings(256 * MIB, 50)))[0]
    assert "  - MemoryMax=1296M" in said
    assert "  + MemoryMax=784M" in said
    assert "  + CPUQuota=50%" in said


def test_optional_drop_ins_come_as_links_and_go(tmp_path: Path, shipped: Path):
    run(tmp_path, gpu=True, worker_cgroups=True)
    assert names(tmp_path) == ["50-vedette.conf", "60-gpu.conf", "60-worker-cgroups.conf"]
    assert (tmp_path / "d/60-gpu.conf").readlink() == shipped / "gpu.conf"
    run(tmp_path, gpu=False, nftables=True)
    assert names(tmp_path) == ["50-vedette.conf", "60-nftables.conf", "60-worker-cgroups.conf"]


def test_an_override_of_the_operators_own_is_left_alone(tmp_path: Path, shipped: Path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/override.conf").write_text("[Service]\nNice=0\n")
    run(tmp_path, gpu=False)
    assert names(tmp_path) == ["50-vedette.conf", "override.conf"]


def test_a_drop_in_that_is_not_installed_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(NotPackaged):
        run(tmp_path, gpu=True)
    assert not (tmp_path / "d").exists()


def test_a_run_that_was_cut_before_systemd_read_the_files_is_finished_by_the_next(tmp_path: Path, shipped: Path):
    class Deaf(Systemd):
        def ask(self, *words: str) -> None:
            raise UnitFailed("systemctl daemon-reload did not work", "cut", "again")

    changes = planned(DEFAULTS, config="c", slots=None, optional={}, folder=tmp_path / "d", shipped=shipped)
    with pytest.raises(UnitFailed):
        configure.apply(changes, Deaf(), lambda _: None)
    again = planned(DEFAULTS, config="c", slots=None, optional={}, folder=tmp_path / "d", shipped=shipped)
    manager = Systemd()
    configure.apply(again, manager, lambda _: None)
    assert (again, manager.asked) == ([], ["daemon-reload"])


@pytest.mark.parametrize("count", ["0", "65", "two", "-1"])
def test_a_number_of_slots_out_of_range_is_a_usage_error(count: str, capsys: pytest.CaptureFixture[str]):
    assert run_command(["configure", "--slots", count]) == 2
    assert "1 to 16" in capsys.readouterr().err


def test_a_dry_run_shows_and_writes_nothing_with_any_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "agent.toml"
    file.write_text('state_dir = "/srv/vedette"\nsink.json.path = ""\nbudget.memory = "64MiB"\n')
    assert run_command(["configure", "--dry-run", "--config", str(file)]) == 0
    assert '  + ReadWritePaths="-/srv/vedette"' in capsys.readouterr().err
    assert run_command(["configure", "--config", str(file)]) == 4
    assert "--dry-run" in capsys.readouterr().err
