"""The GPU's own state while a recording runs: clocks, power, heat, throttling, other processes.

Sampled by NVML from the parent into `power.jsonl` beside the recording, so that a slow case can be
told from a throttled one afterwards. Without pynvml (extra `gpu`) or a driver there is no file.

Power comes from the energy counter, between two of its steps. Its readings in watts would not do:
since Ampere they are means over the last second. GPUs without the counter are older than that.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from dsa_profiler.session import GpuState

Device = int | str
"""A GPU by its number on the bus, or by its UUID as CUDA_VISIBLE_DEVICES may name it."""
FILE = "power.jsonl"
PERIOD_S = 0.05
IDLE_S = 1.0
"""How long the GPU is looked at before a worker begins."""
LEAD = 0.2
"""This share of a load comes before its power counts: clocks ramp, the counter lags."""
LEAST_S = 0.4
"""Two steps of the counter closer than this say too little: each is seen up to a period late."""
THROTTLING = {
    0x04: "power cap", 0x08: "hardware slowdown", 0x20: "thermal, by software",
    0x40: "thermal, by hardware", 0x80: "power brake",
}  # fmt: skip
"""Bits of NVML's throttle reasons that slow a kernel; idleness and a user's own caps do not."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a GPU. `energy_mj` counts from the driver's start; None where there is none."""

    at_s: float
    power_mw: int
    sm_mhz: int
    memory_mhz: int
    celsius: int
    throttle: int
    energy_mj: int | None
    processes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A recording's samples in numbers, those under load left out but of `energy_j`. `others` are
    compute processes beside the worker, told by number: a container sees foreign process ids.
    """

    idle_w: float | None
    median_w: float
    energy_j: float | None
    sm_mhz: tuple[int, int]
    celsius: int
    throttled: tuple[str, ...]
    others: int

    def as_json(self) -> dict[str, Any]:
        """As it stands in the manifest: what JSON gives back is the same."""
        out: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return out


def nvml() -> Any | None:
    """The NVML binding, ready; None where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no library, no driver, no permission: all mean no samples
        return None
    return pynvml


@contextmanager
def sampling(folder: Path, binding: Any | None, device: Device) -> Iterator[None]:
    """Sample `device` into the folder's file while the block runs, and for `IDLE_S` before it.

    A look that fails is left out: a sample is never worth a measurement.
    """
    if binding is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_loop, args=(folder, binding, device, over), daemon=True)
    thread.start()
    time.sleep(IDLE_S)
    try:
        yield
    finally:
        over.set()
        thread.join()


def _loop(folder: Path, binding: Any, device: Device, over: threading.Event) -> None:
    with (folder / FILE).open("a", encoding="utf-8") as file:
        while True:
            with suppress(Exception):
                file.write(json.dumps(asdict(look(binding, device))) + "\n")
            if over.wait(PERIOD_S):
                return


