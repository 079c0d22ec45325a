import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.wire.errors import WireError
from vedette.wire.token import EnrolmentToken

TOKEN = EnrolmentToken(("ctl.example:7443", "10.0.0.1:7443"), "ctl.example:7444", "ab" * 32, "t1", "geheim")
TEXT = TOKEN.encode()


def test_a_token_reads_back_also_with_a_line_end():
    assert EnrolmentToken.decode(TEXT + "\n") == TOKEN


@given(st.integers(0, len(TEXT) - 1))
def test_a_cut_token_is_refused(length):
    with pytest.raises(WireError):
        EnrolmentToken.decode(TEXT[:length])


@given(st.text(max_size=200))
def test_any_text_is_a_token_or_a_wire_error(text):
    with pytest.raises(WireError):
        EnrolmentToken.decode("vdt1." + text)


def test_a_token_of_another_version_is_named_without_its_secret():
    with pytest.raises(WireError, match=r"begins with 'vdt9\.'") as refused:
        EnrolmentToken.decode("vdt9." + TEXT[5:])
    assert TEXT[5:] not in str(refused.value)


def test_an_endless_token_is_refused_before_it_is_decoded():
    with pytest.raises(WireError, match="limit 4096"):
        EnrolmentToken.decode("vdt1." + "A" * 5000)


@pytest.mark.parametrize("spoiled", [("", ()), ("zz", ("a:1",))])
def test_a_token_without_an_address_or_a_digest_is_refused(spoiled):
    digest, addresses = spoiled
    text = EnrolmentToken(addresses, "e:1", digest or "ab" * 32, "i", "s").encode()
    with pytest.raises(WireError, match="no address or no CA digest"):
        EnrolmentToken.decode(text)
