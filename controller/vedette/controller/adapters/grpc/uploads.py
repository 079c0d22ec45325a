"""Uploads of admins: a header, then the pieces of a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol, TypeVar

from vedette.controller.domain.errors import InvalidInput

H_co = TypeVar("H_co", covariant=True)


class _Upload(Protocol[H_co]):
    """A message of an upload: the first carries the header, the others data."""

    @property
    def header(self) -> H_co: ...

    @property
    def data(self) -> bytes: ...

    def WhichOneof(self, oneof_group: Any) -> str | None: ...  # noqa: N802


async def upload(requests: AsyncIterator[_Upload[H_co]]) -> tuple[H_co, AsyncIterator[bytes]]:
    """Return the header of an upload and the pieces behind it, which are read as they are taken.

    Raises:
        InvalidInput: The stream does not begin with a header.
    """
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("body") != "header":
        raise InvalidInput("upload-headless", "the upload does not begin with its header")
    return first.header, _pieces(requests)


async def _pieces(requests: AsyncIterator[_Upload[H_co]]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("body") != "data":
            raise InvalidInput("upload-headless", "a second header stands inside the upload")
        yield request.data
