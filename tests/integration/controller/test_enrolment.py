import asyncio
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc import aio

from tests.support.clock import FakeClock
from tests.support.controller import FACTS, Appliance, Running, code_of, prepare, running
from vedette.wire import convert
from vedette.wire.token import EnrolmentToken
from vedette.wire.v1 import admin_pb2, enrolment_pb2, enrolment_pb2_grpc
from vedette.wire.values import EnrolRequest


async def refusal(running: Running, token: EnrolmentToken, **changes: Any) -> tuple[str, str]:
    with pytest.raises(aio.AioRpcError) as caught:
        await running.enrol(Appliance(running), token, **changes)
    return code_of(caught.value), str(caught.value.details())


async def test_a_token_makes_an_agent_with_a_certificate_of_the_pinned_authority(served: Running):
    token = await served.token(labels={"site": "s1"})
    appliance = Appliance(served)
    response = await served.enrol(appliance, token, name="edge-7")
    certificate = x509.load_pem_x509_certificate(response.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert served.keys.authority.has_issued(response.certificate)
    assert token.ca_digest == served.keys.authority.digest
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"vedette:agent:{response.agent_id}"]
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert (response.name, response.release_keys) == ("edge-7", (served.keys.release.public,))
    assert response.assignment_keys == (served.keys.assignment.public,)
    assert response.assignment_keys != response.release_keys
    assert response.addresses == (f"127.0.0.1:{served.controller.port}",) == token.addresses
    async with served.admin() as admin:
        agent = convert.AGENT.from_wire(await admin.GetAgent(admin_pb2.GetAgentRequest(name="edge-7")))
    assert (agent.state, agent.labels, agent.facts) == ("enrolled", {"site": "s1"}, FACTS)


async def test_hello_shows_the_authority_that_the_token_pins(served: Running):
    leaf = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", served.controller.enrol_port))
    async with served.channel(served.controller.enrol_port, leaf.encode()) as channel:
        stub: Any = enrolment_pb2_grpc.EnrolmentStub(channel)
        hello = convert.HELLO_RESPONSE.from_wire(await stub.Hello(enrolment_pb2.HelloRequest()))
    assert hello.ca_certificate == served.keys.authority.pem
    assert hello.controller_id == served.keys.controller_id
    assert served.keys.authority.has_issued(leaf.encode())


async def test_a_token_works_as_often_as_it_says(served: Running):
    token = await served.token(uses=2)
    for _ in range(2):
        await served.enrol(Appliance(served), token)
    code, text = await refusal(served, token)
    assert code == "token-used"
    assert "2 of 2 uses" in text


async def test_the_same_key_again_gives_the_same_agent_and_spends_nothing(served: Running):
    token = await served.token()
    appliance = Appliance(served)
    first = await served.enrol(appliance, token)
    again = await served.enrol(appliance, token, name="another")
    assert again == first
    async with served.admin() as admin:
        tokens = (await admin.ListTokens(admin_pb2.ListTokensRequest())).tokens
    assert [(made.used, made.uses, made.token) for made in tokens] == [(1, 1, "")]


async def test_one_use_is_spent_once_however_many_ask_at_the_same_time(served: Running):
    token = await served.token()
    asked = await asyncio.gather(*(served.enrol(Appliance(served), token) for _ in range(8)), return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in asked) == 1
    assert {code_of(answer) for answer in asked if isinstance(answer, aio.AioRpcError)} == {"token-used"}


async def test_a_wrong_secret_and_an_unknown_token_cannot_be_told_apart(served: Running):
    token = await served.token()
    wrong = await refusal(served, token, token_secret="x" * 43)
    unknown = await refusal(served, token, **{"token_id": "t-none"})
    assert wrong == unknown
    assert wrong[0] == "token-unknown"


async def test_a_revoked_token_is_refused(served: Running):
    token = await served.token()
    async with served.admin() as admin:
        revoked = await admin.RevokeToken(admin_pb2.RevokeTokenRequest(id=token.token_id))
        with pytest.raises(aio.AioRpcError) as caught:
            await admin.RevokeToken(admin_pb2.RevokeTokenRequest(id="t-none"))
    assert revoked.revoked
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert (await refusal(served, token))[0] == "token-revoked"


async def test_an_expired_token_is_refused_with_its_time(tmp_path: Path):
    clock = FakeClock()
    async with running(prepare(tmp_path / "data"), clock=clock) as served:
        token = await served.token(expires_s=60)
        clock.step_wall(timedelta(seconds=60))
        code, text = await refusal(served, token)
    assert code == "token-expired"
    assert "12:01:00" in text


async def test_names_are_made_unique(served: Running):
    names = [(await served.enrolled(name)).name for name in ("edge", "edge", "edge", "", "other")]
    assert names == ["edge", "edge-2", "edge-3", "edge-4", "other"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "no good name"}, "name-invalid"),
        ({"certificate_request": b"no request"}, "request-invalid"),
        ({"name": "x" * 200}, "bad-message"),
        ({"certificate_request": b"x" * 5000}, "bad-message"),
    ],
)
async def test_bad_requests_are_refused_and_spend_nothing(served: Running, changes: dict[str, Any], code: str):
    token = await served.token()
    assert (await refusal(served, token, **changes))[0] == code
    await served.enrol(Appliance(served), token)


async def test_a_request_signed_by_another_key_or_of_another_kind_is_refused(served: Running):
    token = await served.token()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    foreign = builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(serialization.Encoding.PEM)
    der = bytearray(x509.load_pem_x509_csr(Appliance(served).request).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    assert "expected ECDSA P-256" in (await refusal(served, token, certificate_request=foreign))[1]
    assert "not by the key it names" in (await refusal(served, token, certificate_request=forged))[1]


async def test_labels_and_terms_of_tokens_have_limits(served: Running):
    for terms in ({"uses": 100_001}, {"expires_s": 10}, {"expires_s": 31 * 86400}, {"labels": {"name": "x"}}):
        with pytest.raises(aio.AioRpcError) as caught:
            await served.token(**terms)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_tokens_are_kept_as_digests(served: Running):
    token = await served.token()
    stored = (
        served.controller.database.path.read_bytes()
        + served.controller.database.path.with_name("controller.db-wal").read_bytes()
    )
    assert token.token_id.encode() in stored
    assert token.secret.encode() not in stored


async def test_an_oversized_message_is_refused_and_the_port_goes_on(served: Running):
    async with served.channel(served.controller.enrol_port, served.keys.authority.pem) as channel:
        stub: Any = enrolment_pb2_grpc.EnrolmentStub(channel)
        request = convert.ENROL_REQUEST.to_wire(EnrolRequest(certificate_request=b"x" * (5 << 20), facts=FACTS))
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Enrol(request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await stub.Hello(enrolment_pb2.HelloRequest())
