"""Claims about what an agent does with a desired state."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.support.clock import NOON
from tests.support.fake_controller import AGENT_ID
from vedette.agent.domain.reconcile import Accepted, Install, Refused, Remove, Trust, plan, verify
from vedette.models.assignment import ASSIGNMENT_TYPE, Assignment, AtDeadline, SlotAssignment
from vedette.models.documents import digest_of
from vedette.models.release import RELEASE_TYPE, Blob, Build, Release, TensorSpec, Tolerance
from vedette.models.signing import SigningKey, seal
from vedette.wire.values import DesiredState

RELEASE_KEY, ASSIGNMENT_KEY = SigningKey.generate(), SigningKey.generate()
TRUST = Trust(AGENT_ID, (RELEASE_KEY.public,), (ASSIGNMENT_KEY.public,))


def release(model: str = "flow-threat", version: int = 1) -> Release:
    return Release(
        model=model,
        version=version,
        created=NOON - timedelta(hours=1),
        kind="tensor",
        schema=None,
        inputs=(TensorSpec("x", "float32", (-1, 2)),),
        outputs=(TensorSpec("y", "float32", (-1,)),),
        labels=("benign", "bad"),
        threshold=0.5,
        builds=(Build("onnx-fp32", Blob(digest_of(f"{model}{version}".encode()), 10), Tolerance(0.0, 0.0)),),
        golden=Blob(digest_of(b"golden"), 6),
    )


def slot_of(one: Release) -> SlotAssignment:
    return SlotAssignment(one.model, one.model, one.version, one.digest, one.builds[0].digest)


def assignment(*releases: Release, sequence: int = 5, **changes: Any) -> Assignment:
    made = Assignment(
        AGENT_ID, sequence, NOON, NOON + timedelta(days=30), AtDeadline.KEEP, tuple(map(slot_of, releases))
    )
    return replace(made, **changes)


def desired(made: Assignment, *releases: Release, release_key: SigningKey = RELEASE_KEY) -> DesiredState:
    return DesiredState(
        assignment=seal(ASSIGNMENT_TYPE, made.to_bytes(), ASSIGNMENT_KEY),
        releases=tuple(seal(RELEASE_TYPE, one.to_bytes(), release_key) for one in releases),
    )


def check(word: DesiredState, *, highest: int = 0, digest: str = "", now: timedelta = timedelta(0)) -> Accepted:
    return verify(word, TRUST, highest_sequence=highest, highest_digest=digest, now=NOON + now)


def test_two_documents_that_agree_are_accepted() -> None:
    accepted = check(desired(assignment(release()), release()))
    assert accepted.releases == {release().digest: release()}
    assert accepted.signed_time == NOON


def _flipped(data: bytes) -> bytes:
    place = data.index(b'"payload":"') + 40
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("word", "code"),
    [
        (desired(assignment(release()), release(), release_key=ASSIGNMENT_KEY), "signature-invalid"),
        (desired(assignment(release()), release(), release_key=SigningKey.generate()), "signature-invalid"),
        (DesiredState(assignment=seal(ASSIGNMENT_TYPE, assignment().to_bytes(), RELEASE_KEY)), "signature-invalid"),
        (DesiredState(assignment=seal(RELEASE_TYPE, assignment().to_bytes(), ASSIGNMENT_KEY)), "signature-invalid"),
        (DesiredState(assignment=_flipped(desired(assignment()).assignment)), "signature-invalid"),
        (DesiredState(assignment=assignment().to_bytes()), "signature-invalid"),
        (DesiredState(), "signature-invalid"),
        (DesiredState(assignment=seal(ASSIGNMENT_TYPE, b"{}", ASSIGNMENT_KEY)), "document-invalid"),
        (desired(assignment(release())), "release-missing"),
        (desired(assignment(release()), release("other")), "release-missing"),
        (desired(assignment(release(), agent_id="agent-2"), release()), "wrong-agent"),
        (desired(assignment(release(), not_after=NOON - timedelta(1)), release()), "expired"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_a_document_that_is_not_right_is_refused_with_its_code(word: DesiredState, code: str) -> None:
    with pytest.raises(Refused) as caught:
        check(word)
    assert caught.value.code == code


def test_an_older_sequence_is_refused_whatever_the_clock_says() -> None:
    with pytest.raises(Refused) as caught:
        check(desired(assignment(release()), release()), highest=6, now=timedelta(days=-7300))
    assert (caught.value.code, caught.value.sequence) == ("old-sequence", 5)


def test_the_same_assignment_again_is_fine_and_another_of_its_number_is_not() -> None:
    first, other = assignment(release()), assignment(release(), not_after=NOON + timedelta(days=31))
    check(desired(first, release()), highest=5, digest=first.digest)
    with pytest.raises(Refused) as caught:
        check(desired(other, release()), highest=5, digest=first.digest)
    assert caught.value.code == "sequence-reused"


def test_the_same_assignment_is_not_refused_for_its_age() -> None:
    made = assignment(release())
    check(desired(made, release()), highest=5, digest=made.digest, now=timedelta(days=400))


def test_a_deadline_stops_only_what_says_so_and_only_when_it_is_certainly_past() -> None:
    stopping = check(desired(assignment(release(), at_deadline=AtDeadline.STOP), release()))
    keeping = check(desired(assignment(release()), release()))
    assert not stopping.is_over(NOON + timedelta(days=29))
    assert stopping.is_over(NOON + timedelta(days=31))
    assert not keeping.is_over(NOON + timedelta(days=31))


def test_the_plan_removes_what_is_unwanted_and_installs_only_what_differs() -> None:
    same, new = release("same"), release("flow-threat", 2)
    accepted = check(desired(assignment(same, new), same, new))
    running = {"flow-threat": slot_of(release()), "same": slot_of(same), "old": slot_of(release("old")), "empty": None}
    assert plan(accepted, running) == (Remove("old"), Install(slot_of(new), new))


def test_nothing_is_planned_when_all_runs_as_wanted() -> None:
    assert plan(check(desired(assignment(release()), release())), {"flow-threat": slot_of(release())}) == ()


def test_a_failed_candidate_is_settled_where_its_slot_is_wanted_and_removed_where_it_is_not() -> None:
    wanted = release()
    accepted = check(desired(assignment(wanted), wanted))
    actions = plan(accepted, {"flow-threat": slot_of(wanted)}, {"flow-threat", "other"})
    assert actions == (Remove("other"), Install(slot_of(wanted), wanted))
