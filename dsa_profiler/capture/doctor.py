"""What this machine can record, found out by trying: each part by name, with its cure.

Nothing here loads torch or CUDA into this process; what needs them is asked in a child.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dsa_profiler.capture import nsys, power, probe
from dsa_profiler.errors import DsaError

State = Literal["ok", "absent", "broken"]
NVTX = "nvtx==0.2.10"
LEAST_FREE = 5 << 30
CHILD_TIMEOUT_S = 180
MARKS = """
import nvtx
with nvtx.annotate("dsa:case generation-b1-s1-h1-bfloat16"):
    with nvtx.annotate("dsa:iter 0"):
        pass
"""
"""The least program whose marks must arrive."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor: `absent` can be lived without, `broken` wants its cure."""

    name: str
    state: State
    what: str
    cure: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


Marked = Callable[[Path], int]
"""Whole iteration marks in a trace file; handed in, because capture reads no traces."""


def checks(folder: Path, marked: Marked) -> Iterator[Check]:
    """Every check in the order of the report, each as soon as it is known.

    folder  where sessions would be written.
    """
    yield _python()
    yield _gpu()
    yield _nvml()
    yield _torch()
    found = _nsys()
    yield found[0]
    yield _arrives(found[1], marked)
    yield _workload()
    yield _trtllm()
    yield _kernels()
    yield _disk(folder)


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} at {sys.prefix}")


def _gpu() -> Check:
    gpus = probe.gpus()
    if not gpus:
        cure = "run on a GPU node for GPU times; a CPU gives host times"
        return Check("gpu", "absent", "none that nvidia-smi shows", cure)
    first = gpus[0]
    what = f"{len(gpus)} x {first.name}, SM {first.sm}, driver {first.driver}"
    if first.sm < 90:
        cure = "use Hopper or newer for DSA's own kernels; the reference workload runs here"
        return Check("gpu", "absent", what, cure)
    return Check("gpu", "ok", what)


def _nvml() -> Check:
    if power.nvml() is not None:
        return Check("nvml", "ok", "samples clocks and power")
    known = probe.has_module("pynvml")
    what = "no driver that it can ask" if known else "nvidia-ml-py is not installed"
    cure = "pip install 'dsa-profiler[gpu]' on a GPU node, for clocks and power"
    return Check("nvml", "absent", what, cure)


def _torch() -> Check:
    if not probe.has_module("torch"):
        cure = "pip install 'dsa-profiler[reference]', or use a container that brings torch"
        return Check("torch", "absent", "not installed", cure)
    code = "import torch; print(torch.__version__, torch.cuda.is_available())"
    said, error = _ask([sys.executable, "-c", code])
    if error:
        return Check("torch", "broken", error, "reinstall torch for this Python and driver")
    version, _, cuda = said.partition(" ")
    if cuda != "True" and probe.gpus():
        cure = "use a torch build for this driver's CUDA"
        return Check("torch", "broken", f"{version} sees no GPU, nvidia-smi does", cure)
    return Check("torch", "ok", f"{version}, {'CUDA' if cuda == 'True' else 'CPU'}")


def _nsys() -> tuple[Check, nsys.Nsys | None]:
    try:
        found = nsys.find()
        fault = nsys.no_reports(found)
    except DsaError as error:
        state: State = "absent" if error.slug == "nsys-missing" else "broken"
        return Check("nsys", state, error.what, error.cure), None
    if fault is not None:
        return Check("nsys", "broken", fault.what, fault.cure), None
    return Check("nsys", "ok", f"{found.version} at {found.path}"), found


