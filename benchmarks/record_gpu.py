"""The whole recording on a GPU machine, unattended and without network (docs/gpu.md).

    python benchmarks/record_gpu.py --output recording --kernels-path DIR --pack OUT

Needs Python with torch, numpy and rich beside the kernels; nothing has to be installed. Sessions go
to OUTPUT/traces, a log a step to OUTPUT/logs, what became of each step to OUTPUT/record.json, and a
table to the end of what is printed. The most valuable steps come first; at the end of --minutes the
running one is interrupted as by Ctrl-C, which keeps its finished cases, and the rest is left out.
Every case gets its untraced median beside the trace, from the worker itself. With --pack each
finished step is at once in OUT/recording.tar.xz.*, in parts for machines that give little back:

    cat recording.tar.xz.* | xz -dc | tar xi
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dsa_profiler import session
from dsa_profiler.errors import DsaError

ANCHORS = (1024, 2040, 2047, 2048, 2049, 2100, 3000, 4096)
"""Keys of the decode anchors: both sides of the 2,048 that top-k keeps."""
ANCHOR_HEADS = "16,64,128"
STAND_IN = Path(__file__).resolve().with_name("server_stand_in.py")
ROOT = STAND_IN.parents[1]
GRACE_S = 45.0
NSYS_CHECK_S = 60.0
CHECK_SESSION = "nsys-check"
PROOF_S = 150.0
CHUNK_CASES = 64
"""Cases of a process. More than `run` takes: a process that starts costs ten seconds here."""
PART_BYTES, PARTS = 15 << 20, 4
"""Of what --pack writes: files of at most 15 MiB, and at most four."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the recording."""

    name: str
    command: tuple[str, ...]
    limit_s: float = float("inf")


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
        "--chunk-cases", str(CHUNK_CASES), "--record-only",
        "--power", "0",  # a second of load a case is too dear here
    ]  # fmt: skip
    if args.kernels_path:
        command += ["--kernels-path", args.kernels_path]
    if tracer == "nsys":
        command += ["--nsys", args.nsys]
    return Step(name, (*command, *more))


def plan(args: argparse.Namespace, tracer: str) -> list[Step]:
    """All steps, most valuable first."""
    keys = ",".join(str(kv - 1) for kv in ANCHORS)
    anchors = (
        "--mode", "generation", "--preset", "standard", "--batch-sizes", "64",
        "--num-heads", ANCHOR_HEADS, "--seq-lens", keys,
    )  # fmt: skip
    grid = ("--preset", "standard", "--mode")
    steps = [
        run_step("smoke", args, tracer, "--preset", "smoke"),
        run_step("anchors", args, tracer, *anchors, "--power", "0.5"),
        *proof(args),
        run_step("generation", args, tracer, *grid, "generation"),
        run_step("context", args, tracer, *grid, "context"),
        stand_in(args, tracer),
        run_step("anchors-graph", args, tracer, *anchors, "--cuda-graph"),
    ]
    if args.workload == "kernels":
        steps.append(run_step("anchors-fp8", args, tracer, *anchors, "--dtypes", "fp8"))
    steps.append(run_step("generation-graph", args, tracer, *grid, "generation", "--cuda-graph"))
    only = [name for name in args.only.split(",") if name]
    return [step for step in steps if not only or step.name in only]


def proof(args: argparse.Namespace) -> list[Step]:
    """The kernels against plain PyTorch, where there are kernels and pytest."""
    if args.workload != "kernels" or args.device == "cpu":
        return []
    pytest = ("-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-q", "-rs", "-m", "gpu")
    tests = str(ROOT / "tests" / "test_kernels_gpu.py")
    return [Step("proof", (sys.executable, *pytest, tests), PROOF_S)]


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


def perform(step: Step, folder: Path, limit_s: float, kernels_path: str = "") -> Done:
    """Run a step to its end or for `limit_s`; interrupted, it keeps what is finished."""
    began = time.monotonic()
    with (folder / f"{step.name}.log").open("w", encoding="utf-8") as log:
        log.write(" ".join(step.command) + "\n")
        log.flush()
        try:
            process = subprocess.Popen(
                step.command, stdout=log, stderr=subprocess.STDOUT, env=environment(kernels_path)
            )
        except OSError as error:
            return Done(step.name, 127, 0.0, str(error))
        note = ""
        try:
            process.wait(min(limit_s, step.limit_s))
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


def environment(kernels_path: str = "") -> dict[str, str]:
    """This checkout comes first, so that nothing needs to be installed for it."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    more = {"DSA_KERNELS_PATH": str(Path(kernels_path).absolute())} if kernels_path else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


def tracer_of(args: argparse.Namespace, logs: Path) -> tuple[str, str]:
    """Nsys if a recording of one case brings kernels within a minute, else torch.profiler."""
    if args.tracer != "auto":
        return args.tracer, "asked for"
    if shutil.which(args.nsys) is None:
        return "torch", f"no {args.nsys} here"
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


def describe_kernels(args: argparse.Namespace) -> str:
    """What the package's probe says of its calls, in a line."""
    if args.workload != "kernels":
        return "not asked"
    command = (sys.executable, "-m", "dsa_profiler.workloads.kernels_source")
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(args.kernels_path)
    )
    return (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]


