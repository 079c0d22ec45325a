"""Rows for a recipe: what a snapshot's parts become, checked against the extractor and the labels directly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.learning import CAPTURES
from vedette.controller.domain.errors import InvalidInput, Refused
from vedette.controller.domain.labels import claim, parse_label_file
from vedette.controller.jobs import flow_table
from vedette.controller.training import rows
from vedette.controller.training.rows import Source
from vedette.models.flows.captures import read_capture
from vedette.models.flows.extract import FlowExtractor
from vedette.models.flows.netflow import Exporter, FlowDecoder
from vedette.models.flows.records import FlowRecords
from vedette.models.recipes import TrainingDataError

WINDOWS = parse_label_file((CAPTURES / "shifted/labels.json").read_bytes())


def decoded(name: str) -> FlowRecords:
    with (CAPTURES / name).open("rb") as file:
        return FlowDecoder().decode_many(read_capture(file))


def part(folder: Path, records: FlowRecords, name: str, exporters: dict[int, Exporter]) -> Source:
    path = folder / f"{name}.parquet"
    pq.write_table(flow_table.to_table(records, 0, exporters, name), path)
    return Source(str(path), name)


def silent(fraction: float, step: str) -> None:
    assert 0 <= fraction <= 1
    assert step


def test_features_and_labels_are_those_of_the_extractor_and_the_windows(tmp_path: Path) -> None:
    records = decoded("shifted/softflowd-v9.pcap.gz")
    source = part(tmp_path, records, "a.pcap.gz", {0: Exporter("10.0.0.1", 9, 7)})
    data = rows.flow_rows([source], WINDOWS, silent)
    extractor = FlowExtractor()
    batches = [batch for batch in (extractor.push(records, now_ms=0), extractor.flush()) if batch is not None]
    assert np.array_equal(data.features, np.concatenate([batch.features for batch in batches]))
    flows = np.concatenate([batch.flows for batch in batches])
    names = ["benign" if place < 0 else WINDOWS[place].label for place in claim(flows, WINDOWS)]
    assert [data.classes[code] for code in data.labels] == names
    assert data.classes[0] == "benign"
    assert set(data.classes) == set(names)
    assert data.sites == ("a.pcap.gz 10.0.0.1/7",)
    assert np.array_equal(data.times_ms, flows["export_ms"])


def test_exporters_of_one_file_and_files_of_one_name_are_sites_of_their_own(tmp_path: Path) -> None:
    one, other = decoded("shifted/softflowd-v9.pcap.gz")[:900], decoded("shifted/pmacct-v9.pcap.gz")[:700]
    one["exporter"], other["exporter"] = 3, 8
    both = np.concatenate([one, other])
    named = {3: Exporter("10.0.0.1", 9, 0), 8: Exporter("10.0.0.2", 9, 5)}
    sources = [part(tmp_path, both, "a.pcap", named), part(tmp_path / "..", one, "a.pcap", named)]
    data = rows.flow_rows(sources, WINDOWS, silent)
    assert data.sites == ("a.pcap 10.0.0.1/0", "a.pcap 10.0.0.2/5", "a.pcap 10.0.0.1/0 (2)")
    assert data.flows is not None
    assert sorted(np.unique(data.groups)) == [0, 1, 2]
    assert set(data.flows["exporter"][data.groups == 1]) == {8}
    alone = rows.flow_rows([sources[1]], WINDOWS, silent)
    assert np.array_equal(data.features[data.groups == 2], alone.features)  # nothing of the first file is remembered


def test_parts_without_flows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be trained on"):
        rows.flow_rows([part(tmp_path, decoded("shifted/softflowd-v9.pcap.gz")[:0], "a", {})], (), silent)


def table(folder: Path, **columns: object) -> tuple[list[Source], list[tuple[str, str]]]:
    made = pa.table(columns)
    pq.write_table(made, folder / "t.parquet")
    return [Source(str(folder / "t.parquet"), "t.csv")], [(f.name, str(f.type)) for f in made.schema]


def test_table_gives_numeric_columns_and_the_label_column(tmp_path: Path) -> None:
    sources, columns = table(
        tmp_path, a=[1, 2, 3], name=["x", "y", "z"], b=[0.5, 1.5, 2.5], ok=[True, False, True],
        label=["zero", "benign", "alpha"],
    )  # fmt: skip
    data = rows.table_rows(sources, columns, silent)
    assert data.schema.names == ("a", "b", "ok")
    assert data.features.tolist() == [[1, 0.5, 1], [2, 1.5, 0], [3, 2.5, 1]]
    assert data.classes == ("benign", "alpha", "zero")
    assert data.labels.tolist() == [2, 0, 1]


def test_table_without_label_or_numbers_or_with_a_hole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be trained"):
        rows.table_rows(*table(tmp_path, a=[1]), silent)
    with pytest.raises(InvalidInput, match="cannot be trained"):
        rows.table_rows(*table(tmp_path, a=["x"], label=["y"]), silent)
    with pytest.raises(TrainingDataError, match="row 1 has no finite a"):
        rows.table_rows(*table(tmp_path, a=[1.0, None], label=["x", "y"]), silent)
