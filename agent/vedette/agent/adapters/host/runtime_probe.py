"""What of onnxruntime and the GPU's driver works here, printed as one JSON object by a process of its own.

The agent's main process, and `doctor`, never load a runtime: loading one may take hundreds of megabytes, or crash.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NODES = ("nvidia0", "nvidiactl", "nvidia-uvm", "nvhost-gpu", "nvmap")  # of cards, and of Jetson boards
_MOST_CHARACTERS = 300


def found() -> dict[str, Any]:
    """Return version, providers and error of onnxruntime, the GPUs and their device nodes."""
    from vedette.agent.adapters.host.gpus import gpus

    nodes = list(_gpu_nodes())
    return {
        **_onnxruntime(),
        "gpus": [f"{gpu.name}, compute {gpu.compute_capability}, driver {gpu.driver}" for gpu in gpus()],
        "gpu_nodes": nodes,
        "closed_nodes": [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)],
    }


def _onnxruntime() -> dict[str, Any]:
    try:
        runtime = importlib.import_module("onnxruntime")
        return {"version": str(runtime.__version__), "providers": list(runtime.get_available_providers()), "error": ""}
    except Exception as exc:  # a broken library fails as it likes; what it says is the finding
        return {"version": "", "providers": [], "error": f"{type(exc).__name__}: {exc}"[:_MOST_CHARACTERS]}


def _gpu_nodes() -> Iterator[str]:
    return (str(path) for name in _NODES if (path := Path("/dev") / name).exists())


if __name__ == "__main__":
    sys.stdout.write(json.dumps(found()))
