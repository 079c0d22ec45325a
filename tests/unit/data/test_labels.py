"""Label windows: what a file may say, and that the vectorised rule is the written one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.learning import CAPTURES
from vedette.controller.domain.labels import (
    MAX_LABEL_FILE_BYTES,
    LabelFileError,
    LabelWindow,
    claim,
    count_by_label,
    merge,
    parse_label_file,
)
from vedette.models.flows.records import FlowRecords, address_halves, address_text, empty

WINDOW: dict[str, Any] = {"label": "brute", "src": "10.0.0.9", "dst": None, "dport": None, "start": 100, "end": 200}


def file_of(*windows: dict[str, Any]) -> bytes:
    return json.dumps({"labels": list(windows)}).encode()


def flow(src: str, dst: str, port: int, start_s: float, end_s: float) -> FlowRecords:
    record = empty(1)
    record["src_hi"], record["src_lo"] = address_halves(src)
    record["dst_hi"], record["dst_lo"] = address_halves(dst)
    record["src_port"], record["dst_port"] = 40_000, port
    record["start_ms"], record["end_ms"] = round(start_s * 1000), round(end_s * 1000)
    return record


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "labels"),
        (b'{"labels": []}', "1 to 10000"),
        (b"[" * 100_000, "not JSON"),
        (b" " * (MAX_LABEL_FILE_BYTES + 1), "limit 4194304"),
        (file_of(WINDOW | {"label": ""}), "labels[0].label"),
        (file_of(WINDOW | {"label": "benign"}), "no window claims"),
        (file_of(WINDOW | {"src": "10.0.0"}), "'10.0.0'"),
        (file_of(WINDOW | {"src": 7}), "labels[0].src is '7'"),
        (file_of(WINDOW | {"dst": []}), "allowed 1 to 256"),
        (file_of(WINDOW | {"dst": ["10.0.0.1", None]}), "labels[0].dst is 'None'"),
        (file_of(WINDOW | {"dport": 70_000}), "70000"),
        (file_of(WINDOW | {"dport": True}), "labels[0].dport"),
        (file_of(WINDOW | {"start": "noon"}), "noon"),
        (file_of(WINDOW | {"start": -1}), "allowed 0"),
        (b'{"labels": [{"label": "a", "src": "10.0.0.1", "start": 1e999, "end": 2}]}', "labels[0].start"),
        (file_of(WINDOW, WINDOW | {"end": 99}), "labels[1] ends at 99000 ms"),
        (file_of(WINDOW | {"port": 22}), "unknown members port"),
    ],
)
def test_bad_label_file_names_what_is_wrong(data: bytes, says: str) -> None:
    with pytest.raises(LabelFileError) as caught:
        parse_label_file(data)
    assert says in caught.value.why


def test_window_survives_its_stored_form() -> None:
    for window in parse_label_file((CAPTURES / "base2/labels.json").read_bytes()):
        assert LabelWindow.from_value(json.loads(json.dumps(window.to_value()))) == window


@pytest.mark.parametrize(
    ("record", "is_claimed"),
    [
        (flow("10.0.0.9", "10.0.0.1", 22, 150, 151), True),
        (flow("10.0.0.1", "10.0.0.9", 22, 150, 151), True),  # the reply
        (flow("10.0.0.9", "10.0.0.1", 22, 98, 99.0), True),  # the slack of a second
        (flow("10.0.0.9", "10.0.0.1", 22, 98, 98.9), False),
        (flow("10.0.0.9", "10.0.0.1", 22, 201, 300), True),
        (flow("10.0.0.9", "10.0.0.1", 22, 201.1, 300), False),
        (flow("10.0.0.9", "10.0.0.1", 22, 0, 1000), True),
        (flow("10.0.0.9", "10.0.0.2", 22, 150, 151), False),  # another destination
        (flow("10.0.0.8", "10.0.0.1", 22, 150, 151), False),  # another source
        (flow("10.0.0.9", "10.0.0.1", 23, 150, 151), False),  # another port
    ],
)
def test_window_claims_what_the_rule_says(record: FlowRecords, is_claimed: bool) -> None:
    windows = parse_label_file(file_of(WINDOW | {"dst": "10.0.0.1", "dport": 22}))
    assert (claim(record, windows)[0] == 0) == is_claimed


def test_the_most_specific_window_wins() -> None:
    wide = WINDOW | {"label": "wide", "start": 140, "end": 160}
    addressed = WINDOW | {"label": "addressed", "dst": ["10.0.0.1"]}
    ported = WINDOW | {"label": "ported", "dport": 22, "start": 0, "end": 1000}
    shorter = wide | {"label": "shorter", "start": 149}
    twin = ported | {"label": "twin"}
    record = flow("10.0.0.9", "10.0.0.1", 22, 150, 151)

    def winner(*windows: dict[str, Any]) -> str:
        parsed = parse_label_file(file_of(*windows))
        return parsed[int(claim(record, parsed)[0])].label

    assert winner(wide, addressed, ported, shorter) == "ported"
    assert winner(wide, addressed, shorter) == "addressed"
    assert winner(wide, shorter) == "shorter"
    assert winner(shorter, wide) == "shorter"
    assert winner(ported, twin) == "ported"  # the first of equals


@st.composite
def scenes(draw: st.DrawFn) -> tuple[FlowRecords, tuple[LabelWindow, ...]]:
    hosts = [f"10.0.0.{n}" for n in range(1, 5)]
    host, port, second = st.sampled_from(hosts), st.sampled_from([22, 53, 80]), st.integers(0, 40)
    records = [
        flow(*draw(st.permutations(hosts))[:2], draw(port), begin, begin + draw(st.integers(0, 20)))
        for begin in draw(st.lists(second, min_size=1, max_size=12))
    ]
    windows = []
    for _ in range(draw(st.integers(1, 6))):
        begin = draw(second)
        ends = {"src": draw(host), "dst": draw(st.one_of(st.none(), st.lists(host, min_size=1, max_size=2)))}
        span = {"start": begin, "end": begin + draw(second)}
        windows.append({"label": f"l{len(windows)}", "dport": draw(st.one_of(st.none(), port))} | ends | span)
    return np.concatenate(records), parse_label_file(file_of(*windows))


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_vectorised_rule_is_the_rule_row_by_row(scene: tuple[FlowRecords, tuple[LabelWindow, ...]]) -> None:
    records, windows = scene
    assert claim(records, windows).tolist() == [_by_hand(record, windows) for record in records]


def _by_hand(record: Any, windows: tuple[LabelWindow, ...]) -> int:
    """The captures' rule in plain Python, after the evaluator the captures come with."""
    ends = [address_text(int(record[f"{end}_hi"]), int(record[f"{end}_lo"])) for end in ("src", "dst")]
    best, found = None, -1
    for place, w in enumerate(windows):
        if record["end_ms"] < w.start_ms - 1000 or record["start_ms"] > w.end_ms + 1000 or w.source not in ends:
            continue
        other = ends[1] if ends[0] == w.source else ends[0]
        if w.destinations and other not in w.destinations:
            continue
        if w.port is not None and w.port not in (record["src_port"], record["dst_port"]):
            continue
        rank = (w.port is not None, bool(w.destinations), w.start_ms - w.end_ms)
        if best is None or rank > best:
            best, found = rank, place
    return found


def test_merging_keeps_each_window_once_and_in_order() -> None:
    first = parse_label_file(file_of(WINDOW, WINDOW | {"label": "c2"}))
    second = parse_label_file(file_of(WINDOW | {"label": "exfil"}, WINDOW))
    assert [w.label for w in merge([first, second])] == ["brute", "c2", "exfil"]


def test_counts_name_benign_rows_too() -> None:
    windows = parse_label_file(file_of(WINDOW, WINDOW | {"src": "10.0.0.8"}))
    assert count_by_label(np.array([-1, 0, 1, -1]), windows) == {"benign": 2, "brute": 2}
