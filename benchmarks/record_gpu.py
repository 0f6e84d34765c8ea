"""The whole recording on a GPU machine, unattended and without network (docs/gpu.md).

    python benchmarks/record_gpu.py --output recording --kernels-path DIR

Sessions go to OUTPUT/traces and OUTPUT/reports, a log a step to OUTPUT/logs, and what became of
each step to OUTPUT/record.json. The most valuable steps come first; at the end of --minutes the
running one is interrupted as by Ctrl-C, which keeps its finished cases, and the rest is left out.
Every case gets its untraced median beside the trace, from the worker itself.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ANCHORS = (1024, 2040, 2047, 2048, 2049, 2100, 3000, 4096)
"""Keys of the decode anchors: both sides of the 2,048 that top-k keeps."""
ANCHOR_HEADS = "16,64,128"
STAND_IN = Path(__file__).with_name("server_stand_in.py")
GRACE_S = 45.0
NSYS_CHECK_S = 60.0
CHECK_SESSION = "nsys-check"


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the recording."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a step. `status` is the exit code, None when it was not begun."""

    name: str
    status: int | None
    seconds: float
    note: str = ""


def run_step(name: str, args: argparse.Namespace, tracer: str, *more: str) -> Step:
    """One `run` of the command line, in a session named like the step."""
    command = [
        sys.executable, "-m", "dsa_profiler", "run", "--name", name, "--output", str(args.output),
        "--workload", args.workload, "--model", args.model, "--device", args.device,
        "--tracer", tracer, "--warmup", str(args.warmup), "--iterations", str(args.iterations),
    ]  # fmt: skip
    if args.kernels_path:
        command += ["--kernels-path", args.kernels_path]
    return Step(name, (*command, *more))


def plan(args: argparse.Namespace, tracer: str) -> list[Step]:
    """All steps, most valuable first."""
    keys = ",".join(str(kv - 1) for kv in ANCHORS)
    anchors = (
        "--mode", "generation", "--preset", "standard", "--batch-sizes", "64",
        "--num-heads", ANCHOR_HEADS, "--seq-lens", keys,
    )  # fmt: skip
    grid = ("--preset", "standard", "--power", "0")  # a second of load a case is too dear here
    steps = [
        run_step("smoke", args, tracer, "--preset", "smoke"),
        run_step("anchors", args, tracer, *anchors),
        run_step("generation", args, tracer, *grid, "--mode", "generation"),
        run_step("context", args, tracer, *grid, "--mode", "context"),
        stand_in(args, tracer),
        run_step("anchors-graph", args, tracer, *anchors, "--cuda-graph"),
    ]
    if args.workload == "kernels":
        steps.append(run_step("anchors-fp8", args, tracer, *anchors, "--dtypes", "fp8"))
    only = [name for name in args.only.split(",") if name]
    return [step for step in steps if not only or step.name in only]


def stand_in(args: argparse.Namespace, tracer: str) -> Step:
    """The stand-in for a server, in a process of its own."""
    raw = args.output / "standin" / "raw"
    worker = [
        sys.executable, str(STAND_IN), "--workload", args.workload, "--model", args.model,
        "--device", args.device, "--tracer", tracer, "--layers", str(args.layers),
        "--output", f"{raw}.json.gz",
    ]  # fmt: skip
    if tracer != "nsys":
        return Step("standin", tuple(worker))
    profile = [
        args.nsys, "profile", "--trace=cuda,nvtx", "--sample=none", "--cpuctxsw=none",
        "--cuda-graph-trace=node", "--capture-range=cudaProfilerApi", "--capture-range-end=stop",
        "--kill=none", "--force-overwrite=true", f"--output={raw}",
    ]  # fmt: skip
    return Step("standin", (*profile, *worker))


