"""The tracer `nsys`: find it, know its version, build its command, turn reports into SQLite.

Options are asked of the build at hand (`nsys profile --help`), never guessed from its number.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dsa_profiler.errors import DsaError, EnvironmentFault, InputError
from dsa_profiler.session import replacing

INSTALL_FOLDERS = (
    "/opt/nvidia/nsight-systems*/*/bin",
    "/opt/nvidia/nsight-systems*/*/target-linux-*",
    "/opt/nvidia/nsight-systems*/bin",
    "/usr/local/cuda*/bin",
    "/usr/lib/nsight-systems/bin",
    "/usr/lib/*/nsight-systems/target-linux-*",
)
IMPORTER = "QdstrmImporter"
IMPORTER_FOLDERS = (
    "/opt/nvidia/nsight-systems*/*/host-linux-*",
    "/usr/lib/nsight-systems/host-linux-*",
)
EXPORT_TIMEOUT_S = 3600
NVTX_CURE = "install nvtx==0.2.10 beside an nsys up to 2023.4, or use a newer nsys"


@dataclass(frozen=True, slots=True)
class Nsys:
    """One nsys that runs: its program, its version and what its `profile` can be told."""

    path: Path
    version: str
    help: str

    @property
    def release(self) -> tuple[int, int]:
        """Year and number: 2023.4.4.54 is (2023, 4)."""
        year, number = self.version.split(".")[:2]
        return int(year), int(number)

    def knows(self, option: str) -> bool:
        return option in self.help

    @property
    def importer(self) -> Path | None:
        """QdstrmImporter, which some distributions install apart from the collector."""
        real = self.path.resolve()
        beside = [str(real.parent.parent / "host-linux-*"), str(real.parent)]
        for pattern in (*beside, *IMPORTER_FOLDERS):
            for folder in sorted(glob.glob(pattern), reverse=True):
                if os.access(program := Path(folder) / IMPORTER, os.X_OK):
                    return program
        return None


def find(asked: str | None = None) -> Nsys:
    """The nsys to use: the one asked for, else the PATH's, else the newest installed elsewhere."""
    if asked:
        program = shutil.which(asked)
        if program is None:
            raise EnvironmentFault("nsys-missing", f"no nsys at {asked}", "give its path to --nsys")
        return _probe(program)
    on_path = shutil.which("nsys")
    if on_path:
        return _probe(on_path)
    found = [p for d in INSTALL_FOLDERS for p in glob.glob(f"{d}/nsys") if os.access(p, os.X_OK)]
    if not found:
        raise EnvironmentFault(
            "nsys-missing",
            "nsys is neither on the PATH nor in its usual folders",
            "install Nsight Systems, give --nsys PATH, or record with --tracer torch",
        )
    return max((_probe(p) for p in found), key=lambda n: n.release)


def _probe(program: str) -> Nsys:
    said = _output([program, "--version"])
    match = re.search(r"version\s+(\d{4}\.\d+(?:\.\d+)*)", said)
    if match is None:
        raise EnvironmentFault(
            "nsys-broken",
            f"{program} --version does not answer as nsys does: {_last(said)}",
            "repair the installation, give --nsys PATH, or record with --tracer torch",
        )
    return Nsys(Path(program), match[1], _output([program, "profile", "--help"]))


def refusal(nsys: Nsys, cuda: bool) -> EnvironmentFault | None:
    """Why this nsys would record nothing of ours, known before an hour is spent on it.

    nvtx from 0.2.12 on asks nsys whether its domain is enabled; nsys up to 2023.4 says no, and
    every mark is lost without a word. With CUDA the marks go through torch and are safe.
    """
    if cuda or nsys.release > (2023, 4):
        return None
    try:
        version = metadata.version("nvtx")
    except metadata.PackageNotFoundError:
        return None
    if _numbers(version) < (0, 2, 12):
        return None
    return EnvironmentFault(
        "nvtx-too-new", f"nvtx {version} records nothing under nsys {nsys.version}", NVTX_CURE
    )


def no_reports(nsys: Nsys) -> EnvironmentFault | None:
    """Why this nsys could record but never give a report: its host part is not installed."""
    beside = nsys.path.resolve().parent.parent / "host-linux-*"
    if nsys.importer is not None or glob.glob(str(beside)):
        return None
    return EnvironmentFault(
        "importer-missing",
        f"nsys {nsys.version} has no {IMPORTER}, so it leaves raw streams and no reports",
        "install the host part of Nsight Systems of the same version",
    )


