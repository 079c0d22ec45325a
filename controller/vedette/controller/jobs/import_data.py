"""The job that turns an uploaded file into one Parquet part.

Arguments: ``file``, ``format``, ``file_name``, ``kind`` and ``columns`` of the dataset (null for a new one),
``max_bytes``. Leaves ``part.parquet`` in its folder; the result says what is in it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vedette.controller.domain.datasets import FLOWS, TABLE, Columns, check_same_form
from vedette.controller.jobs import flow_columns, flow_table, harness, tables
from vedette.controller.jobs.tables import Rejects, unreadable
from vedette.models.errors import ModelsError
from vedette.models.flows.captures import read_capture
from vedette.models.flows.netflow import FlowDecoder

PART_FILE = "part.parquet"
_DATAGRAMS = 4_096
"""Decoded together: enough for speed, few enough for memory (64 KiB each at most)."""


def main(job: harness.Job) -> dict[str, Any]:
    """Do the job."""
    said = job.arguments
    source = Path(said["file"])
    known: Columns | None = tuple((n, k) for n, k in said["columns"]) if said["columns"] is not None else None
    rejects = Rejects()
    if said["format"] == "flows":
        parts = _flows(source, said, rejects, job)
        columns, kind, first = flow_table.COLUMNS, FLOWS, None
    else:
        batches = _batches(source, said, known, rejects)
        first = next(batches, None)
        if first is None:
            raise _no_rows(rejects)
        kind = FLOWS if flow_columns.is_flows(first.schema.names) else TABLE
        parts = chain([first], batches)
        columns = tables.columns_of(first.schema)
        if kind == FLOWS:
            parts, columns = _as_flows(parts, said["file_name"], rejects), flow_table.COLUMNS
        parts = _followed(parts, job)
    if known is not None:
        check_same_form(said["dataset"], said["kind"], known, kind, columns)
    summary = _write(parts, job.folder / PART_FILE, kind)
    if not summary["rows"]:
        raise _no_rows(rejects)
    reasons = dict(rejects.reasons)
    return summary | {"kind": kind, "columns": columns, "rejected": sum(reasons.values()), "reasons": reasons}


def _no_rows(rejects: Rejects) -> Exception:
    refused = ", ".join(f"{count} rows: {reason}" for reason, count in rejects.reasons.most_common(3))
    return unreadable(f"it holds no rows that can be kept{f' ({refused})' if refused else ''}")


def _flows(source: Path, said: Any, rejects: Rejects, job: harness.Job) -> Iterator[pa.Table]:
    decoder = FlowDecoder()
    done = 0
    try:
        with source.open("rb") as file:
            datagrams = read_capture(file, max_bytes=said["max_bytes"])
            while taken := list(islice(datagrams, _DATAGRAMS)):
                rows = decoder.decode_many(taken)  # all of them: what an agent judges, training sees
                yield flow_table.to_table(rows, done, decoder.exporters, said["file_name"])
                done += len(rows)
                _tell(job, done)
    except ModelsError as exc:
        raise unreadable(str(exc)) from exc
    for reason, count in decoder.counters.malformed.items():
        rejects.add(f"malformed datagram: {reason}", count)
    rejects.add("set of a template not seen before", decoder.counters.unknown_template_sets)
    rejects.add("record that is no flow", decoder.counters.records_not_flows)


def _batches(source: Path, said: Any, known: Columns | None, rejects: Rejects) -> Iterator[pa.RecordBatch]:
    if said["format"] == "csv":
        # a dataset of flows has other columns than the CSV it came from
        known = known if said["kind"] == TABLE else None
        return tables.csv_batches(source, known, rejects, max_bytes=said["max_bytes"])
    return tables.parquet_batches(source, max_bytes=said["max_bytes"])


def _as_flows(batches: Iterator[pa.RecordBatch], file_name: str, rejects: Rejects) -> Iterator[pa.Table]:
    done = 0
    for batch in batches:
        records = flow_columns.to_records(batch, rejects)
        yield flow_table.to_table(records, done, {}, file_name)
        done += len(records)


def _followed(parts: Iterator[Any], job: harness.Job) -> Iterator[Any]:
    done = 0
    for part in parts:
        done += part.num_rows
        _tell(job, done)
        yield part


def _tell(job: harness.Job, rows: int) -> None:
    job.progress(0.0, f"{rows} rows read")


def _write(parts: Iterator[Any], path: Path, kind: str) -> dict[str, Any]:
    rows, first_ms, last_ms = 0, None, None
    exporters: set[str] = set()
    writer: pq.ParquetWriter | None = None
    for part in parts:
        if writer is None:
            writer = pq.ParquetWriter(path, part.schema, compression="zstd", write_statistics=True)
        if part.num_rows == 0:
            continue
        table = part if isinstance(part, pa.Table) else pa.Table.from_batches([part])
        writer.write_table(table, row_group_size=flow_table.ROW_GROUP)
        rows += table.num_rows
        if kind == FLOWS:
            least, most = int(np.min(table["start_ms"])), int(np.max(table["end_ms"]))
            first_ms = least if first_ms is None else min(first_ms, least)
            last_ms = most if last_ms is None else max(last_ms, most)
            exporters |= _exporters(table)
    if writer is not None:
        writer.close()
    return {"rows": rows, "first_ms": first_ms, "last_ms": last_ms, "exporters": sorted(exporters)}


def _exporters(table: pa.Table) -> set[str]:
    named = table.select(["exporter_address", "domain"]).group_by(["exporter_address", "domain"]).aggregate([])
    addresses = pc.cast(named["exporter_address"], pa.string()).to_pylist()
    return {f"{a}/{d}" for a, d in zip(addresses, named["domain"].to_pylist(), strict=True) if a}


if __name__ == "__main__":
    sys.exit(harness.run(main))
