"""Claims about enrolling, against a real gRPC server with real TLS."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fake_controller import AGENT_ID, FakeController
from tests.support.pki import Authority
from vedette.agent.adapters.fleet import enrolment
from vedette.agent.adapters.fleet.channels import ControllerUnreachable
from vedette.agent.adapters.fleet.identity import Identity, IdentityDamaged, IdentityStore
from vedette.wire.token import EnrolmentToken
from vedette.wire.values import Facts


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with FakeController() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> IdentityStore:
    return IdentityStore(tmp_path / "enrolment")


async def _enrol(token: EnrolmentToken, store: IdentityStore, name: str = "edge-7") -> Identity:
    return await asyncio.to_thread(enrolment.enrol, token, store, name=name, facts=Facts(hostname="h"), timeout_s=5.0)


async def test_a_token_becomes_an_identity_that_a_restart_finds(
    controller: FakeController, store: IdentityStore
) -> None:
    made = await _enrol(controller.token(), store)
    assert store.load() == made
    assert (made.agent_id, made.name, made.addresses) == (AGENT_ID, "edge-7", (controller.address,))
    assert made.release_keys == (controller.release_key.public,)


async def test_the_private_key_is_readable_by_its_owner_alone(
    controller: FakeController, store: IdentityStore, tmp_path: Path
) -> None:
    await _enrol(controller.token(), store)
    assert stat.S_IMODE((tmp_path / "enrolment/key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "enrolment").stat().st_mode) == 0o700


async def test_a_lost_answer_costs_no_second_use_of_the_token(controller: FakeController, store: IdentityStore) -> None:
    token = controller.token(uses=1)
    controller.lose_enrolment_answers = 1
    with pytest.raises(ControllerUnreachable):
        await _enrol(token, store)
    assert store.load() is None
    made = await _enrol(token, store)
    assert store.load() == made
    assert len(controller.tokens["t1"].spent_by) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("token-used", enrolment.TokenUsed),
        ("token-expired", enrolment.TokenExpired),
        ("token-revoked", enrolment.TokenRevoked),
        ("something-newer", enrolment.EnrolmentRefused),
    ],
)
async def test_each_refusal_is_an_error_of_its_own(
    controller: FakeController, store: IdentityStore, code: str, error: type[enrolment.EnrolmentRefused]
) -> None:
    with pytest.raises(error) as caught:
        await _enrol(controller.token(refuse=code), store)
    assert type(caught.value) is error
    assert (caught.value.exit_code, caught.value.why) == (4, f"the fake says {code}")
    assert store.load() is None


async def test_a_wrong_secret_is_refused(controller: FakeController, store: IdentityStore) -> None:
    with pytest.raises(enrolment.TokenUnknown):
        await _enrol(replace(controller.token(), secret="guess"), store)


async def test_a_used_token_is_refused_to_another_key(
    controller: FakeController, store: IdentityStore, tmp_path: Path
) -> None:
    token = controller.token(uses=1)
    await _enrol(token, store)
    with pytest.raises(enrolment.TokenUsed):
        await _enrol(token, IdentityStore(tmp_path / "other"))


async def test_the_secret_is_not_sent_to_a_controller_with_another_ca(
    controller: FakeController, store: IdentityStore
) -> None:
    other = Authority()
    with pytest.raises(enrolment.WrongController) as caught:
        await _enrol(replace(controller.token(), ca_digest=other.digest), store)
    assert controller.authority.digest in caught.value.why
    assert other.digest in caught.value.why
    assert controller.secrets_seen == []


async def test_the_secret_is_not_sent_to_one_who_only_shows_the_right_ca(store: IdentityStore) -> None:
    right = Authority()
    async with FakeController() as impostor:
        impostor.shown_ca = right.pem
        with pytest.raises(enrolment.WrongController, match="did not issue"):
            await _enrol(replace(impostor.token(), ca_digest=right.digest), store)
        assert impostor.secrets_seen == []


async def test_a_closed_port_is_unreachable(controller: FakeController, store: IdentityStore) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ControllerUnreachable) as caught:
            await _enrol(replace(controller.token(), enrol_address=address), store)
    assert caught.value.exit_code == 5


async def test_a_server_without_tls_is_named_as_the_wrong_one(controller: FakeController, store: IdentityStore) -> None:
    async def portal(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 302 Found\r\nLocation: http://login.example/\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(portal, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with pytest.raises(enrolment.WrongController):
        await _enrol(replace(controller.token(), enrol_address=address), store)
    server.close()


async def test_an_enrolled_appliance_is_not_taken_over_by_another_controller(
    controller: FakeController, store: IdentityStore
) -> None:
    made = await _enrol(controller.token(), store)
    async with FakeController() as other:
        with pytest.raises(enrolment.AlreadyEnrolled) as caught:
            await _enrol(other.token(), store)
    assert "edge-7" in caught.value.what
    assert store.load() == made


async def test_enrolling_again_with_the_same_token_gives_the_same_agent(
    controller: FakeController, store: IdentityStore
) -> None:
    token = controller.token(uses=1)
    first = await _enrol(token, store)
    assert (await _enrol(token, store)).agent_id == first.agent_id


def test_a_cut_token_is_a_usage_error() -> None:
    text = EnrolmentToken(("c:7443",), "c:7444", "0" * 64, "t1", "s").encode()
    assert enrolment.read_token(text).token_id == "t1"
    with pytest.raises(enrolment.TokenMalformed) as caught:
        enrolment.read_token(text[:-5])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["key.pem", "ca.pem", "certificate.pem"])
async def test_an_identity_with_a_file_missing_is_damaged_and_says_which_folder(
    controller: FakeController, store: IdentityStore, tmp_path: Path, name: str
) -> None:
    await _enrol(controller.token(), store)
    (tmp_path / "enrolment" / name).unlink()
    with pytest.raises(IdentityDamaged, match="enrolment"):
        store.load()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b'{"format": 1}', b" " * 100_000])
async def test_a_damaged_record_is_a_typed_error(
    controller: FakeController, store: IdentityStore, tmp_path: Path, content: bytes
) -> None:
    await _enrol(controller.token(), store)
    (tmp_path / "enrolment/enrolment.json").write_bytes(content)
    with pytest.raises(IdentityDamaged):
        store.load()


async def test_an_enrolment_cut_before_its_record_is_finished_with_the_same_key(
    controller: FakeController, store: IdentityStore, tmp_path: Path
) -> None:
    token = controller.token(uses=1)
    first = await _enrol(token, store)
    (tmp_path / "enrolment/enrolment.json").unlink()
    assert store.load() is None
    assert (await _enrol(token, store)).key == first.key
    assert "PRIVATE" not in json.dumps((tmp_path / "enrolment/enrolment.json").read_text())


async def test_a_token_with_ipv6_addresses_is_spent_over_ipv6(store: IdentityStore) -> None:
    async with FakeController(host="[::1]") as controller:
        token = EnrolmentToken.decode(controller.token().encode())
        assert token.enrol_address == f"[::1]:{controller.enrol_port}"
        made = await _enrol(token, store)
    assert made.addresses == (f"[::1]:{controller.port}",)
