"""Profiles of data: what a model saw in training, and what it sees now, as counts that merge by addition.

A reference profile travels with the version and fixes the bins; a data profile counts live rows in the same bins, so
profiles of any time, batch and appliance add up exactly. Profiles of different references never merge.

Bins of one column, in this order: null, zero, below the least training value, between the training quantiles, above
the greatest. The model's score is counted as one more column behind the features.

Only rows that the model did not flag are counted in bins: a profile says what usual traffic looks like. One port scan
is ten thousand rows of its own kind, an alarm and no drift; flagged rows are counted apart.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.models.documents import digest_of
from vedette.models.errors import ModelsError
from vedette.models.tensors import dump_tensors, load_tensors

FloatArray = npt.NDArray[np.floating[Any]]
CountArray = npt.NDArray[np.uint64]

QUANTILES = 24
"""Bins between training quantiles. FACTS of profile size against accuracy: 20 to 32 lose nothing for PSI."""

BINS = QUANTILES + 4
"""Null, zero, below, the quantile bins, above."""

NULL_BIN, ZERO_BIN, BELOW_BIN = 0, 1, 2

LATENCY_EDGES_MS: FloatArray = 10.0 ** (np.arange(-24, 33) / 8)
"""Upper edges of the latency bins, milliseconds: eight to a decade from 1 us to 10 s; one more bin holds the rest."""

MAX_PROFILE_BYTES = 256 * 1024
_MAX_COLUMNS = 4097
_MAX_ROWS = 1 << 53  # and so no sum over the bins of a column, nor over a day of profiles, leaves 64 bits
_MAGIC = b"VDP1"
_HEAD = struct.Struct("<4s32sQQIB")
_WIDTHS: tuple[np.dtype[Any], ...] = (np.dtype("<u1"), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8"))


class ProfileError(ModelsError):
    """A profile is malformed, of another reference, or of rows that do not fit it."""


def latency_percentile(counts: Sequence[int] | CountArray, share: float) -> float:
    """Return a percentile of a latency histogram, in milliseconds.

    Interpolates within the bin in the logarithm, as the bins are spaced; the last bin reads as its lower edge.

    Args:
        counts: Per bin of :data:`LATENCY_EDGES_MS` and one beyond, shape (58,).
        share: 0 to 1; 0.99 for p99.

    Returns:
        0.0 when nothing was counted.
    """
    seen = np.asarray(counts, dtype=np.float64)
    total = seen.sum()
    if total == 0:
        return 0.0
    reached = np.cumsum(seen)
    place = int(np.searchsorted(reached, share * total))
    if place >= len(LATENCY_EDGES_MS):
        return float(LATENCY_EDGES_MS[-1])
    below = reached[place] - seen[place]
    within = (share * total - below) / seen[place] if seen[place] else 1.0
    return float(LATENCY_EDGES_MS[place] * 10.0 ** ((within - 1) / 8))


def latency_bin(latency_ms: float) -> int:
    """Return the bin a latency is counted in."""
    return int(np.searchsorted(LATENCY_EDGES_MS, latency_ms))


def _ordered(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """Return whole numbers that order as the floats do (NaN excepted)."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    negative = bits >> 31 == 1
    return np.where(negative, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)


