"""Descriptors of bytes in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def memory_file(data: bytes) -> Iterator[int]:
    """Yield the descriptor of a memfd that holds the bytes; closed at the end."""
    descriptor = os.memfd_create("test")
    try:
        with open(descriptor, "wb", closefd=False) as copy:
            copy.write(data)
        yield descriptor
    finally:
        os.close(descriptor)
