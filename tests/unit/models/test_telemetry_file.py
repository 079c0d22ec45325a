import contextlib
import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pki import Authority
from vedette.agent.adapters.fleet.identity import certificate_request
from vedette.models.telemetry_file import (
    MAGIC,
    MAX_BATCH_BYTES,
    MAX_HEADER_BYTES,
    Head,
    TelemetryFileError,
    TelemetryForged,
    batches_of,
    check_body,
    framed,
    measured,
    read_head,
    start_of,
)


def pem_of(key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


KEY, OTHER = (pem_of(ec.generate_private_key(ec.SECP256R1())) for _ in range(2))
CERTIFICATE = Authority().client(certificate_request(KEY, "edge-7"), "agent-1")
BATCHES = [b"first", b"", b"third" * 100]
COUNT, SIZE, DIGEST = measured(BATCHES)
HEAD = Head("agent-1", "edge-7", datetime(2026, 11, 23, tzinfo=UTC), CERTIFICATE, COUNT, SIZE, DIGEST)
BODY = b"".join(map(framed, BATCHES))
WHOLE = start_of(HEAD, KEY) + BODY


def parse(data):
    """Read a file as the controller does, its proof first: what the fuzzers drive."""
    source = io.BytesIO(data)
    head = read_head(source)
    at = source.tell()
    check_body(source, head)
    source.seek(at)
    return head, list(batches_of(source, head))


def test_what_was_written_is_read():
    assert parse(WHOLE) == (HEAD, BATCHES)


def test_a_file_of_nothing_is_a_file():
    count, size, digest = measured([])
    head = replace(HEAD, batches=count, size=size, digest=digest)
    assert parse(start_of(head, KEY)) == (head, [])


@given(st.integers(0, len(WHOLE) - 1))
def test_a_file_cut_anywhere_is_refused(size):
    with pytest.raises(TelemetryFileError):
        parse(WHOLE[:size])


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(place, change):
    spoiled = bytearray(WHOLE)
    spoiled[place] ^= change
    with pytest.raises((TelemetryFileError, TelemetryForged)):
        parse(bytes(spoiled))


@given(st.binary(max_size=300), st.booleans())
def test_garbage_is_refused_and_nothing_else_happens(data, is_header):
    header = MAGIC + len(data).to_bytes(4, "big") + data + (70).to_bytes(2, "big") + bytes(70)
    with contextlib.suppress(TelemetryFileError, TelemetryForged):
        parse(header if is_header else data)


def test_another_key_than_the_certificates_proves_nothing():
    with pytest.raises(TelemetryForged, match="not by the key of the certificate"):
        parse(start_of(HEAD, OTHER) + BODY)


@pytest.mark.parametrize("change", [{"agent": "agent-2"}, {"batches": COUNT + 1}, {"digest": "sha256:" + "0" * 64}])
def test_a_signature_holds_for_no_other_header(change):
    start = start_of(HEAD, KEY)
    signature = start[12 + len(HEAD.to_bytes()) :]
    header = replace(HEAD, **change).to_bytes()
    with pytest.raises(TelemetryForged):
        parse(MAGIC + len(header).to_bytes(4, "big") + header + signature + BODY)


def test_a_body_that_was_not_signed_is_refused():
    with pytest.raises(TelemetryFileError, match="it was damaged"):
        parse(start_of(HEAD, KEY) + BODY[:-1] + b"x")
    with pytest.raises(TelemetryFileError, match="goes on behind its end"):
        parse(WHOLE + b"x")


@pytest.mark.parametrize(("batches", "why"), [(COUNT + 1, "ends 4 bytes early"), (COUNT - 1, "stand behind the last")])
def test_a_signed_header_that_counts_wrongly_is_refused(batches, why):
    with pytest.raises(TelemetryFileError, match=why):
        parse(start_of(replace(HEAD, batches=batches), KEY) + BODY)


def test_a_batch_that_ends_behind_the_body_is_refused():
    body = (100).to_bytes(4, "big") + b"short"
    with pytest.raises(TelemetryFileError, match="ends behind the body"):
        list(batches_of(io.BytesIO(body), replace(HEAD, batches=1, size=len(body))))


def test_sizes_over_their_limits_are_refused_before_anything_is_read():
    source = io.BytesIO(MAGIC + (MAX_HEADER_BYTES + 1).to_bytes(4, "big") + bytes(100))
    with pytest.raises(TelemetryFileError, match=f"limit {MAX_HEADER_BYTES}"):
        read_head(source)
    assert source.tell() == 12
    body = (MAX_BATCH_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(TelemetryFileError, match=f"limit {MAX_BATCH_BYTES}"):
        list(batches_of(io.BytesIO(body), replace(HEAD, batches=1, size=2**31)))
    with pytest.raises(TelemetryFileError, match=f"limit {MAX_BATCH_BYTES}"):
        framed(bytes(MAX_BATCH_BYTES + 1))


def test_a_later_format_says_so():
    with pytest.raises(TelemetryFileError, match="format 2, this version reads 1"):
        parse(MAGIC[:-1] + b"\x02" + WHOLE[8:])


@pytest.mark.parametrize("key", [b"no key", pem_of(ed25519.Ed25519PrivateKey.generate())])
def test_only_an_ec_key_signs(key):
    with pytest.raises(TelemetryForged):
        start_of(HEAD, key)


def test_a_certificate_of_another_kind_proves_nothing():
    header = replace(HEAD, certificate=b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").to_bytes()
    with pytest.raises(TelemetryForged, match="cannot be used"):
        parse(MAGIC + len(header).to_bytes(4, "big") + header + (1).to_bytes(2, "big") + b"x")
