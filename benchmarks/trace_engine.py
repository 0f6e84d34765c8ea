"""How fast a large trace becomes an answer, against nsys and against merely reading the file.

    python benchmarks/trace_engine.py --nsys nsys            # 1M and 5M kernels, some minutes
    python benchmarks/trace_engine.py --kernels 100000       # a quick look

Each way runs in a process of its own, cold, and is measured from outside: wall and CPU seconds and
the peak of resident memory, the best of --repeat runs. Ratios are of CPU seconds and of wall
seconds; on a machine with other work the first are the ones to trust. `nsys stats` is asked for
the same thing that `analyze` computes, kernel time by innermost NVTX range, where the build has
that report (cuda_gpu_kern_sum:nvtx-name, 2023.x and later), and its sums are compared with ours.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INNERMOST = "cuda_gpu_kern_sum:nvtx-name"
CLOSEST = "nvtxkernsum"
QUERIES = {
    "CUPTI_ACTIVITY_KIND_KERNEL": "start, end, deviceId, streamId, "
    "ifnull(globalPid, -1) p, ifnull(correlationId, -1) c, ifnull(graphNodeId, -1) g, "
    "demangledName",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start, end, ifnull(globalTid, -1) t, "
    "ifnull(correlationId, -1) c",
    "NVTX_EVENTS": "start, end, eventType, ifnull(globalTid, -1) t, ifnull(endGlobalTid, -1) e, "
    "ifnull(domainId, -1) d, ifnull(textId, -1) i, text",
}
SCANS = {
    "connectorx": "import connectorx as c\n"
    "for q in Q: c.read_sql('sqlite://' + F, q, return_type='arrow')",
    "adbc": "import adbc_driver_sqlite.dbapi as a\n"
    "x = a.connect('file:' + F + '?mode=ro&immutable=1').cursor()\n"
    "x.adbc_statement.set_options(**{'adbc.sqlite.query.batch_rows': '65536'})\n"
    "for q in Q: x.execute(q); x.fetch_arrow_table()",
    "sqlite3": "import sqlite3\n"
    "x = sqlite3.connect('file:' + F + '?mode=ro&immutable=1', uri=True)\n"
    "for q in Q: x.execute(q).fetchall()",
}


@dataclass(frozen=True)
class Cost:
    """What one cold run cost; `output` is its stdout."""

    wall: float
    cpu: float
    peak_gb: float
    output: str


def measure(command: Sequence[str], repeat: int = 1) -> Cost:
    """The best of some runs, by CPU seconds. A run that fails ends the benchmark."""
    return min((_once(command) for _ in range(repeat)), key=lambda c: c.cpu)


def _once(command: Sequence[str]) -> Cost:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        begin = os.times().elapsed
        child = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = os.times().elapsed - begin
        out.seek(0)
        err.seek(0)
        if child.returncode:
            sys.exit(f"{' '.join(command[:4])} ... failed:\n{err.read()[-2000:]}")
        return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20, out.read())


def generate(path: Path, kernels: int, *more: str) -> None:
    """In a process of its own: a child's peak of memory begins with its parent's."""
    script = Path(__file__).with_name("generate_trace.py")
    command = [sys.executable, str(script), str(path), "--kernels", str(kernels), *more]
    subprocess.run(command, check=True)
    print(f"{path.stat().st_size / 2**20:>12,.0f} MiB of SQLite", flush=True)


def scan(name: str, path: Path) -> list[str]:
    queries = [f"SELECT {columns} FROM {table}" for table, columns in QUERIES.items()]
    return [sys.executable, "-c", f"F = {str(path)!r}; Q = {queries!r}\n{SCANS[name]}"]


def analyze(path: Path) -> list[str]:
    return [sys.executable, "-m", "dsa_profiler", "analyze", str(path), "--json"]


def nsys_report(nsys: str) -> str:
    """The innermost-range report, or the closest that this build has."""
    listed = subprocess.run(
        [nsys, "stats", "--help-reports"], capture_output=True, text=True, check=False
    )
    known = "cuda_gpu_kern_sum" in listed.stdout and "nvtx-name" in listed.stdout
    return INNERMOST if known else CLOSEST


def compare(ours: str, theirs: str) -> str:
    """Whether nsys' rows (`range/kernel`, or the kernel alone) equal ours, to the ns."""
    expected: dict[str, tuple[int, int]] = {}
    document = json.loads(ours)
    for row in document["range_totals"]:
        text = f"{row['range']}/{row['kernel']}" if row["range"] else row["kernel"]
        calls, total = expected.get(text, (0, 0))
        expected[text] = (calls + row["calls"], total + row["total_ns"])
    found: dict[str, tuple[int, int]] = {}
    table = theirs[theirs.find("Time (%)") :]
    for row in csv.DictReader(io.StringIO(table)):
        found[row["Name"]] = (int(row["Instances"]), int(row["Total Time (ns)"]))
    same = sum(found.get(k) == v for k, v in expected.items())
    return f"{same} of {len(expected)} rows equal, {len(found)} rows of nsys"


