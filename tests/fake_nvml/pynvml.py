"""NVML's Python binding for one GPU that is not there; as strict as the real one.

It draws 100 W, and 600 W while this process has a child. Like a Hopper it tells power as a mean
over the last second, and moves its energy counter ten times a second.
"""

import os
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

NVML_CLOCK_GRAPHICS, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 1, 2
NVML_TEMPERATURE_GPU = 0
UUID = "GPU-8f1d4f0e-1b7f-4f1e-9a52-2d1a2f8f2c11"
IDLE_W, BUSY_W, STEP_S = 100.0, 600.0, 0.1


class NVMLError(Exception):
    """What every call raises, by its number."""


class _Gpu:
    def __init__(self):
        self.now = self.told_at = time.monotonic()
        self.millijoules = self.told = 5e9
        self.drawn = deque([(self.now, IDLE_W)])

    def look(self):
        now = time.monotonic()
        watts = BUSY_W if _children() else IDLE_W
        self.millijoules += watts * (now - self.now) * 1e3
        self.now = now
        self.drawn.append((now, watts))
        while self.drawn[0][0] < now - 1.0:
            self.drawn.popleft()
        if now - self.told_at >= STEP_S:
            self.told_at, self.told = now, self.millijoules


_gpu = None


def _children():
    return any(p.read_text() for p in Path(f"/proc/{os.getpid()}/task").glob("*/children"))


def _looked(handle):
    if _gpu is None:
        raise NVMLError(1)  # uninitialized
    if handle is not _gpu:
        raise NVMLError(2)  # invalid argument
    handle.look()
    return handle


def nvmlInit():  # noqa: N802
    global _gpu
    _gpu = _Gpu()


def nvmlDeviceGetHandleByIndex(index):  # noqa: N802
    if _gpu is None:
        raise NVMLError(1)
    if type(index) is not int or index != 0:
        raise NVMLError(2)
    return _gpu


def nvmlDeviceGetHandleByUUID(uuid):  # noqa: N802
    if _gpu is None:
        raise NVMLError(1)
    if uuid != UUID:
        raise NVMLError(6)  # not found
    return _gpu


def nvmlDeviceGetPowerUsage(handle):  # noqa: N802
    drawn = _looked(handle).drawn
    return round(1000 * sum(watts for _, watts in drawn) / len(drawn))


def nvmlDeviceGetTotalEnergyConsumption(handle):  # noqa: N802
    return int(_looked(handle).told)


def nvmlDeviceGetClockInfo(handle, type):  # noqa: N802
    _looked(handle)
    return {NVML_CLOCK_SM: 1980 if _children() else 345, NVML_CLOCK_MEM: 3201}[type]


def nvmlDeviceGetTemperature(handle, sensor):  # noqa: N802
    _looked(handle)
    if sensor != NVML_TEMPERATURE_GPU:
        raise NVMLError(2)
    return 61


def nvmlDeviceGetCurrentClocksThrottleReasons(handle):  # noqa: N802
    _looked(handle)
    return 0x04 if _children() else 0x01


def nvmlDeviceGetComputeRunningProcesses(handle):  # noqa: N802
    _looked(handle)
    return [SimpleNamespace(pid=1, usedGpuMemory=None)] if _children() else []
