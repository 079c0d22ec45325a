"""Who changed what, and who knocked in vain, stands in the controller's log with fields to find it by."""

import logging
from dataclasses import replace

import pytest
from grpc import aio

from tests.support.controller import Appliance, Running
from vedette.wire.v1 import admin_pb2


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str, dict[str, str]]]:
    records = [record for record in caplog.records if record.name.startswith("vedette.controller")]
    return [(record.levelno, record.getMessage(), getattr(record, "vedette_fields", {})) for record in records]


async def test_what_an_admin_does_to_tokens_and_agents_is_logged_with_name_and_agent(
    served: Running, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "vedette.controller")
    token = await served.token(labels={"site": "s1"})
    await served.enrol(Appliance(served), token, name="edge-7")
    async with served.admin() as admin:
        await admin.LabelAgent(admin_pb2.LabelAgentRequest(name="edge-7", set={"rack": "4"}))
        await admin.RevokeAgent(admin_pb2.RevokeAgentRequest(name="edge-7"))
        await admin.RemoveAgent(admin_pb2.RemoveAgentRequest(name="edge-7"))
        await admin.RevokeToken(admin_pb2.RevokeTokenRequest(id=token.token_id))
    of_agent = [text for _, text, known in told(caplog) if known.get("VEDETTE_AGENT") == "edge-7"]
    assert of_agent[0].startswith("agent edge-7 (a-")
    assert of_agent[0].endswith(f"enrolled from 127.0.0.1 with token {token.token_id}")
    assert of_agent[1:] == [
        "admin labelled agent edge-7, which has now: rack=4,site=s1",
        "admin revoked agent edge-7",
        "admin removed agent edge-7",
    ]
    of_token = [text for _, text, _ in told(caplog) if f"token {token.token_id}" in text]
    assert of_token[0].startswith(
        f"admin made token {token.token_id}: labels site=s1, agents it may enrol 1, good until 20"
    )
    assert of_token[-1] == f"admin revoked token {token.token_id}"
    assert token.secret not in caplog.text


async def test_a_refused_enrolment_is_a_warning_with_address_token_and_code(
    served: Running, caplog: pytest.LogCaptureFixture
):
    token = await served.token()
    caplog.clear()
    with pytest.raises(aio.AioRpcError):
        await served.enrol(Appliance(served), replace(token, secret="guessed"))
    ((level, text, known),) = told(caplog)
    assert (level, known) == (logging.WARNING, {"VEDETTE_CODE": "token-unknown"})
    assert text.startswith(f"an enrolment from 127.0.0.1 with token {token.token_id} was refused: ")
    assert "guessed" not in text
