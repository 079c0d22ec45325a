from typing import Any

import grpc
import pytest
from grpc import aio

from tests.support.controller import Appliance, Running, code_of
from vedette.models.documents import digest_of
from vedette.wire.limits import DOWNLOAD_CHUNK_BYTES
from vedette.wire.v1 import artifacts_pb2


async def read(appliance: Appliance, digest: str, offset: int = 0) -> tuple[bytes, list[Any]]:
    async with appliance.artifacts() as stub:
        chunks = [chunk async for chunk in stub.Read(artifacts_pb2.ReadRequest(digest=digest, offset=offset))]
    return b"".join(chunk.data for chunk in chunks), chunks


async def refusal(appliance: Appliance, digest: str, offset: int = 0) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as caught:
        await read(appliance, digest, offset)
    return caught.value.code(), code_of(caught.value)


async def test_an_agent_reads_the_build_golden_and_reference_it_shall_run(served: Running):
    edge = await served.enrolled()
    target = served.release()
    await served.controller.rooms.fleet.set_slot(edge.id, target)
    for digest in served.controller.rooms.blobs.digests():
        data, chunks = await read(edge, digest)
        assert digest_of(data) == digest
        assert {chunk.total_bytes for chunk in chunks} == {len(data)}
        assert all(len(chunk.data) <= DOWNLOAD_CHUNK_BYTES for chunk in chunks)
    assert len(list(served.controller.rooms.blobs.digests())) == 3


async def test_a_download_resumes_at_any_byte(served: Running):
    edge = await served.enrolled()
    target = served.release()
    await served.controller.rooms.fleet.set_slot(edge.id, target)
    whole, _ = await read(edge, target.build)
    assert len(whole) > 2 * DOWNLOAD_CHUNK_BYTES
    for offset in (1, DOWNLOAD_CHUNK_BYTES - 1, DOWNLOAD_CHUNK_BYTES, len(whole) - 1, len(whole)):
        rest, chunks = await read(edge, target.build, offset)
        assert rest == whole[offset:]
        assert chunks[0].offset == offset
    assert await refusal(edge, target.build, len(whole) + 1) == (grpc.StatusCode.INVALID_ARGUMENT, "offset-invalid")


async def test_what_an_agents_assignment_does_not_name_is_not_found(served: Running):
    edge, other = await served.enrolled(), await served.enrolled()
    mine, theirs = served.release(1), served.release(2)
    await served.controller.rooms.fleet.set_slot(edge.id, mine)
    await served.controller.rooms.fleet.set_slot(other.id, theirs)
    foreign = served.controller.rooms.blobs.put(b"a snapshot").digest
    for digest in (theirs.build, foreign, "sha256:" + "0" * 64, "../../controller.db", ""):
        assert await refusal(edge, digest) == (grpc.StatusCode.NOT_FOUND, "blob-unknown")
    await served.controller.rooms.fleet.set_slot(edge.id, theirs)
    assert await refusal(edge, mine.build) == (grpc.StatusCode.NOT_FOUND, "blob-unknown")
    await read(edge, theirs.build)


async def rest_of(call: Any) -> int:
    received = 0
    while (chunk := await call.read()) is not aio.EOF:
        received += len(chunk.data)
    await call
    return received


async def test_a_revocation_ends_a_download_between_two_chunks(served: Running):
    edge = await served.enrolled()
    target = served.release(repeats=4_000_000)
    await served.controller.rooms.fleet.set_slot(edge.id, target)
    size = served.controller.rooms.blobs.size(target.build)
    async with edge.artifacts() as stub:
        call = stub.Read(artifacts_pb2.ReadRequest(digest=target.build))
        received = len((await call.read()).data)
        await served.controller.rooms.fleet.revoke(edge.id)
        with pytest.raises(aio.AioRpcError) as caught:
            received += await rest_of(call)
    assert (caught.value.code(), code_of(caught.value)) == (grpc.StatusCode.UNAUTHENTICATED, "agent-revoked")
    assert received < size