def record(args: argparse.Namespace) -> list[Done]:
    logs = args.output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    (args.output / "standin").mkdir(exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    describe_machine(logs)
    kernels = describe_kernels(args)
    print(f"kernels {kernels}", flush=True)
    tracer, why = tracer_of(args, logs)
    print(f"tracer {tracer}: {why}", flush=True)
    stream = Stream(args.pack) if args.pack else None
    done: list[Done] = []
    for step in plan(args, tracer):
        left = deadline - time.monotonic() - GRACE_S
        last = Done(step.name, None, 0.0, "no time")
        if left > 0:
            last = perform(step, logs, left, args.kernels_path)
        print(f"{last.name}: exit {last.status}, {last.seconds} s {last.note}", flush=True)
        done.append(last)
        steps = [asdict(d) for d in done]
        summary = {"kernels": kernels, "tracer": tracer, "why": why, "steps": steps}
        (args.output / "record.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
        if stream:
            stream.append(args.output, ["record.json", "logs", f"traces/{last.name}", last.name])
    return done


@dataclass(slots=True)
class Stream:
    """`recording.tar.xz.00`, `.01`, ...: xz streams one after another, cut into parts.

    What was appended is on the disk, so that a machine that is taken away loses one step. Beyond
    the last part a step is left out, and said so.
    """

    folder: Path
    sizes: list[int] = field(default_factory=list)

    def append(self, root: Path, names: list[str]) -> None:
        buffer = io.BytesIO()
        with (
            lzma.open(buffer, "wb", preset=1) as packed,
            tarfile.open(fileobj=packed, mode="w|") as archive,
        ):
            for name in names:
                if (root / name).exists():
                    archive.add(root / name, name)
        data = buffer.getvalue()
        if sum(self.sizes) + len(data) > PARTS * PART_BYTES:
            print(f"{names[-1]}: its {len(data) >> 20} MiB are not packed, no room", flush=True)
            return
        while data:
            if not self.sizes or self.sizes[-1] == PART_BYTES:
                self.sizes.append(0)
            room = PART_BYTES - self.sizes[-1]
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"recording.tar.xz.{len(self.sizes) - 1:02}").open("ab") as part:
                part.write(data[:room])
            self.sizes[-1] += len(data[:room])
            data = data[room:]


def table(output: Path, done: list[Done]) -> str:
    """Every step in a line, then the anchors' untraced medians: the first look at the knee."""
    lines = [f"{'step':17} {'exit':>5} {'s':>7}  cases"]
    for last in done:
        counts = Counter(o.status for o in outcomes(output, last.name).values())
        cases = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        status = "-" if last.status is None else last.status
        lines.append(
            f"{last.name:17} {status:>5} {last.seconds:7.1f}  {cases} {last.note}".rstrip()
        )
    for name in ("anchors", "anchors-graph", "anchors-fp8"):
        found = outcomes(output, name)
        heads = sorted({case.num_heads for case in found})
        rows = {case.kv_len: {} for case in found}
        for case, outcome in found.items():
            rows[case.kv_len][case.num_heads] = outcome.untraced_ns
        if rows:
            lines += ["", f"{name}, untraced µs; keys, then heads {heads}"]
        for kv in sorted(rows):
            times = [rows[kv].get(h) for h in heads]
            lines.append(
                f"{kv:6} " + " ".join(f"{t / 1e3:9.1f}" if t else "        -" for t in times)
            )
    return "\n".join(lines)


def outcomes(output: Path, name: str) -> dict:
    try:
        return session.load(output / "traces" / name).outcomes
    except DsaError:
        return {}


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
    made.add_argument("--nsys", default="nsys")
    made.add_argument("--warmup", type=int, default=3)
    made.add_argument("--iterations", type=int, default=5)
    made.add_argument("--layers", type=int, default=61, help="of the stand-in")
    made.add_argument("--pack", type=Path, metavar="DIR", help="archives of each finished step")
    made.add_argument("--only", default="", metavar="STEP,STEP")
    made.add_argument("--dry-run", action="store_true", help="print the commands")
    return made


def main() -> int:
    args = parser().parse_args()
    if args.dry_run:
        for step in plan(args, "torch" if args.tracer == "auto" else args.tracer):
            print(" ".join(step.command))
        return 0
    done = record(args)
    print(table(args.output, done))
    return 0 if all(last.status == 0 for last in done) else 5


if __name__ == "__main__":
    sys.exit(main())