def _arrives(found: nsys.Nsys | None, marked: Marked) -> Check:
    """Record a program of two marks, and look for them in the trace."""
    name = "marks arrive"
    if found is None:
        return Check(name, "absent", "not tried: no nsys", "`--tracer torch` needs none")
    if not probe.has_module("nvtx"):
        cure = f"pip install {NVTX}"
        return Check(name, "absent", "not tried: the package nvtx is not installed", cure)
    with tempfile.TemporaryDirectory(prefix="dsa-profiler-doctor-") as place:
        folder = Path(place)
        tracer = nsys.NsysTracer(found, cuda=False)
        command = tracer.command([sys.executable, "-c", MARKS], folder)
        _, error = _ask(command, tracer.environment(folder))
        if error:
            return Check(name, "broken", f"nsys recorded nothing: {error}", "see `nsys status -e`")
        try:
            trace = tracer.collect(folder)
            count = marked(trace) if trace else 0
        except DsaError as fault:
            return Check(name, "broken", fault.what, fault.cure)
    if not count:
        return Check(name, "broken", "the recording holds no mark", nsys.NVTX_CURE)
    return Check(name, "ok", "a mark of a recorded child is in its trace")


def _workload() -> Check:
    """What `--workload auto` would take here; better ones are refused with their reasons."""
    command = [sys.executable, "-m", "dsa_profiler.workloads.choose"]
    said, error = _ask(command)
    try:
        answer = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        return Check("workload", "broken", error or "the chooser did not answer", "report it")
    return Check("workload", "ok", f"auto is {answer['workload']} ({answer['why']})")


def _trtllm() -> Check:
    answer = contract()
    if answer is None:
        cure = "run inside NVIDIA's TensorRT-LLM container for --workload trtllm"
        return Check("tensorrt_llm", "absent", "not installed", cure)
    if not answer.get("ok"):
        return Check("tensorrt_llm", "broken", str(answer["what"]), str(answer["cure"]))
    drift: dict[str, list[str]] = answer["drift"]
    era = min(drift, key=lambda name: len(drift[name]), default="")
    what = f"{answer['version']}, layout of {era}, {len(drift.get(era, []))} differences"
    return Check("tensorrt_llm", "ok", what)


def contract() -> dict[str, Any] | None:
    """The probe of TensorRT-LLM, from a child; None where it is not installed."""
    if not probe.has_module("tensorrt_llm"):
        return None
    said, error = _ask([sys.executable, "-m", "dsa_profiler.workloads.trtllm_probe"])
    try:
        answer = json.loads(said[said.index("{") :])
    except ValueError:
        return {"ok": False, "what": error or "its probe did not answer", "cure": "report it"}
    return dict(answer)


def _kernels() -> Check:
    """The package's calls against the recorded ones, in a child: loading them loads torch."""
    found = probe.version("vllm")
    if found is None and "DSA_KERNELS_PATH" not in os.environ:
        cure = "install vllm==0.26.0 beside torch==2.11.0 for --workload kernels"
        return Check("kernels", "absent", "vllm is not installed", cure)
    said, error = _ask([sys.executable, "-m", "dsa_profiler.workloads.kernels_source"])
    try:
        answer = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        answer = {"what": error or "their probe did not answer", "cure": "report it"}
    if "what" in answer:
        return Check("kernels", "absent", answer["what"], answer["cure"])
    changed = f"; not used: {answer['kernels_changed']}" if "kernels_changed" in answer else ""
    return Check("kernels", "ok", f"vllm {answer['kernels_version']}, calls as recorded{changed}")


def _disk(folder: Path) -> Check:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    what = f"{free / (1 << 30):.0f} GiB free"
    if free < LEAST_FREE:
        return Check("disk", "broken", what, "free some space, or give --output elsewhere")
    return Check("disk", "ok", what)


def _ask(command: list[str], environment: dict[str, str] | None = None) -> tuple[str, str]:
    """(stdout, error) of a child; the error is the last line it said, empty when it went well."""
    variables = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, env=variables
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error).splitlines()[0]
    said = (done.stderr or done.stdout).strip().splitlines()
    if done.returncode:
        return done.stdout.strip(), said[-1][:200] if said else f"exit code {done.returncode}"
    return done.stdout.strip(), ""
