"""Flow records from a CSV or Parquet table whose columns are named as a flow's.

Needed: ``src``, ``dst`` (addresses as text), ``proto``, ``packets``, ``bytes``, ``start_ms``, ``end_ms``. May be there:
``src_port``, ``dst_port``, ``icmp``, ``tos``, ``flags``, ``end_reason``, ``reverse_packets``, ``reverse_bytes``,
``reverse_flags``, ``export_ms`` (the end when absent), ``sampling``. Rows stand in the order they were exported.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vedette.controller.jobs.tables import Rejects, unreadable
from vedette.models.flows.records import FLOW_RECORD, FlowRecords, address_halves, empty

NEEDED = frozenset({"src", "dst", "proto", "packets", "bytes", "start_ms", "end_ms"})
_PLAIN = (
    *("src_port", "dst_port", "icmp", "proto", "tos", "flags", "reverse_flags", "end_reason", "packets", "bytes"),
    *("reverse_packets", "reverse_bytes", "start_ms", "end_ms", "export_ms", "sampling"),
)
_LATEST_MS = 32_503_680_000_000  # the year 3000

Mask = npt.NDArray[np.bool_]


def is_flows(names: list[str]) -> bool:
    """Return whether columns of these names are a flow's.

    Raises:
        InvalidInput: They are, but for some no flow has.
    """
    if not set(names) >= NEEDED:
        return False
    strange = sorted(set(names) - {"src", "dst", *_PLAIN})
    if strange:
        raise unreadable(f"its columns are a flow's, but {', '.join(map(repr, strange[:5]))[:200]} is none: drop it, "
                         "or bring labels as a label file")  # fmt: skip
    return True


def to_records(batch: pa.RecordBatch, rejects: Rejects) -> FlowRecords:
    """Return the rows that can be flows, in order; counts the others by reason."""
    names = batch.schema.names
    good = np.ones(batch.num_rows, np.bool_)
    records = empty(batch.num_rows)
    for end in ("src", "dst"):
        good &= _addresses(batch.column(end), end, records, good, rejects)
    for name in (name for name in _PLAIN if name in names):
        good &= _numbers(batch.column(name), name, records, good, rejects)
    backwards = good & (records["end_ms"] < records["start_ms"])
    rejects.add("it ends before it starts", int(backwards.sum()))
    if "export_ms" not in names:
        records["export_ms"] = records["end_ms"]
    records["bidirectional"] = records["reverse_packets"] > 0
    return records[good & ~backwards]


def _addresses(column: pa.Array, end: str, records: FlowRecords, good: Mask, rejects: Rejects) -> Mask:
    """Parse each distinct text once; appliances talk among few addresses."""
    distinct = pc.dictionary_encode(pc.cast(column, pa.string()).fill_null(""))
    halves = np.zeros((len(distinct.dictionary), 2), np.uint64)
    known = np.ones(len(halves), np.bool_)
    for place, text in enumerate(distinct.dictionary.to_pylist()):
        try:
            halves[place] = address_halves(text)
        except ValueError:
            known[place] = False
    places = distinct.indices.to_numpy(zero_copy_only=False)
    records[f"{end}_hi"], records[f"{end}_lo"] = halves[places, 0], halves[places, 1]
    fits: Mask = known[places]
    rejects.add(f"{end} is no address", int((good & ~fits).sum()))
    return fits


def _numbers(column: pa.Array, name: str, records: FlowRecords, good: Mask, rejects: Rejects) -> Mask:
    if not pa.types.is_integer(column.type):
        raise unreadable(f"column {name!r} is of type {column.type}; a flow's is a whole number")
    present = column.is_valid().to_numpy(zero_copy_only=False)
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    kind = FLOW_RECORD[name]
    most = _LATEST_MS if name.endswith("_ms") else min(np.iinfo(kind).max, np.iinfo(np.int64).max)
    least = 1 if name == "sampling" else 0
    fits: Mask = present & (values >= least) & (values <= most)
    records[name] = np.where(fits, values, 0).astype(kind)
    rejects.add(f"{name} is absent or out of {least} to {most}", int((good & ~fits).sum()))
    return fits
