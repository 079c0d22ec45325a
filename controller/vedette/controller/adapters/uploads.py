"""Take a streamed upload into a file, within a limit."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from vedette.controller.domain.disk import typed_os_error
from vedette.controller.domain.errors import InvalidInput, TooLarge


async def receive(pieces: AsyncIterator[bytes], path: Path, total: int, limit: int) -> str:
    """Write a stream to a new file and return the digest of its bytes.

    Args:
        pieces: In order.
        path: Of the file; must not exist.
        total: Bytes the sender announced; 0 when it did not say.
        limit: The most bytes taken.

    Raises:
        TooLarge: Announced or sent bytes are over the limit.
        InvalidInput: Nothing was sent, or not what was announced.
        DiskFull: There is no room.
    """
    if total > limit:
        raise _too_large(total, limit)
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("xb") as file:
            async for piece in pieces:
                size += len(piece)
                if size > limit:
                    raise _too_large(size, limit)
                digest.update(piece)
                await asyncio.to_thread(file.write, piece)
    except OSError as exc:
        raise typed_os_error(exc, path) from exc
    if size == 0 or (total and size != total):
        why = f"{size} bytes came, {total or 'some'} were announced"
        raise InvalidInput("upload-cut", "the upload is not whole", why, "send it again")
    return "sha256:" + digest.hexdigest()


def _too_large(size: int, limit: int) -> TooLarge:
    return TooLarge("upload-too-large", "the upload is too large", f"{size} bytes, limit {limit}", "split the file")
