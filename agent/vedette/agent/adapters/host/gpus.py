"""The GPUs of this appliance, asked of the driver's management library; none when there is no driver.

Source: NVIDIA Management Library API reference (nvmlDeviceGetCudaComputeCapability and its neighbours).
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from vedette.wire.values import Gpu

logger = logging.getLogger(__name__)
_LIBRARY = "libnvidia-ml.so.1"
_TEXT_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
_MOST = 64


class _NvmlFailed(Exception):
    pass


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs the driver shows; empty with no driver or one that fails."""
    try:
        with _nvml() as nvml:
            count = ctypes.c_uint()
            _check(nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
            return tuple(_gpu(nvml, index) for index in range(min(count.value, _MOST)))
    except (OSError, AttributeError, _NvmlFailed) as exc:
        logger.debug("no GPU facts: %s", exc)
        return ()


@contextmanager
def _nvml() -> Iterator[ctypes.CDLL]:
    nvml = ctypes.CDLL(_LIBRARY)
    _check(nvml.nvmlInit_v2())
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: ctypes.CDLL, index: int) -> Gpu:
    device, name, driver = ctypes.c_void_p(), ctypes.create_string_buffer(_TEXT_BYTES), ctypes.create_string_buffer(96)
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), _Memory()
    _check(nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)))
    _check(nvml.nvmlDeviceGetName(device, name, _TEXT_BYTES))
    _check(nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)))
    _check(nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)))
    _check(nvml.nvmlSystemGetDriverVersion(driver, 96))
    return Gpu(
        name=name.value.decode("utf-8", "replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=memory.total,
        driver=driver.value.decode("utf-8", "replace"),
    )


def _check(status: int) -> None:
    if status != 0:
        raise _NvmlFailed(f"NVML answered {status}")
