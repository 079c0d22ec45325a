"""The job behind a snapshot: one pass over all parts that counts labels, nulls and jumps of the record clock.

Arguments: ``kind``, ``parts`` (path, file name), ``windows``. The result has the form of ``datasets.Counted``.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vedette.controller.domain.datasets import FLOWS, LABEL_COLUMN
from vedette.controller.domain.labels import LabelWindow, claim, count_by_label
from vedette.controller.jobs import flow_table, harness
from vedette.models.flows.records import FlowRecords

_JUMP_MS = 60_000


def main(job: harness.Job) -> dict[str, Any]:
    """Do the job."""
    said = job.arguments
    windows = tuple(LabelWindow.from_value(item) for item in said["windows"])
    counts = _flows(job, said["parts"], windows) if said["kind"] == FLOWS else _table(job, said["parts"])
    return {"unmatched": [], "null_shares": {}, "clock_jumps": {}} | counts


def _flows(job: harness.Job, parts: list[list[str]], windows: tuple[LabelWindow, ...]) -> dict[str, Any]:
    labels: Counter[str] = Counter()
    jumps: dict[str, int] = {}
    matched: set[int] = set()
    for place, (path, file_name) in enumerate(parts):
        job.progress(place / len(parts), f"labels of {file_name}")
        with pq.ParquetFile(path) as file:
            newest: dict[int, int] = {}
            for batch in file.iter_batches(flow_table.ROW_GROUP, use_threads=False):
                records = flow_table.to_records(batch)
                claimed = claim(records, windows)
                labels.update(count_by_label(claimed, windows))
                matched.update(np.unique(claimed[claimed >= 0]).tolist())
                jumped = _jumps(records, newest)
                if jumped:
                    jumps[file_name] = jumps.get(file_name, 0) + jumped
    unmatched = [place for place in range(len(windows)) if place not in matched]
    return {"labels": dict(sorted(labels.items())), "unmatched": unmatched, "clock_jumps": jumps}


def _jumps(records: FlowRecords, newest: dict[int, int]) -> int:
    """Count how often an exporter's record clock falls more than a minute; ``newest`` keeps where each stands."""
    jumps = 0
    for exporter in np.unique(records["exporter"]).tolist():
        times = records["export_ms"][records["exporter"] == exporter]
        before = newest.get(exporter, int(times[0]))
        jumps += int(np.count_nonzero(np.diff(times, prepend=before) < -_JUMP_MS))
        newest[exporter] = int(times[-1])
    return jumps


def _table(job: harness.Job, parts: list[list[str]]) -> dict[str, Any]:
    labels: Counter[str] = Counter()
    nulls: Counter[str] = Counter()
    rows = 0
    for place, (path, file_name) in enumerate(parts):
        job.progress(place / len(parts), f"columns of {file_name}")
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(flow_table.ROW_GROUP, use_threads=False):
                rows += batch.num_rows
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    nulls[name] += column.null_count
                    if name == LABEL_COLUMN:
                        found = pc.value_counts(column.drop_null()).to_pylist()
                        labels.update({str(item["values"])[:64]: item["counts"] for item in found})
    shares = {name: count / rows for name, count in nulls.items() if count}
    return {"labels": dict(sorted(labels.items())), "null_shares": shares}


if __name__ == "__main__":
    sys.exit(harness.run(main))
