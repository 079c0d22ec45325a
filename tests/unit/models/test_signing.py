import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.models.signing import MAX_ENVELOPE_BYTES, SignatureError, SigningKey, key_id, seal, signers, unseal

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
KIND = "application/vnd.test+json"
ENVELOPE = seal(KIND, b'{"a":1}', KEY)


def test_a_sealed_payload_comes_back():
    assert unseal(ENVELOPE, KIND, [KEY.public]) == b'{"a":1}'
    assert signers(ENVELOPE) == (KEY.key_id,)


def test_a_key_that_is_not_trusted_counts_for_nothing():
    with pytest.raises(SignatureError, match="0 trusted signatures, 1 needed"):
        unseal(ENVELOPE, KIND, [OTHER.public])


def test_a_document_of_one_kind_never_passes_for_another():
    with pytest.raises(SignatureError, match="expected 'assignment'"):
        unseal(ENVELOPE, "assignment", [KEY.public])
    renamed = json.dumps(json.loads(ENVELOPE) | {"payloadType": "assignment"}).encode()
    with pytest.raises(SignatureError, match="0 trusted"):
        unseal(renamed, "assignment", [KEY.public])


def test_an_unsigned_document_is_refused():
    with pytest.raises(SignatureError, match="signed by nobody"):
        unseal(seal(KIND, b"x"), KIND, [KEY.public])


def test_one_key_signing_twice_is_one_signature():
    with pytest.raises(SignatureError, match="1 trusted signatures, 2 needed"):
        unseal(seal(KIND, b"x", KEY, KEY), KIND, [KEY.public, OTHER.public], threshold=2)
    assert unseal(seal(KIND, b"x", KEY, OTHER), KIND, [KEY.public, OTHER.public], threshold=2) == b"x"


def test_a_false_key_id_neither_helps_nor_hurts():
    value = json.loads(ENVELOPE)
    value["signatures"][0]["keyid"] = OTHER.key_id
    envelope = json.dumps(value).encode()
    assert unseal(envelope, KIND, [KEY.public]) == b'{"a":1}'
    with pytest.raises(SignatureError):
        unseal(envelope, KIND, [OTHER.public])


@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_no_changed_byte_gives_another_payload(place, change):
    spoiled = bytearray(ENVELOPE)
    spoiled[place] ^= change
    with contextlib.suppress(SignatureError):
        assert unseal(bytes(spoiled), KIND, [KEY.public]) == b'{"a":1}'


@given(st.binary(max_size=300))
def test_any_bytes_are_an_envelope_or_a_signature_error(data):
    with pytest.raises(SignatureError):
        unseal(data, KIND, [KEY.public])


@pytest.mark.parametrize(
    "change",
    [
        {"payload": 7},
        {"payload": "%%"},
        {"payloadType": 3},
        {"signatures": {}},
        {"signatures": [{}]},
        {"signatures": [7]},
        {"signatures": [{"keyid": "a", "sig": "AA=="}] * 17},
    ],
)
def test_a_malformed_envelope_is_refused(change):
    with pytest.raises(SignatureError):
        unseal(json.dumps(json.loads(ENVELOPE) | change).encode(), KIND, [KEY.public])


def test_size_is_checked_first():
    with pytest.raises(SignatureError, match=f"limit {MAX_ENVELOPE_BYTES}"):
        unseal(b"{" * (MAX_ENVELOPE_BYTES + 1), KIND, [KEY.public])


def test_a_key_survives_its_pem():
    again = SigningKey.from_pem(KEY.to_pem())
    assert again.public == KEY.public
    assert key_id(again.public) == KEY.key_id


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(pem):
    with pytest.raises(SignatureError):
        SigningKey.from_pem(pem)


def test_the_signature_covers_dsse_version_1():
    # The encoding of the DSSE specification, written out by hand.
    signature = base64.b64decode(json.loads(ENVELOPE)["signatures"][0]["sig"])
    assert KEY.sign(b"DSSEv1 25 application/vnd.test+json 7 " + b'{"a":1}') == signature
