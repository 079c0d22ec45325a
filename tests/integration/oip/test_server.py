"""Claims about the server itself: where it listens, whom it lets in, what it survives, how it says how it stands."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.support import triton_calls as calls
from tests.support.appliance import FAST, Appliance
from tests.support.oip import (
    PREFIX,
    Client,
    ClientProcess,
    client_of,
    echo_model,
    echo_release,
    install,
    request_of,
    sample,
    served,
    tensor_release,
)
from tests.support.pki import Authority
from tests.support.tiny_models import (
    TRIPWIRE_INPUTS,
    TRIPWIRE_OUTPUTS,
    flow_outputs,
    flow_rows,
    tripwire_model,
)
from tests.support.waiting import until
from vedette.agent.adapters.oip.errors import code_of, text_of, trailers_of
from vedette.agent.adapters.oip.server import SecretUnusable, read_token
from vedette.agent.adapters.telling.http import AddressInUse
from vedette.agent.domain.errors import Overloaded
from vedette.models.golden import Golden
from vedette.models.release import TensorSpec
from vedette.wire.oip import inference_pb2 as pb
from vedette.wire.oip.retry_pb2 import RetryHint, RichStatus

TOKEN = "0123456789abcdef0123456789abcdef"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


def _flow(rows: int = 1, **fields: Any) -> pb.ModelInferRequest:
    return request_of("flow-threat", {"features": flow_rows(rows)}, **fields)


async def _code(asked: Any) -> str:
    try:
        await asked
    except grpc.aio.AioRpcError as exc:
        return exc.code().name
    return "OK"


@asynccontextmanager
async def _stopped(appliance: Appliance) -> AsyncIterator[None]:
    """Have no worker answer for a while."""
    pids = appliance.serving.worker_pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def _until_waiting(appliance: Appliance, count: int) -> None:
    model = appliance.serving.active("flow-threat")
    assert model is not None
    await until(lambda: model.runner.outstanding == count)


# Where it listens


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_the_socket_is_for_its_owner_and_group_and_replaces_a_dead_one(
    appliance: Appliance, tmp_path: Path
) -> None:
    path = tmp_path / "oip.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with served(appliance, tmp_path):
        assert stat.filemode(path.stat().st_mode) == "srw-rw----"
        assert ".oip" not in _names(tmp_path)
    assert "oip.sock" not in _names(tmp_path)


async def test_a_socket_that_another_agent_answers_is_left_to_it(appliance: Appliance, tmp_path: Path) -> None:
    await install(appliance, appliance.shelf.flow_release(1))
    async with served(appliance, tmp_path):
        with pytest.raises(AddressInUse, match="another program answers there"):
            async with served(appliance, tmp_path, listen=None):
                pass
        client = Client(f"unix:{tmp_path}/oip.sock")
        assert (await client.infer(_flow())).model_version == "1"
        await client.close()


async def test_a_taken_port_is_told(appliance: Appliance, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"programs cannot ask on 127.0.0.1:{port}"):
            async with served(appliance, tmp_path, listen=("127.0.0.1", port)):
                pass


# Whom it lets in


async def test_with_tls_and_a_token_only_its_bearer_is_answered(appliance: Appliance, tmp_path: Path) -> None:
    authority = Authority()
    key, certificate = authority.server()
    files = {"tls_key": key, "tls_certificate": certificate, "token_file": TOKEN.encode() + b"\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o640)
    await install(appliance, appliance.shelf.flow_release(1))
    async with served(appliance, tmp_path, socket=None, **{name: tmp_path / name for name in files}) as server:
        options = [("grpc.ssl_target_name_override", "vedette-controller")]
        trusted = grpc.ssl_channel_credentials(authority.pem)
        async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", trusted, options=options) as channel:

            async def asked(*shown: str, path: str = f"{PREFIX}ModelInfer", body: bytes | None = None) -> str:
                body = _flow().SerializeToString() if body is None else body
                metadata = tuple(("authorization", value) for value in shown)
                return await _code(channel.unary_unary(path)(body, metadata=metadata))

            assert await asked(f"Bearer {TOKEN}") == "OK"
            for shown in ("", TOKEN, f"bearer {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Basic Og=="):
                assert await asked(shown) == "UNAUTHENTICATED"
            assert await asked() == "UNAUTHENTICATED"
            assert await asked(f"Bearer {TOKEN}", f"Bearer {TOKEN}") == "UNAUTHENTICATED"
            assert await asked(path=CHECK, body=b"") == "UNAUTHENTICATED"
            assert await asked(f"Bearer {TOKEN}", path=CHECK, body=b"") == "OK"
            stream = channel.stream_stream(f"{PREFIX}ModelStreamInfer")()
            assert await _code(stream.read()) == "UNAUTHENTICATED"
            assert (server.service.counts.answered, server.service.counts.refused) == (1, 10)
        async with client_of(server) as plain:
            assert await _code(plain.infer(_flow(), timeout=5)) == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [
        (TOKEN.encode(), 0o644, "its mode is 0644: others can read or change it"),
        (TOKEN.encode(), 0o660, "its mode is 0660: others can read or change it"),
        (b"", 0o600, "it is 0 bytes or more, limits 1 and 65536"),
        (b"x" * 65537, 0o600, "it is 65537 bytes or more, limits 1 and 65536"),
        (b"short", 0o600, "a token has at least 16 printable characters without a space, this one 5"),
        (b"two words are no token", 0o600, "a token has at least 16 printable characters without a space, this one 22"),
        ("päivää päivää päivää".encode(), 0o600, "a token has at least 16 printable characters without a space"),
        (TOKEN.encode() + b"\0", 0o600, "a token has at least 16 printable characters without a space, this one 33"),
    ],
)
def test_a_token_file_that_is_none_is_refused(tmp_path: Path, content: bytes, mode: int, complaint: str) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(mode)
    with pytest.raises(SecretUnusable) as caught:
        read_token(file)
    assert complaint in caught.value.why


async def test_a_key_that_is_not_the_certificates_is_told(appliance: Appliance, tmp_path: Path) -> None:
    (key, _), (_, certificate) = Authority().server(), Authority().server()
    files = {"tls_key": key, "tls_certificate": certificate, "token_file": TOKEN.encode()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    for _ in range(2):  # then with a key that is none at all
        with pytest.raises(SecretUnusable, match="OpenSSL says"):
            async with served(appliance, tmp_path, socket=None, **{name: tmp_path / name for name in files}):
                pass
        (tmp_path / "tls_key").write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


def test_a_token_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SecretUnusable, match="cannot be read: No such file"):
        read_token(tmp_path / "token")


# How it stands


async def _health(client: Client, name: str) -> int:
    body = await client.ask(CHECK, health_pb2.HealthCheckRequest(service=name).SerializeToString())
    return int(health_pb2.HealthCheckResponse.FromString(body).status)


async def test_health_is_told_as_grpc_health_probe_asks_it(client: Client) -> None:
    for name in ("", "inference.GRPCInferenceService", "flow-threat", "echo"):
        assert await _health(client, name) == SERVING
    assert await _code(_health(client, "nobody")) == "NOT_FOUND"


async def test_who_watches_health_is_told_each_change(appliance: Appliance, tmp_path: Path) -> None:
    async with served(appliance, tmp_path) as server, client_of(server) as client:
        body = health_pb2.HealthCheckRequest(service="flow-threat").SerializeToString()
        watch = client.watch(WATCH, body)

        async def told() -> int:
            return int(health_pb2.HealthCheckResponse.FromString(await watch.read()).status)

        assert await told() == UNKNOWN
        await install(appliance, appliance.shelf.flow_release(1))
        while (status := await told()) == NOT_SERVING:  # while it is installed
            pass
        assert status == SERVING
        await appliance.serving.remove("flow-threat")
        assert await told() == UNKNOWN
        watch.cancel()


async def test_reflection_lists_the_services_and_describes_the_protocol(client: Client) -> None:
    stream = client.stream(f"/{reflection_pb2.DESCRIPTOR.package}.ServerReflection/ServerReflectionInfo")

    async def asked(**what: str) -> Any:
        await stream.write(reflection_pb2.ServerReflectionRequest(**what).SerializeToString())
        return reflection_pb2.ServerReflectionResponse.FromString(await stream.read())

    listed = (await asked(list_services="")).list_services_response.service
    assert {service.name for service in listed} == {
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    found = await asked(file_containing_symbol="inference.GRPCInferenceService")
    assert any(b"ModelStreamInfer" in file for file in found.file_descriptor_response.file_descriptor_proto)
    stream.cancel()


async def _is_ready(client: Client) -> bool:
    return bool(pb.ServerReadyResponse.FromString(await client.ask("ServerReady", b"")).ready)


async def test_before_the_models_are_loaded_it_is_alive_and_not_ready(appliance: Appliance, tmp_path: Path) -> None:
    await install(appliance, appliance.shelf.flow_release(1))
    await appliance.close()
    again = Appliance(tmp_path)
    async with served(again, tmp_path) as server, client_of(server) as client:
        assert pb.ServerLiveResponse.FromString(await client.ask("ServerLive", b"")).live
        assert not await _is_ready(client)
        assert await _code(client.infer(_flow())) == "UNAVAILABLE"
        assert await _health(client, "") == NOT_SERVING
        index = pb.RepositoryIndexResponse.FromString(await client.ask("RepositoryIndex", b""))
        assert [(model.name, model.version, model.state) for model in index.models] == [
            ("flow-threat", "1", "UNAVAILABLE")
        ]
        await again.serving.start()
        assert await _is_ready(client)
        assert await _code(client.infer(_flow())) == "OK"
    await again.close()


async def test_a_switch_is_seen_by_nobody_but_in_the_version(
    appliance: Appliance, tmp_path: Path, triton: ClientProcess
) -> None:
    await install(appliance, appliance.shelf.flow_release(1))
    async with served(appliance, tmp_path) as server, client_of(server) as client:
        hammer = asyncio.create_task(
            triton.run(calls.hammer, f"127.0.0.1:{server.port}", "flow-threat", {"features": flow_rows(3)}, 4, 4.0)
        )
        readiness = []
        await until(lambda: server.counts.answered >= 20)
        for version in (2, 3):
            installing = asyncio.create_task(install(appliance, appliance.shelf.flow_release(version)))
            while not installing.done():
                readiness.append(await _is_ready(client))
            await installing
        answered, versions, errors = await hammer
        assert errors == []
        assert answered > 100
        assert set(versions) == {"1", "2", "3"}
        assert set(readiness) == {True}
        index = pb.RepositoryIndexResponse.FromString(await client.ask("RepositoryIndex", b""))
        assert [(model.version, model.state) for model in index.models] == [("3", "READY"), ("2", "UNAVAILABLE")]
        assert await _code(client.infer(_flow(model_version="2"))) == "NOT_FOUND"


async def test_a_request_for_the_version_that_was_switched_away_from_while_it_waited_is_refused(
    appliance: Appliance, tmp_path: Path
) -> None:
    await install(appliance, appliance.shelf.flow_release(1))
    async with served(appliance, tmp_path) as server, client_of(server) as client:
        service = server.service
        old = appliance.serving.active("flow-threat")
        assert old is not None
        held = service._model  # the moment between choosing and asking, made as long as needed

        async def late(slot: str, version: str) -> Any:
            model = await held(slot, version)
            await install(appliance, appliance.shelf.flow_release(2))
            return model

        service._model = late  # type: ignore[method-assign]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.infer(_flow(model_version="1"))
        assert caught.value.details() == "version '1' of 'flow-threat' is not served here; version 2 is"
        service._model = held  # type: ignore[method-assign]
        assert (await client.infer(_flow(model_version="2"))).model_version == "2"


# What it survives


async def test_two_hundred_callers_get_each_their_own_answer(client: Client) -> None:
    rows = [flow_rows(1 + number % 7, seed=number) for number in range(200)]
    asked = [
        client.infer(request_of("flow-threat", {"features": each}, id=str(number))) for number, each in enumerate(rows)
    ]
    for number, (each, answer) in enumerate(zip(rows, await asyncio.gather(*asked), strict=True)):
        assert answer.id == str(number)
        score = np.frombuffer(answer.raw_output_contents[0], np.float32)
        np.testing.assert_allclose(score, flow_outputs(each, 1.0)["score"], rtol=1e-5)


async def test_a_full_queue_is_told_with_the_time_to_wait_and_empties_again(
    appliance: Appliance, tmp_path: Path
) -> None:
    appliance.use(replace(appliance.settings, worker=replace(FAST, queue=8, deadline_s=30.0)))
    await install(appliance, appliance.shelf.flow_release(1))
    async with served(appliance, tmp_path) as server, client_of(server) as client:
        async with _stopped(appliance):
            waiting = {asyncio.create_task(client.infer(_flow())) for _ in range(60)}
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
        refused = done.pop().exception()
        assert isinstance(refused, grpc.aio.AioRpcError)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details() == "8 requests wait, limit 8 (inference.queue)"
        trailers = dict(refused.trailing_metadata() or ())
        status = RichStatus.FromString(bytes(trailers["grpc-status-details-bin"]))
        assert status.details[0].type_url == "type.googleapis.com/google.rpc.RetryInfo"
        hint = RetryHint.FromString(status.details[0].value)
        assert hint.retry_delay.ToMilliseconds() == int(trailers["grpc-retry-pushback-ms"]) > 0
        ends = await asyncio.gather(*waiting, *done, return_exceptions=True)
        assert sum(isinstance(end, pb.ModelInferResponse) for end in ends) >= 8
        assert await _code(client.infer(_flow())) == "OK"


async def test_a_retry_policy_of_a_grpc_client_waits_as_long_as_the_refusal_says() -> None:
    asked: list[bytes] = []

    async def first_refused(body: bytes, context: Any) -> bytes:
        asked.append(body)
        if len(asked) == 1:
            full = Overloaded("full", 0.05)
            await context.abort(code_of(full), text_of(full), trailers_of(full))
        return body

    server = grpc.aio.server()
    call = grpc.unary_unary_rpc_method_handler(first_refused)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": call}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    slow = {"maxAttempts": 2, "initialBackoff": "600s", "maxBackoff": "600s", "backoffMultiplier": 1}
    policy = {"name": [{}], "retryPolicy": slow | {"retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}
    options = [("grpc.service_config", json.dumps({"methodConfig": [policy]}))]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        assert await channel.unary_unary("/a.B/C")(b"again", timeout=60) == b"again"
    assert len(asked) == 2
    await server.stop(0.0)


async def test_bytes_in_progress_are_bounded_as_a_whole(appliance: Appliance, tmp_path: Path) -> None:
    appliance.use(replace(appliance.settings, worker=replace(FAST, deadline_s=30.0)))
    await install(appliance, appliance.shelf.flow_release(1))
    large = _flow(3800)  # 60,800 bytes of numbers
    async with served(appliance, tmp_path, max_message_bytes=64 * 1024) as server, client_of(server) as client:
        async with _stopped(appliance):
            waiting = [asyncio.create_task(client.infer(large)) for _ in range(4)]
            await _until_waiting(appliance, 4)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.infer(large)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        size = large.ByteSize()
        assert caught.value.details() == f"{4 * size} bytes of requests are in progress, limit 262144"
        await asyncio.gather(*waiting)
        assert await _code(client.infer(large)) == "OK"
        assert await _code(client.infer(_flow(4200))) == "RESOURCE_EXHAUSTED"  # larger than one message may be
        stream = client.stream()
        await stream.write(_flow(4200).SerializeToString())
        assert await _code(stream.read()) == "RESOURCE_EXHAUSTED"
        await until(lambda: not server.counts.streams)
        assert await _code(client.infer(_flow())) == "OK"


async def test_a_deadline_is_kept_and_a_cancelled_call_leaves_the_queue(appliance: Appliance, tmp_path: Path) -> None:
    appliance.use(replace(appliance.settings, worker=replace(FAST, deadline_s=30.0)))
    await install(appliance, appliance.shelf.flow_release(1))
    async with served(appliance, tmp_path) as server, client_of(server) as client:
        async with _stopped(appliance):
            assert await _code(client.infer(_flow(), timeout=0.3)) == "DEADLINE_EXCEEDED"
            own = _flow()
            own.parameters["timeout"].int64_param = 200_000
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.infer(own)
            assert caught.value.details() == "no answer in 0.2 s, the caller's deadline"
            given_up = asyncio.create_task(client.infer(_flow()))
            await _until_waiting(appliance, 1)
            given_up.cancel()
            await _until_waiting(appliance, 0)
        assert await _code(client.infer(_flow())) == "OK"


async def test_what_fails_in_the_model_is_told_apart(appliance: Appliance, tmp_path: Path) -> None:
    golden = Golden({"x": np.zeros(1, np.float32), "kind": np.zeros(1, np.int64)}, {"y": np.zeros(1, np.float32)})
    release = tensor_release(
        appliance.shelf, tripwire_model(), TRIPWIRE_INPUTS, TRIPWIRE_OUTPUTS, golden, model="tripwire"
    )
    await install(appliance, release)
    async with served(appliance, tmp_path) as server, client_of(server) as client:

        def asked(kind: int) -> Any:
            inputs = {"x": np.ones(2, np.float32), "kind": np.array([kind], np.int64)}
            return client.infer(request_of("tripwire", inputs))

        assert await _code(asked(3)) == "INTERNAL"
        assert await _code(asked(1)) == "DEADLINE_EXCEEDED"
        assert np.frombuffer((await asked(0)).raw_output_contents[0], np.float32).tolist() == [2.0, 2.0]


async def test_a_killed_worker_costs_no_request(client: Client, appliance: Appliance) -> None:
    for _ in range(2):
        asked = [asyncio.create_task(client.infer(_flow())) for _ in range(20)]
        await asyncio.sleep(0)
        for pid in appliance.serving.worker_pids:
            os.kill(pid, signal.SIGKILL)
        assert len(await asyncio.gather(*asked)) == 20


async def test_a_flood_on_a_stream_nobody_reads_holds_a_window_and_no_more(client: Client, server: Any) -> None:
    stream = client.stream()
    body = _flow(3000).SerializeToString()
    flood = asyncio.create_task(_write_for_ever(stream, body))
    await until(lambda: server.counts.answered >= 8)
    for _ in range(20):  # others are answered meanwhile
        assert await _code(client.infer(_flow())) == "OK"
    assert server.service.held_bytes <= 9 * len(body)
    flood.cancel()
    stream.cancel()
    await until(lambda: not server.counts.streams)
    assert server.service.held_bytes == 0


async def _write_for_ever(stream: Any, body: bytes) -> None:
    while True:
        await stream.write(body)


async def test_streams_that_stay_open_leave_room_for_calls(
    client: Client, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vedette.agent.adapters.oip.server._MOST_OPEN", 4)
    streams = [client.stream() for _ in range(3)]
    watch = client.watch(WATCH, b"")
    assert health_pb2.HealthCheckResponse.FromString(await watch.read()).status == SERVING
    await until(lambda: server.counts.streams == 4)
    assert await _code(client.stream().read()) == "RESOURCE_EXHAUSTED"
    assert await _code(client.watch(WATCH, b"").read()) == "RESOURCE_EXHAUSTED"
    assert await _code(client.infer(_flow())) == "OK"
    for stream in (*streams, watch):
        stream.cancel()
    await until(lambda: not server.counts.streams)
    again = client.stream()
    await again.write(_flow().SerializeToString())
    assert pb.ModelStreamInferResponse.FromString(await again.read()).error_message == ""


async def test_a_stream_of_bytes_that_are_no_messages_goes_on(client: Client) -> None:
    stream = client.stream()
    for body in (b"\xff" * 20, b"", _flow(id="good").SerializeToString()):
        await stream.write(body)
    await stream.done_writing()
    answers = [pb.ModelStreamInferResponse.FromString(await stream.read()) for _ in range(3)]
    assert answers[0].error_message == "[INVALID_ARGUMENT] the request's 20 bytes are no ModelInferRequest"
    assert answers[1].error_message.startswith("[NOT_FOUND] no model '' is here")
    assert (answers[2].error_message, answers[2].infer_response.id) == ("", "good")
    assert await stream.read() is grpc.aio.EOF


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


async def test_garbage_and_halves_on_the_wire_harm_nobody(client: Client, server: Any) -> None:
    words = [
        b"\x00" * 4096,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # a TLS hello where there is none
        _PREFACE[:10],
        _PREFACE + b"\xff" * 4096,
        _PREFACE + _SETTINGS + b"\x00\x40\x00\x01\x04\x00\x00\x00\x01half a header",
        _PREFACE + _SETTINGS + b"\x00\x00\x04\x03\x00\x00\x00\x00\x07\x00\x00\x00\x08" * 1000,
    ]
    held = []
    for word in words * 10:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(word)
        held.append(writer)
    assert await _code(client.infer(_flow())) == "OK"
    for writer in held:
        writer.transport.abort()
    assert await _code(client.infer(_flow())) == "OK"


# Strings


async def test_strings_go_there_and_back_raw_and_typed(
    appliance: Appliance, tmp_path: Path, triton: ClientProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unasked(*_: Any) -> None:
        """Golden samples are a file of numbers."""

    monkeypatch.setattr(appliance.serving, "_self_test", unasked)
    await install(appliance, echo_release(appliance.shelf, ["bytes"]))
    # onnxruntime's strings are UTF-8 text
    given = sample("bytes", (3, 4))
    given[given == b"\x00\xff" * 3] = "日本".encode()
    async with served(appliance, tmp_path) as server, client_of(server) as client:
        found, *_ = await triton.run(calls.infer, f"127.0.0.1:{server.port}", "echo", {"in_bytes": given})
        assert found["out_bytes"].tolist() == given.tolist()
        request = pb.ModelInferRequest(model_name="echo")
        tensor = request.inputs.add(name="in_bytes", datatype="BYTES", shape=[1, 4])
        tensor.contents.bytes_contents.extend(given[0])
        answer = await client.infer(request)
        assert answer.raw_output_contents[0] == b"".join(len(s).to_bytes(4, "little") + s for s in given[0])
        for data, text in (
            (b"\x05\x00\x00\x00ab", "input 'in_bytes': element 0 says 5 bytes, 2 are left"),
            (b"\x00\x00", "input 'in_bytes' ends after 0 of 4 elements of BYTES"),
            (bytes(17), "input 'in_bytes' has 1 bytes after its 4 elements of BYTES"),
            (b"\xff" * 16, "input 'in_bytes': element 0 says 4294967295 bytes, 12 are left"),
        ):
            request.inputs[0].ClearField("contents")
            del request.raw_input_contents[:]
            request.raw_input_contents.append(data)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.infer(request)
            assert (caught.value.code().name, caught.value.details()) == ("INVALID_ARGUMENT", text)


async def test_axes_of_any_length_are_served(appliance: Appliance, tmp_path: Path) -> None:
    array = np.ones((2, 2), np.float32)
    inputs, outputs = ((TensorSpec(f"{side}_float32", "float32", (-1, -1)),) for side in ("in", "out"))
    golden = Golden({"in_float32": array}, {"out_float32": array})
    file = echo_model(["float32"], ("n", "m"))
    await install(appliance, tensor_release(appliance.shelf, file, inputs, outputs, golden, model="wide"))
    async with served(appliance, tmp_path) as server, client_of(server) as client:
        for shape in ((3, 7), (1, 1), (200, 2), (2, 0)):
            array = sample("float32", shape)
            answer = await client.infer(request_of("wide", {"in_float32": array}))
            assert tuple(answer.outputs[0].shape) == shape
            assert answer.raw_output_contents[0] == array.tobytes()
