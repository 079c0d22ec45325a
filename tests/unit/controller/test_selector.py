import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.controller.domain.errors import InvalidInput
from vedette.controller.domain.selector import Selector, attributes_of, check_labels
from vedette.wire.values import Facts

EDGE = attributes_of("edge-1", {"site": "s1", "lab": "", "team/owner": "net-ops"}, Facts(architecture="x86_64"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("   ", True),
        ("site=s1", True),
        ("site==s1", True),
        ("site = s2", False),
        ("site!=s2", True),
        ("site!=s1", False),
        ("absent!=s1", True),
        ("site in (s1,s2)", True),
        ("site in(s2)", False),
        ("site in ()", False),
        ("lab in ()", True),
        ("site notin (s2, s3)", True),
        ("site notin (s1, s3)", False),
        ("absent notin (s1)", True),
        ("lab", True),
        ("!lab", False),
        ("! absent", True),
        ("lab=", True),
        ("site=", False),
        ("team/owner=net-ops, site=s1", True),
        ("site=s1,name=edge-2", False),
        ("site=s1,name=edge-1,architecture=x86_64", True),
        ("site in (s1, s2),!absent,", True),
        ("in in (a)", False),
    ],
)
def test_selector_matches(text: str, expected: bool):
    assert Selector.parse(text).matches(EDGE) is expected


@pytest.mark.parametrize("text", ["site=s1 lab", "=x", "site=(a)", "site in a", "a,,b", "!!a", "a=b=c", "x" * 5000])
def test_what_is_no_selector_is_refused(text: str):
    with pytest.raises(InvalidInput) as caught:
        Selector.parse(text)
    assert caught.value.code == "selector-invalid"


@given(st.text(max_size=40))
def test_any_text_is_a_selector_or_invalid_input(text: str):
    try:
        Selector.parse(text).matches(EDGE)
    except InvalidInput:
        return


@pytest.mark.parametrize("labels", [{"name": "x"}, {"": "x"}, {"a=b": "x"}, {"a": "x,y"}, {"a": "y" * 64}])
def test_labels_that_no_selector_could_name_are_refused(labels: dict[str, str]):
    with pytest.raises(InvalidInput):
        check_labels(labels)


def test_labels_have_a_limit():
    check_labels({f"k{i}": "v" for i in range(64)})
    with pytest.raises(InvalidInput):
        check_labels({f"k{i}": "v" for i in range(65)})


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), st.from_regex(r"[a-z]?", fullmatch=True)))
def test_every_allowed_label_can_be_selected(labels: dict[str, str]):
    wanted = ",".join(f"{key}={value}" for key, value in labels.items() if key not in {"name", "os"})
    assert Selector.parse(wanted).matches(attributes_of("n", labels, Facts()))
