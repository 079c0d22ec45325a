import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vedette.models.profile import (
    BELOW_BIN,
    BINS,
    LATENCY_EDGES_MS,
    NULL_BIN,
    ZERO_BIN,
    DataProfile,
    ProfileError,
    ReferenceProfile,
    latency_bin,
    latency_percentile,
    reference_of,
)
from vedette.models.tensors import TensorFileError

NAMES = ("a", "b", "c")


def training(rows: int = 2000, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.lognormal(size=(rows, 3)).astype(np.float32)
    features[rng.random(rows) < 0.3, 1] = 0
    features[:, 2] *= -1
    features[rng.random(rows) < 0.05, 2] = np.nan
    scores = rng.random(rows)
    return features, scores, scores > 0.99


REFERENCE = ReferenceProfile.fit(NAMES, *training())


def plain_bin(reference: ReferenceProfile, column: int, value: float) -> int:
    """Say the rule once more, one value at a time."""
    if np.isnan(value):
        return NULL_BIN
    if value == 0:
        return ZERO_BIN
    edges = reference.edges[column]
    return BELOW_BIN + sum(1 for edge in edges if np.float32(value) >= edge)


@given(
    hnp.arrays(np.float32, (7, 3), elements=st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf]))
)
def test_every_value_falls_into_the_bin_the_rule_says(features):
    table = np.concatenate([features, np.full((7, 1), 0.5, np.float32)], axis=1)
    expected = [[plain_bin(REFERENCE, column, value) for column, value in enumerate(row)] for row in table]
    assert REFERENCE.bins(table).tolist() == expected


def test_training_data_fills_its_own_bins_evenly():
    features, scores, flagged = training()
    made = ReferenceProfile.fit(NAMES, features, scores, np.zeros_like(flagged))
    inner = made.counts[0, BELOW_BIN + 1 : -1]
    assert inner.sum() == 2000
    assert inner.max() - inner.min() <= 2
    assert made.counts[:, BELOW_BIN].sum() == 0
    assert made.counts[:, -1].sum() == 0


def test_flagged_rows_are_counted_apart_and_not_in_bins():
    features, scores, flagged = training()
    with_all, without = DataProfile(REFERENCE), DataProfile(REFERENCE)
    with_all.add(features, scores, flagged)
    without.add(features[~flagged], scores[~flagged], flagged[~flagged])
    assert (with_all.counts == without.counts).all()
    assert (with_all.rows, with_all.flagged, with_all.usual) == (2000, int(flagged.sum()), without.rows)


def test_medians_are_of_what_is_known():
    features, _, _ = training()
    assert REFERENCE.medians[0] == np.sort(features[:, 0])[(len(features) - 1) // 2]
    assert np.isfinite(REFERENCE.medians).all()


@settings(max_examples=20)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.randoms())
def test_merging_is_addition_in_any_order_and_grouping(sizes, random):
    features, scores, flagged = training(300, seed=9)
    whole = DataProfile(REFERENCE)
    parts, start = [], 0
    for size in sizes:
        part = DataProfile(REFERENCE)
        cut = slice(start, start + size)
        part.add(features[cut], scores[cut], flagged[cut])
        whole.add(features[cut], scores[cut], flagged[cut])
        parts.append(part)
        start += size
    random.shuffle(parts)
    merged = DataProfile(REFERENCE)
    for part in parts:
        merged.merge(DataProfile.decode(part.encode(), REFERENCE))
    assert (merged.counts == whole.counts).all()
    assert (merged.rows, merged.flagged) == (whole.rows, whole.flagged)


def test_a_reference_reads_back_under_the_same_digest():
    again = ReferenceProfile.from_bytes(REFERENCE.to_bytes())
    assert again.digest == REFERENCE.digest
    assert again.columns == (*NAMES, "score")


def test_profiles_of_different_references_never_merge():
    other = ReferenceProfile.fit(NAMES, *training(seed=4))
    with pytest.raises(ProfileError, match="cannot be added"):
        DataProfile(REFERENCE).merge(DataProfile(other))
    with pytest.raises(ProfileError, match="is of reference"):
        DataProfile.decode(DataProfile(other).encode(), REFERENCE)


def filled() -> bytes:
    profile = DataProfile(REFERENCE)
    profile.add(*training(400, seed=5))
    return profile.encode()


ENCODED = filled()


def test_an_encoded_profile_names_its_reference():
    assert reference_of(ENCODED) == REFERENCE.digest


@given(st.integers(0, len(ENCODED) - 1), st.integers(1, 255))
def test_a_spoiled_profile_is_refused_or_adds_up(place, change):
    spoiled = bytearray(ENCODED)
    spoiled[place] ^= change
    try:
        profile = DataProfile.decode(bytes(spoiled), REFERENCE)
    except ProfileError:
        return
    assert (profile.counts.sum(axis=1) == profile.rows).all()


@pytest.mark.parametrize("data", [b"", ENCODED[:20], ENCODED[:-3], ENCODED + b"x", bytes(300_000)])
def test_a_cut_or_oversized_profile_is_refused(data):
    with pytest.raises(ProfileError):
        DataProfile.decode(data, REFERENCE)


def test_rows_of_the_wrong_width_are_refused():
    with pytest.raises(ProfileError, match="for 3 features"):
        DataProfile(REFERENCE).add(np.ones((2, 4), np.float32), np.ones(2), np.zeros(2, bool))


@pytest.mark.parametrize("data", [b"", b"\x00" * 8, b"\xff" * 64])
def test_what_is_no_reference_is_refused(data):
    with pytest.raises((ProfileError, TensorFileError)):
        ReferenceProfile.from_bytes(data)


def test_a_constant_and_an_empty_column_have_bins_too():
    features = np.zeros((10, 2), np.float32)
    features[:, 1] = 7
    made = ReferenceProfile.fit(("zero", "seven"), features, np.ones(10), np.zeros(10, bool))
    assert made.counts[0, ZERO_BIN] == 10
    assert made.counts[1, BELOW_BIN + 1] == 10
    assert made.counts.shape == (3, BINS)


@given(st.lists(st.floats(0.002, 9000), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_right_to_the_width_of_a_bin(latencies, share):
    counts = np.zeros(len(LATENCY_EDGES_MS) + 1)
    for latency in latencies:
        counts[latency_bin(latency)] += 1
    exact = np.sort(latencies)[min(int(np.ceil(share * len(latencies))), len(latencies)) - 1]
    assert exact / 1.34 <= latency_percentile(counts, share) <= exact * 1.34


def test_no_latency_is_no_percentile():
    assert latency_percentile([0] * 58, 0.5) == 0.0
