"""Claims about the folder in which imports wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from vedette.agent.adapters.fleet.inbox import ImportRunning, Inbox, Watch
from vedette.agent.adapters.storage.blobs import Blobs
from vedette.agent.domain.errors import InstallCode
from vedette.models.documents import digest_of
from vedette.models.release import Blob
from vedette.wire.values import DesiredState, GenerationResult, Outcome

WORD = DesiredState(assignment=b"assignment", releases=(b"first", b"second"))
DATA = b"model" * 100
MODEL = Blob(digest_of(DATA), len(DATA))


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@pytest.fixture
def inbox(tmp_path: Path, blobs: Blobs) -> Inbox:
    return Inbox(tmp_path / "import", blobs)


def left(inbox: Inbox, sequence: int = 5, word: DesiredState = WORD) -> str:
    with inbox.begun() as draft:
        with draft.writing(MODEL.digest.removeprefix("sha256:")) as write:
            write(DATA)
        return draft.commit(word, sequence)


def test_what_was_left_is_found_and_gone_once_it_is_settled(inbox: Inbox) -> None:
    assert inbox.newest() is None
    place = left(inbox)
    found = inbox.newest()
    assert found is not None
    assert (found.sequence, found.place, found.desired) == (5, place, WORD)
    inbox.settle(4)
    assert inbox.newest() is not None
    inbox.settle(5)
    assert inbox.newest() is None


def test_what_was_not_committed_leaves_nothing(inbox: Inbox, tmp_path: Path) -> None:
    with inbox.begun() as draft:
        draft.put("assignment", b"half")
    assert [path.name for path in (tmp_path / "import").iterdir()] == ["lock"]


def test_what_a_killed_command_left_is_cleared_by_the_next(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "import/new-killed").mkdir(parents=True)
    (tmp_path / "import/new-killed/assignment").write_bytes(b"half")
    assert inbox.newest() is None
    left(inbox)
    assert len(list((tmp_path / "import").iterdir())) == 2


def test_two_commands_at_once_do_not_mix(inbox: Inbox) -> None:
    with inbox.begun(), pytest.raises(ImportRunning), inbox.begun():
        pass


def test_the_highest_sequence_counts_and_of_two_of_it_the_later(inbox: Inbox) -> None:
    left(inbox, 7)
    left(inbox, 6)
    later = left(inbox, 7)
    found = inbox.newest()
    assert found is not None
    assert found.place == later


def test_a_damaged_folder_is_passed_over(inbox: Inbox, tmp_path: Path) -> None:
    place = left(inbox, 7)
    left(inbox, 6)
    (tmp_path / "import" / place / "assignment").unlink()
    found = inbox.newest()
    assert found is not None
    assert found.sequence == 6


def test_a_blob_is_offered_as_a_finished_download_and_takes_no_room_twice(inbox: Inbox, blobs: Blobs) -> None:
    left(inbox)
    blobs.partial_path(MODEL.digest).write_bytes(b"half")
    assert blobs.bytes_done(MODEL) == 4
    inbox.offer_all()
    assert blobs.bytes_done(MODEL) == MODEL.size
    assert blobs.partial_path(MODEL.digest).stat().st_nlink == 2
    inbox.settle(5)
    assert blobs.partial_path(MODEL.digest).read_bytes() == DATA


def test_a_blob_of_another_size_is_not_offered(inbox: Inbox, blobs: Blobs) -> None:
    left(inbox)
    inbox.offer(Blob(MODEL.digest, MODEL.size + 1))
    assert blobs.bytes_done(MODEL) == 0


async def test_a_fetch_finds_what_waits_also_when_it_was_cleared_away_meanwhile(inbox: Inbox, blobs: Blobs) -> None:
    left(inbox)
    asked: list[int] = []

    async def fetch(blob: Blob) -> Path:
        asked.append(blobs.bytes_done(blob))
        return blobs.path(blob.digest)

    await inbox.offering(fetch)(MODEL)
    assert asked == [MODEL.size]


@pytest.mark.parametrize(
    ("outcome", "code", "is_over"),
    [
        (Outcome.APPLIED, "", True),
        (Outcome.REFUSED, "old-sequence", True),
        (Outcome.FAILED, InstallCode.SELF_TEST_FAILED, True),
        (Outcome.FAILED, InstallCode.QUARANTINED, True),
        (Outcome.FAILED, InstallCode.DISK_FULL, False),
        (Outcome.FAILED, InstallCode.STATE_FAILED, False),
        (Outcome.FAILED, "of-a-later-version", False),
    ],
)
def test_an_import_waits_for_as_long_as_something_may_come_of_it(
    outcome: Outcome, code: str, is_over: bool, inbox: Inbox
) -> None:
    left(inbox, 5)
    watch = Watch(inbox)
    told: list[GenerationResult] = []

    class Desk:
        def imported(self, word: DesiredState) -> None:
            watch.telling(told.append)(GenerationResult(sequence=5, outcome=outcome, code=code))

    watch.look(Desk())
    assert (inbox.newest() is None) == is_over
    assert len(told) == 1
    watch.look(Desk())
    assert len(told) == 1


def test_a_document_that_does_not_prove_its_sequence_is_cleared_away_too(inbox: Inbox) -> None:
    left(inbox, 5)
    watch = Watch(inbox)

    class Desk:
        def imported(self, word: DesiredState) -> None:
            refused = GenerationResult(sequence=0, outcome=Outcome.REFUSED, code="signature-invalid")
            watch.telling(lambda _: None)(refused)

    watch.look(Desk())
    assert inbox.newest() is None
