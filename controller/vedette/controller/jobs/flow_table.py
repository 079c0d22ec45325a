"""Flow records as an Arrow table and back: the columns of a part of kind ``flows``.

The columns are the fields of ``FLOW_RECORD`` under their own names and, behind them, where a record comes from:
``ordinal`` (place in the file, 0 first; the order features depend on), ``exporter_address``, ``domain``,
``netflow_version``, ``source_file``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vedette.controller.domain.datasets import Columns
from vedette.models.flows.netflow import Exporter
from vedette.models.flows.records import FLOW_RECORD, FlowRecords

ROW_GROUP = 131_072
UNKNOWN = Exporter("", 0, 0)

_FIELDS = tuple(FLOW_RECORD.names or ())
_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [pa.field(name, pa.from_numpy_dtype(FLOW_RECORD[name]), nullable=False) for name in _FIELDS]
    + [
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("exporter_address", _TEXT, nullable=False),
        pa.field("domain", pa.uint32(), nullable=False),
        pa.field("netflow_version", pa.uint8(), nullable=False),
        pa.field("source_file", _TEXT, nullable=False),
    ]
)
COLUMNS: Columns = tuple((field.name, str(field.type)) for field in SCHEMA)


def to_table(records: FlowRecords, first: int, exporters: Mapping[int, Exporter], source_file: str) -> pa.Table:
    """Return records with their provenance.

    Args:
        records: Shape (rows,), in the order of the file.
        first: Ordinal of the first row.
        exporters: Names of the indices in ``records["exporter"]``.
        source_file: As the user named it.
    """
    used, place = np.unique(records["exporter"], return_inverse=True)
    named = [exporters.get(int(index), UNKNOWN) for index in used]
    made = [pa.array(np.ascontiguousarray(records[name])) for name in _FIELDS]
    addresses = _texts(place, [exporter.address for exporter in named])
    source = _texts(np.zeros(len(records)), [source_file])
    made += [
        pa.array(np.arange(first, first + len(records), dtype=np.int64)),
        addresses,
        pa.array(np.array([e.domain for e in named], np.uint32)[place]),
        pa.array(np.array([e.version for e in named], np.uint8)[place]),
        source,
    ]
    return pa.Table.from_arrays(made, schema=SCHEMA)


def _texts(places: npt.NDArray[Any], texts: list[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32)), pa.array(texts, pa.string()))


def to_records(table: pa.Table | pa.RecordBatch) -> FlowRecords:
    """Return the flow records of a table of :data:`SCHEMA`."""
    records = np.empty(table.num_rows, FLOW_RECORD)
    for name in _FIELDS:
        column = table.column(name)
        records[name] = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    return records
