"""Labelled rows of a snapshot for a recipe, with features by the one extractor that agents use too.

Each part is extracted by itself in the order of its records, so two captures of the same minutes never mix; a site is
one exporter and domain of one source file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vedette.controller.domain.datasets import FLOWS, LABEL_COLUMN
from vedette.controller.domain.errors import InvalidInput, Refused
from vedette.controller.domain.labels import BENIGN, LabelWindow, claim
from vedette.controller.jobs import flow_table
from vedette.models.flows.extract import FLOW_SCHEMA, FlowBatch, FlowExtractor
from vedette.models.flows.records import FLOW_RECORD, FlowRecords
from vedette.models.recipes import TrainingData
from vedette.models.schema import Feature, FeatureSchema

Follow = Callable[[float, str], None]
_BATCH = 65_536


@dataclass(frozen=True, slots=True)
class Source:
    """One part of a snapshot and the name of the file it came from."""

    path: str
    file_name: str


@dataclass(frozen=True, slots=True)
class _Extracted:
    """The flows of one part."""

    flows: FlowRecords
    features: npt.NDArray[np.float32]
    claimed: npt.NDArray[np.int64]  # by which window; -1 by none
    places: npt.NDArray[np.int64]  # index into the part's sites
    sites: tuple[str, ...]


def load(said: Mapping[str, Any], follow: Follow) -> TrainingData:
    """Return the rows of a snapshot as the arguments of a training job describe it.

    Raises:
        InvalidInput: A table has no numeric column or no label.
        Refused: There are no flows.
        TrainingDataError: A value is absent or not finite.
    """
    sources = [Source(path, name) for path, name in said["parts"]]
    if said["kind"] == FLOWS:
        return flow_rows(sources, [LabelWindow.from_value(item) for item in said["windows"]], follow)
    return table_rows(sources, [(name, kind) for name, kind in said["columns"]], follow)


def flow_rows(sources: Sequence[Source], windows: Sequence[LabelWindow], follow: Follow) -> TrainingData:
    """Return the biflows of all parts with their features, labels and sites.

    Args:
        sources: Parts of kind ``flows``.
        windows: Those of the snapshot.
        follow: Told how far it is, 0 to 1.

    Raises:
        Refused: The parts hold no flows.
    """
    parts = []
    for place, source in enumerate(sources):
        follow(place / len(sources), f"features of {source.file_name}")
        parts.append(_extract(source, windows))
    flows = np.concatenate([part.flows for part in parts])
    if not len(flows):
        raise Refused("no-flows", "the snapshot cannot be trained on", "its parts hold no flows")
    claimed = np.concatenate([part.claimed for part in parts])
    classes = _classes(claimed, windows)
    codes = np.array([classes.index(w.label) if w.label in classes else 0 for w in windows] + [0])
    shifts = np.cumsum([0] + [len(part.sites) for part in parts[:-1]])
    return TrainingData(
        schema=FLOW_SCHEMA,
        features=np.concatenate([part.features for part in parts]),
        labels=codes[claimed].astype(np.int64),  # -1, claimed by none, is the last place: benign
        classes=classes,
        groups=np.concatenate([part.places + shift for part, shift in zip(parts, shifts, strict=True)]),
        sites=_once([name for part in parts for name in part.sites]),
        times_ms=flows["export_ms"].astype(np.int64),
        flows=flows,
    )


def _extract(source: Source, windows: Sequence[LabelWindow]) -> _Extracted:
    extractor, batches = FlowExtractor(), list[FlowBatch | None]()
    named: dict[int, str] = {}
    with pq.ParquetFile(source.path) as file:
        for batch in file.iter_batches(_BATCH, use_threads=False):
            named |= _exporters(batch, source.file_name)
            batches.append(extractor.push(flow_table.to_records(batch), now_ms=0))
    batches.append(extractor.flush())
    full = [batch for batch in batches if batch is not None]
    flows = np.concatenate([np.zeros(0, FLOW_RECORD), *(batch.flows for batch in full)])
    features = np.concatenate([np.zeros((0, len(FLOW_SCHEMA)), np.float32), *(batch.features for batch in full)])
    indices = sorted(named)
    places = np.searchsorted(np.array(indices, np.int64), flows["exporter"].astype(np.int64))
    return _Extracted(flows, features, claim(flows, windows), places, tuple(named[index] for index in indices))


def _exporters(batch: pa.RecordBatch, file_name: str) -> dict[int, str]:
    """Return the name of every exporter index in a batch."""
    indices, first = np.unique(batch.column("exporter").to_numpy(), return_index=True)
    rows = batch.take(pa.array(first))
    addresses, domains = rows.column("exporter_address").to_pylist(), rows.column("domain").to_pylist()
    said = zip(indices.tolist(), addresses, domains, strict=True)
    return {index: f"{file_name} {address or '-'}/{domain}" for index, address, domain in said}


def _classes(claimed: npt.NDArray[np.int64], windows: Sequence[LabelWindow]) -> tuple[str, ...]:
    present = {windows[place].label for place in np.unique(claimed[claimed >= 0]).tolist()}
    return (BENIGN, *sorted(present))


def _once(names: list[str]) -> tuple[str, ...]:
    """Return names with repeated ones numbered: two imports may share a file name."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(made)


def table_rows(sources: Sequence[Source], columns: Sequence[tuple[str, str]], follow: Follow) -> TrainingData:
    """Return the rows of a table: every numeric column a feature, the column ``label`` their label.

    Raises:
        InvalidInput: There is no numeric column, or no label.
        TrainingDataError: A value is absent or not finite.
    """
    kinds = dict(columns)
    names = [name for name, kind in columns if kind in ("int64", "double", "bool") and name != LABEL_COLUMN]
    if not names or LABEL_COLUMN not in kinds:
        why = (
            f"it has {len(names)} numeric columns and {'a' if LABEL_COLUMN in kinds else 'no'} column {LABEL_COLUMN!r}"
        )
        raise InvalidInput("bad-table", "the snapshot cannot be trained on", why)
    tables = []
    for place, source in enumerate(sources):
        follow(place / len(sources), f"rows of {source.file_name}")
        tables.append(pq.read_table(source.path, columns=[*names, LABEL_COLUMN]))
    table = pa.concat_tables(tables)
    found, codes = np.unique(np.array([str(v) for v in table[LABEL_COLUMN].to_pylist()]), return_inverse=True)
    classes = (BENIGN, *(name for name in found.tolist() if name != BENIGN))
    place_of = np.array([classes.index(name) for name in found.tolist()])
    groups = np.repeat(np.arange(len(tables)), [part.num_rows for part in tables])
    return TrainingData(
        schema=FeatureSchema("table", tuple(Feature(name, "", "column of the table") for name in names), "tensor"),
        features=np.stack([_floats(table[name]) for name in names], axis=1),
        labels=place_of[codes].astype(np.int64),
        classes=classes,
        groups=groups.astype(np.int64),
        sites=_once([source.file_name for source in sources]),
        times_ms=np.arange(table.num_rows, dtype=np.int64),
    )


def _floats(column: Any) -> npt.NDArray[np.float32]:
    made: npt.NDArray[np.float32] = column.cast(pa.float64()).to_numpy().astype(np.float32)
    return made
