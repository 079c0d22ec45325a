"""Small C libraries that a program of ours is run under (LD_PRELOAD), compiled where they are used."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_OPTIONS = ("-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


def compiled(source: Path, library: Path, does: str) -> Path:
    """Return the library, compiled; the test that asks is skipped where there is no C compiler.

    Args:
        source: One C file.
        library: What becomes of it.
        does: What the shim does, for the reason of the skip: "records writes".
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip(f"no C compiler: the shim that {does} cannot be built (apt install gcc libc6-dev)")
    include = f"-I{Path(__file__).parent}"
    subprocess.run([compiler, *_OPTIONS, include, "-o", str(library), str(source), "-ldl"], check=True)
    return library
