from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.documents import LATER, NOW, assignment, blob, release
from vedette.models.assignment import Assignment, AtDeadline, Refusal, SlotAssignment, accept
from vedette.models.documents import DocumentError, canonical_json, parse_json
from vedette.models.errors import ModelsError
from vedette.models.release import Blob, Release, TensorSpec, Tolerance, check_model_name


def test_a_release_reads_back_and_keeps_its_digest():
    made = release()
    assert Release.from_bytes(made.to_bytes()) == made
    assert Release.from_bytes(made.to_bytes()).digest == made.digest


def test_a_release_without_schema_and_reference_reads_back():
    made = release(kind="tensor", schema=None, reference=None)
    assert Release.from_bytes(made.to_bytes()) == made
    assert made.blobs == (blob(b"model"), blob(b"golden"))


def test_every_change_gives_another_digest():
    others = [release(version=4), release(threshold=0.6), release(labels=("benign",)), release(reference=None)]
    assert len({release().digest, *(item.digest for item in others)}) == 5


@pytest.mark.parametrize("field", sorted(parse_json(release().to_bytes(), "release")))
@pytest.mark.parametrize("value", ["", 0, -1, [], {}, "x" * 2000, [{}], 1e300])
def test_a_field_of_the_wrong_kind_is_a_document_error_or_still_a_release(field, value):
    changed = parse_json(release().to_bytes(), "release") | {field: value}
    try:
        made = Release.from_bytes(canonical_json(changed))
    except ModelsError:
        pass
    else:
        assert made.to_bytes() == canonical_json(changed) or field in {"threshold", "reference", "schema"}


@pytest.mark.parametrize("field", sorted(parse_json(release().to_bytes(), "release")))
def test_a_missing_field_is_named(field):
    value = parse_json(release().to_bytes(), "release")
    del value[field]
    if field in {"schema", "reference"}:
        return  # these may be null
    with pytest.raises(DocumentError, match=rf"release\.{field} is absent"):
        Release.from_bytes(canonical_json(value))


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a/b", "a" * 65, "a b", "ä", "a:1", "..", "a\n"])
def test_a_model_name_that_could_hurt_a_path_or_a_script_is_refused(name):
    with pytest.raises(DocumentError):
        check_model_name(name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blob("sha256:no", 1), "no digest"),
        (lambda: Blob(blob(b"").digest, 0), "0 bytes, limits 1"),
        (lambda: TensorSpec("x", "complex64", (-1,)), "complex64"),
        (lambda: TensorSpec("x", "float32", (0,)), "shape"),
        (lambda: TensorSpec("x", "float32", (1,) * 9), "at most 8"),
        (lambda: Tolerance(-1, 0), "tolerance"),
        (lambda: Tolerance(float("nan"), 0), "tolerance"),
        (lambda: release(builds=()), "0 builds"),
        (lambda: release(version=0), "version of flow-threat is 0"),
        (lambda: release(kind="image"), "image"),
        (lambda: release(builds=release().builds * 2), "one build twice"),
    ],
)
def test_a_value_outside_its_limits_is_refused_with_both(make, message):
    with pytest.raises(DocumentError, match=message):
        make()


def test_an_assignment_reads_back():
    made = assignment(release())
    assert Assignment.from_bytes(made.to_bytes()) == made


def accepts(made: Assignment, *releases: Release, **changes: object) -> None:
    known = {"agent_id": "a1", "highest_sequence": 6, "highest_digest": "", "now": NOW} | changes
    accept(made, {item.digest: item for item in releases}, **known)  # type: ignore[arg-type]


def test_what_both_documents_agree_on_is_accepted():
    accepts(assignment(release()), release())


def test_the_same_assignment_again_is_accepted_also_after_its_time():
    made = assignment(release(), not_after=NOW)
    accepts(made, release(), highest_sequence=7, highest_digest=made.digest, now=LATER)


SLOT = SlotAssignment("flow-threat", "flow-threat", 3, release().digest, release().builds[0].digest)


@pytest.mark.parametrize(
    ("code", "made", "releases", "changes"),
    [
        ("wrong-agent", assignment(release(), agent_id="a2"), [release()], {}),
        ("old-sequence", assignment(release()), [release()], {"highest_sequence": 8}),
        ("sequence-reused", assignment(release()), [release()], {"highest_sequence": 7, "highest_digest": "other"}),
        ("expired", assignment(release(), not_after=NOW), [release()], {"now": LATER}),
        ("release-missing", assignment(release()), [], {}),
        ("release-missing", assignment(release()), [release(version=4)], {}),
        ("build-unknown", assignment(slots=(replace(SLOT, build=blob(b"int8").digest),)), [release()], {}),
        ("release-mismatch", assignment(slots=(replace(SLOT, version=2),)), [release()], {}),
        ("release-mismatch", assignment(slots=(replace(SLOT, slot="other"),)), [release()], {}),
    ],
)
def test_an_assignment_is_refused_before_anything_is_tried(code, made, releases, changes):
    with pytest.raises(Refusal) as refused:
        accepts(made, *releases, **changes)
    assert refused.value.code == code


def test_a_slot_named_twice_is_refused():
    with pytest.raises(DocumentError, match="each once"):
        assignment(slots=(SLOT, SLOT))


@given(st.integers(1, 50), st.integers(0, 50))
def test_only_a_sequence_that_grows_is_accepted(sequence, highest):
    made = assignment(release(), sequence=sequence)
    if sequence > highest:
        accepts(made, release(), highest_sequence=highest)
    else:
        with pytest.raises(Refusal):
            accepts(made, release(), highest_sequence=highest)


def test_times_need_a_zone_to_become_a_document():
    made = assignment(release(), issued=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=1))
    assert b'"issued":"2026-01-01T00:00:00.000001Z"' in made.to_bytes()
    assert AtDeadline("keep") is AtDeadline.KEEP