class Table:
    """Rows of the result, printed as they come and as Markdown at the end."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, Cost]] = []

    def add(self, size: str, way: str, cost: Cost) -> Cost:
        self.rows.append((size, way, cost))
        print(
            f"{size:>5}  {way:<44} {cost.cpu:8.2f} s CPU {cost.wall:8.2f} s wall "
            f"{cost.peak_gb:6.2f} GB",
            flush=True,
        )
        return cost

    def markdown(self) -> str:
        lines = ["| kernels | way | CPU s | wall s | peak GB |", "|---|---|---|---|---|"]
        lines += [
            f"| {size} | {way} | {c.cpu:.2f} | {c.wall:.2f} | {c.peak_gb:.2f} |"
            for size, way, c in self.rows
        ]
        return "\n".join(lines)


def ratio(what: str, a: Cost, b: Cost, wanted: str) -> str:
    return f"{what}: {a.cpu / b.cpu:.1f}x CPU, {a.wall / b.wall:.1f}x wall (wanted {wanted})"


def run(args: argparse.Namespace, folder: Path) -> None:
    table, notes = Table(), []
    small = _label(args.kernels)
    sqlite, parquet = folder / "small.sqlite", folder / "small"
    generate(sqlite, args.kernels, "--parquet", str(parquet))

    ours = table.add(small, "dsa-profiler analyze, SQLite", measure(analyze(sqlite), args.repeat))
    columns = table.add(
        small, "dsa-profiler analyze, parquetdir", measure(analyze(parquet), args.repeat)
    )
    scans = {
        name: table.add(small, f"bare scan, {name}", measure(scan(name, sqlite), args.repeat))
        for name in SCANS
        if name == "sqlite3" or _installed(name)
    }
    fastest = min(scans, key=lambda name: scans[name].cpu)
    notes.append(ratio(f"analyze / bare scan by {fastest}", ours, scans[fastest], "<= 1.5x"))
    if args.nsys:
        report = nsys_report(args.nsys)
        copy = folder / "nsys.sqlite"
        shutil.copyfile(sqlite, copy)
        command = [args.nsys, "stats", "-q", "--force-export=false", "-f", "csv", "-r", report]
        theirs = table.add(small, f"nsys stats {report}", measure([*command, str(copy)]))
        notes.append(ratio("nsys stats / analyze from SQLite", theirs, ours, ">= 20x"))
        notes.append(ratio("nsys stats / analyze from parquetdir", theirs, columns, ">= 60x"))
        if report == INNERMOST:
            notes.append(f"sums against nsys': {compare(ours.output, theirs.output)}")
        else:
            notes.append(f"this nsys has no innermost-range report: {report} is the closest")
    if args.large:
        large = _label(args.large)
        sqlite = folder / "large.sqlite"
        generate(sqlite, args.large)
        more = table.add(large, "dsa-profiler analyze, SQLite", measure(analyze(sqlite)))
        notes.append(ratio(f"{large} / {small}", more, ours, "<= 5.2x"))
        notes.append(f"peak memory at {large}: {more.peak_gb:.2f} GB (wanted <= 1.2 GB)")
    print("\n".join(["", table.markdown(), "", *(f"- {n}" for n in notes), "", _machine(args)]))


def _installed(scan_name: str) -> bool:
    from importlib.util import find_spec

    return find_spec({"adbc": "adbc_driver_sqlite"}.get(scan_name, scan_name)) is not None


def _label(kernels: int) -> str:
    return f"{kernels / 1e6:g}M"


def _machine(args: argparse.Namespace) -> str:
    import numpy

    cpu = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    versions = f"Python {platform.python_version()}, numpy {numpy.__version__}"
    if args.nsys:
        told = subprocess.run([args.nsys, "--version"], capture_output=True, text=True, check=True)
        versions += f", {told.stdout.strip()}"
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return f"{names[0] if names else cpu}, {os.cpu_count()} cores, {versions}; load {load}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=5_000_000, help="0 leaves it out")
    parser.add_argument("--nsys", default=shutil.which("nsys") or "", help="empty leaves it out")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="where the traces go (default: a temporary one)"
    )
    args = parser.parse_args()
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
        run(args, args.folder)
        return
    with tempfile.TemporaryDirectory(prefix="trace-engine-") as folder:
        run(args, Path(folder))


if __name__ == "__main__":
    main()
