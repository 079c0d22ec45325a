"""What every scenario gets: a lab of its own, time, and a report of all hosts when it fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import ground
from tests.lab.lab import Lab
from tests.lab.packages import Packages

_HERE = Path(__file__).parent
_SCENARIO_S = 300
_SOAK_S = 3600
_FAILED = ground.LAB_FOLDER / "failed"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="the sizes and times of make soak, not of CI")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seconds = _SOAK_S if config.getoption("--soak", default=False) else _SCENARIO_S
    why = ground.missing()
    for item in items:
        if _HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.lab)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(seconds))
        if why:
            item.add_marker(pytest.mark.skip(reason=why))


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # in xdist's workers nobody sees what is printed
        config.pluginmanager.register(_Progress(), "lab-progress")


class _Progress:
    """A line for each scenario when it ends, instead of a dot."""

    def pytest_report_teststatus(self, report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str, str] | None:
        if not isinstance(report, pytest.TestReport) or "lab" not in report.keywords:
            return None
        said = report.outcome if report.when == "call" or not report.passed else ""
        return said, "", report.outcome.upper()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "lab" not in report.keywords:
            return
        self._spent[report.nodeid] = self._spent.get(report.nodeid, 0.0) + report.duration
        if report.when == "call" or not report.passed:
            name = report.nodeid.partition("::")[2].removeprefix("test_").replace("_", " ")
            measured = "".join(f", {what} {value}" for what, value in report.user_properties)
            print(f"{self._spent[report.nodeid]:7.1f} s  {report.outcome}  {name}{measured}", flush=True)

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}


@pytest.fixture(scope="session")
def packages() -> Packages:
    ground.sweep_abandoned()
    return Packages()


@pytest.fixture
def lab(request: pytest.FixtureRequest, packages: Packages) -> Iterator[Lab]:
    made = Lab(ground.break_ground(), packages, is_soak=request.config.getoption("--soak", default=False))
    try:
        yield made
    finally:
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Collect from the hosts while they still are there."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab) and report.when != "teardown":
        folder = _FAILED / item.name.replace("/", "_")
        shutil.rmtree(folder, ignore_errors=True)
        for name, account in lab.collect(folder).items():
            report.sections.append((f"host {name}; all of it in {folder}", account))
    return report