def perform(step: Step, folder: Path, limit_s: float) -> Done:
    """Run a step to its end or for `limit_s`; interrupted, it keeps what is finished."""
    began = time.monotonic()
    with (folder / f"{step.name}.log").open("w", encoding="utf-8") as log:
        log.write(" ".join(step.command) + "\n")
        log.flush()
        try:
            process = subprocess.Popen(
                step.command, stdout=log, stderr=subprocess.STDOUT, env=environment()
            )
        except OSError as error:
            return Done(step.name, 127, 0.0, str(error))
        note = ""
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            note = "interrupted at the end of the time"
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                note = "killed: it did not stop when interrupted"
                process.kill()
                process.wait()
    return Done(step.name, process.returncode, round(time.monotonic() - began, 1), note)


def environment() -> dict[str, str]:
    """This checkout comes first, so that nothing needs to be installed for it."""
    paths = [str(STAND_IN.parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def tracer_of(args: argparse.Namespace, logs: Path) -> tuple[str, str]:
    """Nsys if a recording of one case brings kernels within a minute, else torch.profiler."""
    if args.tracer != "auto":
        return args.tracer, "asked for"
    name = CHECK_SESSION
    sizes = ("--mode", "generation", "--batch-sizes", "1", "--seq-lens", "3", "--num-heads", "16")
    check = run_step(name, args, "nsys", "--preset", "smoke", *sizes)
    done = perform(check, logs, NSYS_CHECK_S)
    if done.status:
        return "torch", f"nsys records nothing here (exit {done.status}, see logs/{name}.log)"
    kernels = kernel_count(args.output / "traces" / name)
    if not kernels:
        return "torch", "nsys sees no GPU kernels here"
    return "nsys", f"nsys recorded {kernels} kernels"


def kernel_count(session: Path) -> int:
    """GPU kernels in a session, as `analyze` counts them."""
    command = (sys.executable, "-m", "dsa_profiler", "analyze", str(session), "--json")
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    try:
        return int(json.loads(done.stdout)["trace"]["kernels"])
    except (ValueError, KeyError, TypeError):
        return 0


def describe_machine(folder: Path) -> None:
    """Clocks, driver and power limits, as nvidia-smi tells them; nothing that names the machine."""
    query = ("nvidia-smi", "-q", "-d", "CLOCK,POWER,PERFORMANCE")
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        said = f"{error}\n"
    (folder / "machine.txt").write_text(said, "utf-8")


def record(args: argparse.Namespace) -> list[Done]:
    logs = args.output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    (args.output / "standin").mkdir(exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    describe_machine(logs)
    tracer, why = tracer_of(args, logs)
    print(f"tracer {tracer}: {why}", flush=True)
    done: list[Done] = []
    for step in plan(args, tracer):
        left = deadline - time.monotonic() - GRACE_S
        last = perform(step, logs, left) if left > 0 else Done(step.name, None, 0.0, "no time")
        print(f"{last.name}: exit {last.status}, {last.seconds} s {last.note}", flush=True)
        done.append(last)
        summary = {"tracer": tracer, "why": why, "steps": [asdict(d) for d in done]}
        (args.output / "record.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    return done


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--output", type=Path, default=Path("recording"))
    made.add_argument("--minutes", type=float, default=10.0, help="for everything")
    made.add_argument("--workload", default="kernels")
    made.add_argument("--kernels-path", default="", help="unpacked wheel or bundle")
    made.add_argument("--model", default="deepseek-v3.2")
    made.add_argument("--device", default="cuda")
    made.add_argument("--tracer", default="auto", choices=("auto", "nsys", "torch"))
    made.add_argument("--nsys", default="nsys", help="for the stand-in")
    made.add_argument("--warmup", type=int, default=3)
    made.add_argument("--iterations", type=int, default=5)
    made.add_argument("--layers", type=int, default=61, help="of the stand-in")
    made.add_argument("--only", default="", metavar="STEP,STEP")
    made.add_argument("--dry-run", action="store_true", help="print the commands")
    return made


def main() -> int:
    args = parser().parse_args()
    if args.dry_run:
        for step in plan(args, "torch" if args.tracer == "auto" else args.tracer):
            print(" ".join(step.command))
        return 0
    return 0 if all(done.status == 0 for done in record(args)) else 5


if __name__ == "__main__":
    sys.exit(main())
