"""What the worker needs of torch: the device, its clock, its memory, and the tracer's window."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch

from dsa_profiler.errors import EnvironmentFault
from dsa_profiler.workloads.instrument import StageMark, Tracer, unmarked
from dsa_profiler.workloads.seam import Output, Step

_cuda: Any = torch.cuda  # partly without annotations


def device_of(name: str) -> torch.device:
    """`auto` is CUDA where there is any, else the CPU."""
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise EnvironmentFault(
            "cuda-missing",
            f"torch {torch.__version__} sees no CUDA device",
            "run where there is a GPU and a torch built for its driver, or use --device cpu",
        )
    return torch.device("cuda" if cuda and name != "cpu" else "cpu")


def describe(device: torch.device) -> dict[str, Any]:
    """The machine as far as it bears on the numbers."""
    about: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cpu":
        waiting = os.environ.get("OMP_WAIT_POLICY", "default")
        threads = torch.get_num_threads()
        return {**about, "device_name": _cpu_name(), "threads": threads, "omp_wait_policy": waiting}
    properties = torch.cuda.get_device_properties(device)
    return {
        **about,
        "cuda": torch.version.cuda,
        "device_name": properties.name,
        "sm": properties.major * 10 + properties.minor,
        "sm_count": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def elapsed_ns(step: Callable[[], Output], device: torch.device) -> tuple[float, Output]:
    """One untraced run, between two CUDA events on a GPU, by the host's clock on a CPU."""
    if device.type == "cpu":
        begin = perf_counter_ns()
        output = step()
        return float(perf_counter_ns() - begin), output
    first, last = (_cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    output = step()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) * 1e6, output


def captured(step: Step, mark: StageMark = unmarked) -> Callable[[], Output]:
    """The step as a CUDA graph, captured now under `mark`: what comes back replays it.

    The marks of a graph's stages exist while it is captured and never again, so a tracer must be
    recording here. The output tensor is the graph's own and is overwritten by each replay. One
    eager run goes before, so that nothing is compiled or planned for the first time in the capture.
    """
    step(unmarked)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step(mark)

    def replay() -> Output:
        graph.replay()
        return output

    return replay


def release() -> None:
    """Hand back what a finished case held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Memory ran out, on the GPU or on the host: torch tells the host's by its text alone."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text or "CUDA out of memory" in text
    )


def is_poisoned(device: torch.device) -> bool:
    """Whether a fault (an illegal address, an assertion on the device) is there to stay: CUDA then
    answers every call of this process with it.
    """
    try:
        synchronise(device)
    except RuntimeError:
        return True
    return False


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak resident size


def peak_bytes(device: torch.device) -> int | None:
    """Most memory held since `reset_peak`: the allocator's on a GPU, the process's on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    try:
        status = Path("/proc/self/status").read_text("ascii", "replace")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


@contextmanager
def window(tracer: Tracer, device: torch.device, raw_trace: Path) -> Iterator[None]:
    """What the tracer records. There is one window a process: nsys takes a single capture range,
    torch.profiler writes a single file.
    """
    if tracer == "torch":
        with _torch_window(device, raw_trace):
            yield
    elif tracer == "nsys" and device.type == "cuda":
        _cuda.profiler.start()
        try:
            yield
        finally:
            synchronise(device)
            _cuda.profiler.stop()
    else:
        yield


@contextmanager
def _torch_window(device: torch.device, raw_trace: Path) -> Iterator[None]:
    """torch.profiler's file appears whole or not at all, also when the block is broken off."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    profiler = profile(activities=activities)
    profiler.start()
    try:
        yield
    finally:
        synchronise(device)
        profiler.stop()
        part = raw_trace.with_name("part." + raw_trace.name)
        try:
            profiler.export_chrome_trace(str(part))
            part.replace(raw_trace)
        finally:
            part.unlink(missing_ok=True)