def look(binding: Any, device: Device) -> Sample:
    """One sample of a device."""
    named = isinstance(device, str)
    handle = (binding.nvmlDeviceGetHandleByUUID if named else binding.nvmlDeviceGetHandleByIndex)(
        device
    )
    energy = None
    with suppress(Exception):  # older GPUs have no counter
        energy = int(binding.nvmlDeviceGetTotalEnergyConsumption(handle))
    return Sample(
        at_s=time.monotonic(),
        power_mw=int(binding.nvmlDeviceGetPowerUsage(handle)),
        sm_mhz=int(binding.nvmlDeviceGetClockInfo(handle, binding.NVML_CLOCK_SM)),
        memory_mhz=int(binding.nvmlDeviceGetClockInfo(handle, binding.NVML_CLOCK_MEM)),
        celsius=int(binding.nvmlDeviceGetTemperature(handle, binding.NVML_TEMPERATURE_GPU)),
        throttle=int(binding.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        energy_mj=energy,
        processes=len(binding.nvmlDeviceGetComputeRunningProcesses(handle)),
    )


def read(folder: Path) -> list[Sample]:
    """The samples of a recording; a half-written last line is left out."""
    path = folder / FILE
    if not path.exists():
        return []
    whole, _, _ = path.read_text("utf-8").rpartition("\n")
    return [Sample(**json.loads(line)) for line in whole.splitlines()]


def summary(samples: Iterable[Sample], ends: Iterable[Mapping[str, Any]] = ()) -> Summary | None:
    """The samples in numbers; None for none. `ends` are the worker's `end` events."""
    found = list(samples)
    if not found:
        return None
    before = idle(found)
    loads = [(load[0], load[1]) for end in ends if (load := end.get("load"))]
    busy = [
        s
        for s in found[len(before) :]
        if not any(begin <= s.at_s <= end + PERIOD_S for begin, end in loads)
    ] or found
    counters = [s.energy_mj for s in found if s.energy_mj is not None]
    return Summary(
        idle_w=watts(before),
        median_w=median(s.power_mw for s in busy) / 1000,
        energy_j=(counters[-1] - counters[0]) / 1000 if len(counters) > 1 else None,
        sm_mhz=(min(s.sm_mhz for s in busy), max(s.sm_mhz for s in busy)),
        celsius=max(s.celsius for s in busy),
        throttled=_throttled(busy),
        others=max(*(s.processes for s in before), *(s.processes - 1 for s in busy)),
    )


def state(samples: Iterable[Sample], end: Mapping[str, Any]) -> GpuState | None:
    """The GPU while the case of this `end` event was measured; None without a look at it.

    Timed iterations shorter than a period are seen by the first look after them.
    """
    found, timed, load = list(samples), end.get("timed_s"), end.get("load")
    looks = _between(found, timed[0], timed[1] + 2 * PERIOD_S) if timed else []
    if not looks:
        return None
    clocks = [s.sm_mhz for s in looks]
    known = GpuState(
        sm_mhz=(min(clocks), round(fmean(clocks), 1), max(clocks)),
        memory_mhz=min(s.memory_mhz for s in looks),
        celsius=max(s.celsius for s in looks),
        throttled=_throttled(looks),
    )
    return replace(known, **_power(found, *load)) if load else known


def _power(samples: list[Sample], begin: float, end: float, count: int) -> dict[str, Any]:
    """The fields of `GpuState` that come from a load of `count` iterations."""
    looks = _between(samples, begin + LEAD * (end - begin), end)
    drawn = watts(looks)
    if drawn is None:
        steady = (1 - LEAD) * (end - begin)
        return {
            "why": f"NVML's energy counter could not be followed over the {steady:.2f} s of load"
        }
    return {
        "power_w": drawn,
        "idle_w": watts(idle(samples)),
        "load_ns": round((end - begin) * 1e9 / count, 1),
        "load_sm_mhz": round(fmean(s.sm_mhz for s in looks), 1),
    }


def watts(samples: list[Sample]) -> float | None:
    """Mean power of consecutive samples, by the counter where there is one; None where it moved
    too seldom to tell.
    """
    counted = [s for s in samples if s.energy_mj is not None]
    if samples and not counted:
        return round(fmean(s.power_mw for s in samples) / 1000, 2)
    steps = [b for a, b in pairwise(counted) if b.energy_mj != a.energy_mj]
    if not steps or steps[-1].at_s - steps[0].at_s < LEAST_S:
        return None
    used = (steps[-1].energy_mj or 0) - (steps[0].energy_mj or 0)
    return round(used / 1000 / (steps[-1].at_s - steps[0].at_s), 2)


def idle(samples: list[Sample]) -> list[Sample]:
    """Those from before the worker."""
    return _between(samples, samples[0].at_s, samples[0].at_s + IDLE_S) if samples else []


def _between(samples: list[Sample], begin: float, end: float) -> list[Sample]:
    return [s for s in samples if begin <= s.at_s <= end]


def _throttled(samples: list[Sample]) -> tuple[str, ...]:
    bits = {bit for s in samples for bit in THROTTLING if s.throttle & bit}
    return tuple(THROTTLING[bit] for bit in sorted(bits))
