"""What a restored controller wants of agents that moved on after the backup."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from vedette.controller.domain.desired import Issued, has_moved_on, keep_running
from vedette.models.assignment import SlotAssignment
from vedette.wire.values import BuildRef, SlotState, SlotStatus, Status

NEWEST = Issued(5, "sha256:five", b"", datetime(2026, 11, 23, tzinfo=UTC), ())


def target(version: int, slot: str = "flows") -> SlotAssignment:
    return SlotAssignment(slot, "m", version, f"release{version}", f"build{version}")


def serving(version: int | None, slot: str = "flows") -> SlotStatus:
    active = None if version is None else BuildRef(model="m", version=version, build=f"build{version}")
    return SlotStatus(slot=slot, state=SlotState.ACTIVE if active else SlotState.DOWNLOADING, active=active)


def kept(wanted: list[SlotAssignment], *slots: SlotStatus, known: tuple[int, ...] = (1, 2)):
    def release_of(ref: BuildRef) -> str | None:
        return f"release{ref.version}" if ref.version in known else None

    return keep_running({item.slot: item for item in wanted}, Status(slots=slots), release_of)


@pytest.mark.parametrize(
    ("restored", "applied", "highest", "expected"),
    [
        (None, "sha256:other", 5, False),
        (None, "sha256:other", 6, True),  # a number that was never issued: the database was put back by hand
        (4, "sha256:other", 5, True),  # a rollout went on meanwhile: the newest here says nothing
        (4, "sha256:other", 4, False),
        (4, "sha256:five", 5, False),  # it applied what is the newest here
        (0, "", 0, False),
    ],
)
def test_who_knows_more_than_the_backup_has_moved_on(restored: int | None, applied: str, highest: int, expected: bool):
    found = has_moved_on(NEWEST, restored_sequence=restored, applied_digest=applied, highest_sequence=highest)
    assert found is expected


def test_what_serves_goes_on_serving_whether_newer_or_older():
    assert kept([target(1)], serving(2)).slots == {"flows": target(2)}
    assert kept([target(2)], serving(1)).slots == {"flows": target(1)}
    assert kept([], serving(1)).slots == {"flows": target(1)}


def test_an_empty_slot_gets_what_it_was_to_get():
    assert kept([target(1)], serving(None)).slots == {"flows": target(1)}
    assert kept([target(1)]).slots == {"flows": target(1)}


def test_what_is_unknown_is_named_and_never_replaced():
    found = kept([target(1), target(2, "other")], serving(7), serving(2, "other"))
    assert (found.slots, found.unknown) == ({"other": target(2, "other")}, ("flows m:7",))


def test_the_same_number_with_another_build_is_unknown():
    other = replace(serving(1), active=BuildRef(model="m", version=1, build="built elsewhere"))
    found = keep_running({"flows": target(1)}, Status(slots=(other,)), lambda _: None)
    assert (found.slots, found.unknown) == ({}, ("flows m:1",))
