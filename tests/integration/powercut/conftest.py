from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.support.powercut.crashes import Crash
from tests.support.powercut.disk import write_tree

Crashed = Callable[[Crash], AbstractContextManager[Path]]
_MEMORY = Path("/dev/shm")  # the disk under the test has had its say; what is checked thousands of times need not sync


@pytest.fixture
def crashed(tmp_path: Path) -> Crashed:
    """A folder as a crash left it, for as long as a block lasts."""

    @contextmanager
    def made(crash: Crash) -> Iterator[Path]:
        place = Path(tempfile.mkdtemp(dir=_MEMORY if _MEMORY.is_dir() else tmp_path, prefix="powercut-"))
        try:
            folder = place / "disk"
            folder.mkdir()
            write_tree(crash.tree, folder)
            yield folder
        finally:
            shutil.rmtree(place)

    return made