@dataclass(frozen=True, slots=True)
class NsysTracer:
    """Records a worker under `nsys profile`.

    Without CUDA there is no cudaProfilerStart, so the collection spans the whole worker. Its
    temporary files stay in the recording's folder, where a crash leaves them to be found.
    """

    nsys: Nsys
    cuda: bool
    name: str = "nsys"

    def command(self, worker: Sequence[str], folder: Path) -> list[str]:
        options = ["--sample=none", "--cpuctxsw=none", "--kill=none", "--force-overwrite=true"]
        if self.cuda:
            options += ["--trace=cuda,nvtx", "--cuda-graph-trace=node"]
            options += ["--capture-range=cudaProfilerApi", "--capture-range-end=stop"]
        else:
            options += ["--trace=nvtx"]
        if self.nsys.knows("--discard-environment"):
            options += ["--discard-environment=true"]
        output = f"--output={folder / 'raw'}"
        return [str(self.nsys.path), "profile", *options, output, *worker]

    def environment(self, folder: Path) -> dict[str, str]:
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        return {"TMPDIR": str(temporary)}

    def collect(self, folder: Path) -> Path | None:
        reports = sorted(folder.glob("raw*.nsys-rep")) or sorted(folder.glob("raw*.qdstrm"))
        reports = reports or sorted((folder / "tmp").rglob("*.qdstrm"))
        if not reports:
            return None
        target = folder / "raw.sqlite"
        to_sqlite(reports[0], target, self.nsys)
        return target


def to_sqlite(report: Path, target: Path, nsys: Nsys | None = None) -> None:
    """Export a `.nsys-rep` or a lone `.qdstrm` to SQLite, all of it or nothing.

    An nsys older than the recorder refuses the report; a `.qdstrm` needs QdstrmImporter.
    """
    nsys = nsys or find()
    with replacing(target) as part:
        folder = part.with_name(part.name + ".d")
        folder.mkdir()
        try:
            if report.suffix == ".qdstrm":
                report = _import(report, folder, nsys)
            out = folder / "out.sqlite"
            said = _output(
                [
                    str(nsys.path), "export", "--type=sqlite", "--force-overwrite=true",
                    f"--output={out}", str(report),
                ],
                temporary=folder,
            )  # fmt: skip
            if not out.exists() or not out.stat().st_size:
                raise _export_fault(report, said, nsys)
            out.replace(part)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _import(stream: Path, folder: Path, nsys: Nsys) -> Path:
    importer = nsys.importer
    if importer is None:
        raise EnvironmentFault(
            "importer-missing",
            f"{stream.name} is a raw stream, and this nsys has no {IMPORTER} to turn it",
            "install the host part of Nsight Systems of the same version",
        )
    report = folder / "imported.nsys-rep"
    command = [str(importer), "--input-file", str(stream), "--output-file", str(report)]
    said = _output(command, temporary=folder)
    if not report.exists():
        raise InputError(
            "report-broken",
            f"{IMPORTER} cannot read {stream}: {_last(said)}",
            "record again; the stream is cut off or comes from another version of nsys",
        )
    return report


def _export_fault(report: Path, said: str, nsys: Nsys) -> DsaError:
    if re.search(r"[Vv]ersion number is invalid", said):
        return EnvironmentFault(
            "nsys-too-old",
            f"{report} was recorded by a newer nsys than {nsys.version}",
            "export it with `nsys export -t sqlite` of the recording machine, or give --nsys PATH",
        )
    if "No space left" in said:
        return EnvironmentFault("disk-full", "no space for the export", "free some space")
    return InputError(
        "report-broken", f"nsys cannot export {report}: {_last(said)}", "give an intact report"
    )


def _output(command: list[str], temporary: Path | None = None) -> str:
    """Everything a short-lived program says, whatever its exit status."""
    env = {**os.environ, **({"TMPDIR": str(temporary)} if temporary else {})}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            timeout=EXPORT_TIMEOUT_S,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.decode("utf-8", "replace")


def _last(said: str) -> str:
    lines = [line.strip() for line in said.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it says nothing"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])
