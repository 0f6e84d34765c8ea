"""The GPU's own state while a recording runs: clocks, power, heat, throttling, other processes.

Sampled by NVML from the parent into `power.jsonl` beside the recording, so that a slow case can be
told from a throttled one afterwards. Without pynvml (extra `gpu`) or a driver there is no file.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

FILE = "power.jsonl"
PERIOD_S = 0.1
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
    """A recording's samples in numbers; `idle_w` is the draw before the worker began. `others` are
    compute processes beside the worker, told by number: a container sees foreign process ids.
    """

    idle_w: float
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
def sampling(folder: Path, binding: Any | None, device: int) -> Iterator[None]:
    """Sample `device` into the folder's file while the block runs; the first look is the idle one.

    A look that fails is left out: a sample is never worth a measurement.
    """
    if binding is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_loop, args=(folder, binding, device, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _loop(folder: Path, binding: Any, device: int, over: threading.Event) -> None:
    with (folder / FILE).open("a", encoding="utf-8") as file:
        while True:
            with suppress(Exception):
                file.write(json.dumps(asdict(look(binding, device))) + "\n")
            if over.wait(PERIOD_S):
                return


def look(binding: Any, device: int) -> Sample:
    """One sample of a device."""
    handle = binding.nvmlDeviceGetHandleByIndex(device)
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


def summary(samples: Iterable[Sample]) -> Summary | None:
    """The samples in numbers; None for none."""
    found = list(samples)
    if not found:
        return None
    busy = found[1:] or found
    counters = [s.energy_mj for s in found if s.energy_mj is not None]
    bits = {bit for s in busy for bit in THROTTLING if s.throttle & bit}
    return Summary(
        idle_w=found[0].power_mw / 1000,
        median_w=median(s.power_mw for s in busy) / 1000,
        energy_j=(counters[-1] - counters[0]) / 1000 if len(counters) > 1 else None,
        sm_mhz=(min(s.sm_mhz for s in busy), max(s.sm_mhz for s in busy)),
        celsius=max(s.celsius for s in busy),
        throttled=tuple(THROTTLING[bit] for bit in sorted(bits)),
        others=max(found[0].processes, *(s.processes - 1 for s in busy)),
    )