class ReferenceProfile:
    """The bins of a version's data profiles and how its training data filled them.

    Args:
        columns: Names: the features in order, then ``score``.
        edges: Float32, shape (columns, QUANTILES + 1), ascending; +inf where a column has fewer.
        counts: Training rows by bin that the model does not flag, shape (columns, BINS).
        medians: Of the training values of each feature, shape (features,): what is usual.
        rows: Training rows counted.
        flagged: How many of them the model flagged.
    """

    def __init__(
        self,
        *,
        columns: tuple[str, ...],
        edges: npt.NDArray[np.float32],
        counts: CountArray,
        medians: npt.NDArray[np.float32],
        rows: int,
        flagged: int,
    ) -> None:
        width = len(columns)
        if not 1 <= width <= _MAX_COLUMNS:
            raise ProfileError(f"reference profile has {width} columns, limits 1 and {_MAX_COLUMNS}")
        expected = {"edges": (width, QUANTILES + 1), "counts": (width, BINS), "medians": (width - 1,)}
        for name, array in (("edges", edges), ("counts", counts), ("medians", medians)):
            if array.shape != expected[name]:
                raise ProfileError(f"reference profile's {name} have shape {array.shape}, expected {expected[name]}")
        if np.isnan(edges).any() or (np.diff(_ordered(edges).astype(np.int64), axis=1) < 0).any():
            raise ProfileError("reference profile's edges are not ascending in every column")
        self.columns, self.edges, self.counts, self.medians = columns, edges, counts, medians
        self.rows, self.flagged = rows, flagged

    @classmethod
    def fit(
        cls,
        names: Sequence[str],
        features: npt.NDArray[np.float32],
        scores: FloatArray,
        flagged: npt.NDArray[np.bool_],
    ) -> ReferenceProfile:
        """Return the profile of training data.

        Args:
            names: Of the features.
            features: Shape (rows, features).
            scores: Of the model on these rows, shape (rows,).
            flagged: What it flags of them, shape (rows,).

        Raises:
            ProfileError: Shapes do not fit, or there are no rows.
        """
        rows = len(features)
        if rows == 0 or features.shape[1:] != (len(names),) or scores.shape != (rows,) or flagged.shape != (rows,):
            raise ProfileError(
                f"{len(names)} names for features {features.shape}, scores {scores.shape}, flagged {flagged.shape}"
            )
        table = _with_score(features, scores)
        edges = np.stack([_column_edges(table[:, place]) for place in range(table.shape[1])])
        empty = np.zeros((table.shape[1], BINS), np.uint64)
        blank = cls(columns=(*names, "score"), edges=edges, counts=empty, medians=_medians(features), rows=0, flagged=0)
        filled = DataProfile(blank)
        filled.add(features, scores, flagged)
        return cls(
            columns=blank.columns,
            edges=edges,
            counts=filled.counts,
            medians=blank.medians,
            rows=filled.rows,
            flagged=filled.flagged,
        )

    @cached_property
    def digest(self) -> str:
        """The digest of the bytes: what names the reference in every data profile."""
        return digest_of(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the profile as a tensor file."""
        return dump_tensors(
            {
                "columns": np.frombuffer("\n".join(self.columns).encode(), np.uint8),
                "edges": self.edges,
                "counts": self.counts,
                "medians": self.medians,
                "rows": np.array([self.rows, self.flagged], np.uint64),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> ReferenceProfile:
        """Return the profile of a tensor file.

        Raises:
            ProfileError: The arrays are not those of a reference profile.
            TensorFileError: The bytes are no tensor file.
        """
        arrays = load_tensors(data)
        want = {"columns": "u1", "edges": "f4", "counts": "u8", "medians": "f4", "rows": "u8"}
        if {name: array.dtype.str[1:] for name, array in arrays.items()} != want or arrays["rows"].shape != (2,):
            found = {name[:40]: str(array.dtype) for name, array in arrays.items()}
            raise ProfileError(f"reference profile holds {found}, expected {want}")
        try:
            columns = tuple(arrays["columns"].tobytes().decode().split("\n"))
        except UnicodeDecodeError as exc:
            raise ProfileError(f"reference profile's column names are not UTF-8: {exc}") from exc
        rows, flagged = (int(number) for number in arrays["rows"])
        return cls(
            columns=columns,
            edges=arrays["edges"],
            counts=arrays["counts"],
            medians=arrays["medians"],
            rows=rows,
            flagged=flagged,
        )

    @cached_property
    def _keys(self) -> npt.NDArray[np.uint64]:
        """Every column's edges as one ascending array, the column in the upper half."""
        columns = np.arange(len(self.columns), dtype=np.uint64)[:, None] << np.uint64(32)
        return (columns | _ordered(self.edges)).reshape(-1)

    def bins(self, table: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Return the bin of each value.

        Args:
            table: Features with the score behind them, shape (rows, columns).

        Returns:
            Shape (rows, columns), each 0 to BINS - 1.
        """
        width = len(self.columns)
        keys = (np.arange(width, dtype=np.uint64) << np.uint64(32)) | _ordered(table)
        places = np.searchsorted(self._keys, keys.reshape(-1), side="right").reshape(table.shape)
        edges_each = QUANTILES + 1
        found = places - np.arange(width) * edges_each + BELOW_BIN
        found[table == 0] = ZERO_BIN
        found[np.isnan(table)] = NULL_BIN
        return found


def _with_score(features: npt.NDArray[np.float32], scores: FloatArray) -> npt.NDArray[np.float32]:
    return np.concatenate([features, scores.astype(np.float32)[:, None]], axis=1, dtype=np.float32)


def _medians(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the median of each column's finite values; 0 where there is none."""
    finite = np.where(np.isfinite(features), features, np.nan)
    ordered = np.sort(finite, axis=0)  # NaN last
    count = np.isfinite(finite).sum(axis=0)
    columns = np.arange(features.shape[1])
    middle: npt.NDArray[np.float32] = np.nan_to_num(ordered[np.maximum(count - 1, 0) // 2, columns])
    return middle.astype(np.float32)


def _column_edges(column: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a column's edges: quantiles of what is neither null nor zero, each once, the last just above the most."""
    edges = np.full(QUANTILES + 1, np.inf, np.float32)
    known = column[np.isfinite(column) & (column != 0)]
    if len(known):
        found = np.unique(np.quantile(known, np.linspace(0, 1, QUANTILES + 1)).astype(np.float32))
        found[-1] = np.nextafter(known.max(), np.float32(np.inf))
        found[0] = known.min()
        found = np.unique(found)
        edges[: len(found)] = found
        edges[len(found) :] = np.inf
    return edges


class DataProfile:
    """Counts of live rows in the bins of a reference."""

    def __init__(self, reference: ReferenceProfile) -> None:
        self.reference = reference
        self.counts: CountArray = np.zeros((len(reference.columns), BINS), np.uint64)
        self.rows = 0  # flagged ones included
        self.flagged = 0

    @property
    def usual(self) -> int:
        """Return how many rows are counted in bins: those the model did not flag."""
        return self.rows - self.flagged

    def add(self, features: npt.NDArray[np.float32], scores: FloatArray, flagged: npt.NDArray[np.bool_]) -> None:
        """Count a batch of rows: those not flagged in their bins, the flagged ones by number.

        Args:
            features: Shape (rows, features), as the model read them.
            scores: Shape (rows,).
            flagged: Shape (rows,).

        Raises:
            ProfileError: The shapes are not those of the reference.
        """
        width = len(self.reference.columns)
        rows = len(features)
        if features.shape[1:] != (width - 1,) or scores.shape != (rows,) or flagged.shape != (rows,):
            raise ProfileError(
                f"features {features.shape}, scores {scores.shape}, flagged {flagged.shape} for {width - 1} features"
            )
        usual = ~flagged
        found = self.reference.bins(_with_score(features[usual], scores[usual])) + np.arange(width) * BINS
        self.counts += np.bincount(found.reshape(-1), minlength=width * BINS).reshape(width, BINS).astype(np.uint64)
        self.rows += rows
        self.flagged += int(np.count_nonzero(flagged))

    def merge(self, other: DataProfile) -> None:
        """Add another profile of the same reference; order and grouping do not matter.

        Raises:
            ProfileError: The other counts in the bins of another reference.
        """
        if other.reference.digest != self.reference.digest:
            ours, theirs = self.reference.digest[:19], other.reference.digest[:19]
            raise ProfileError(f"profile of reference {theirs} cannot be added to one of {ours}")
        self.counts += other.counts
        self.rows += other.rows
        self.flagged += other.flagged

    def encode(self) -> bytes:
        """Return the counts as they travel: head, then the counts in the narrowest whole numbers, deflated."""
        return ProfileCounts(self.reference.digest, self.rows, self.flagged, self.counts).encode()

    @classmethod
    def decode(cls, data: bytes, reference: ReferenceProfile) -> DataProfile:
        """Return the profile that travelled.

        Raises:
            ProfileError: Too large, malformed, of another reference, or its counts do not add up to its rows.
        """
        found = ProfileCounts.decode(data)
        if found.reference != reference.digest or len(found.counts) != len(reference.columns):
            raise ProfileError(f"profile is of reference {found.reference[:19]}, not of {reference.digest[:19]}")
        profile = cls(reference)
        profile.counts, profile.rows, profile.flagged = found.counts, found.rows, found.flagged
        return profile


@dataclass(slots=True)
class ProfileCounts:
    """A data profile without its reference at hand: enough to store it, to send it and to add others to it.

    Attributes:
        reference: Digest of the reference profile whose bins these are.
        rows: Flagged ones included.
        flagged: Of these.
        counts: Of the rows that were not flagged, shape (columns, BINS).
    """

    reference: str
    rows: int
    flagged: int
    counts: CountArray

    @classmethod
    def decode(cls, data: bytes) -> ProfileCounts:
        """Return the counts that travelled.

        Raises:
            ProfileError: Too large, malformed, or the counts do not add up to the rows.
        """
        digest, rows, flagged, columns, width = _read_head(data)
        size = columns * BINS * _WIDTHS[width].itemsize
        inflate = zlib.decompressobj()
        try:
            raw = inflate.decompress(data[_HEAD.size :], size + 1)
        except zlib.error as exc:
            raise ProfileError(f"profile's counts are not deflated data: {exc}") from exc
        if len(raw) != size or not inflate.eof or inflate.unused_data:
            raise ProfileError(f"profile's counts are not one deflated block of {size} bytes")
        counts = np.frombuffer(raw, _WIDTHS[width]).reshape(columns, BINS).astype(np.uint64)
        # No count alone above the rows: a sum of greater ones could wrap round to the right number.
        if flagged > rows or int(counts.max()) > rows or (counts.sum(axis=1) != rows - flagged).any():
            raise ProfileError(f"profile of {rows} rows, {flagged} flagged, has counts that do not add up to its rows")
        return cls(digest, rows, flagged, counts)

    def merge(self, other: ProfileCounts) -> None:
        """Add the counts of another profile of the same reference; order and grouping do not matter.

        Raises:
            ProfileError: The other counts in the bins of another reference.
        """
        if other.reference != self.reference or other.counts.shape != self.counts.shape:
            ours, theirs = self.reference[:19], other.reference[:19]
            raise ProfileError(f"profile of reference {theirs} cannot be added to one of {ours}")
        self.counts = self.counts + other.counts
        self.rows += other.rows
        self.flagged += other.flagged

    def encode(self) -> bytes:
        """Return the counts as they travel."""
        largest = int(self.counts.max())
        width = next(place for place, kind in enumerate(_WIDTHS) if largest < 256**kind.itemsize)
        digest = bytes.fromhex(self.reference.removeprefix("sha256:"))
        head = _HEAD.pack(_MAGIC, digest, self.rows, self.flagged, len(self.counts), width)
        return head + zlib.compress(self.counts.astype(_WIDTHS[width]).tobytes(), 6)


def reference_of(data: bytes) -> str:
    """Return the digest of the reference that an encoded profile counts in.

    Raises:
        ProfileError: Too large or malformed.
    """
    return _read_head(data)[0]


def _read_head(data: bytes) -> tuple[str, int, int, int, int]:
    if not _HEAD.size <= len(data) <= MAX_PROFILE_BYTES:
        raise ProfileError(f"profile is {len(data)} bytes, limits {_HEAD.size} and {MAX_PROFILE_BYTES}")
    magic, digest, rows, flagged, columns, width = _HEAD.unpack_from(data)
    if rows > _MAX_ROWS:
        raise ProfileError(f"profile counts {rows} rows, limit {_MAX_ROWS}")
    if magic != _MAGIC or not 1 <= columns <= _MAX_COLUMNS or width >= len(_WIDTHS):
        raise ProfileError(f"profile begins with {magic!r}, {columns} columns, width {width}")
    return "sha256:" + digest.hex(), rows, flagged, columns, width
