"""nsys: found, asked what it knows, its reports turned into SQLite, its faults named."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dsa_profiler.capture import choose, nsys
from dsa_profiler.errors import EnvironmentFault, InputError

HERE = Path(__file__).parent


def fake_nsys(
    folder: Path, version: str = "2025.5.2.266", profile_help: str = "", export: str = ""
) -> Path:
    """A program that answers as nsys does: --version, profile --help, export."""
    path = folder / "target-linux-x64" / "nsys"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f'--version) echo "NVIDIA Nsight Systems version {version}";;\n'
        f'profile) echo "{profile_help}";;\n'
        f"export) {export or 'exit 1'};;\n"
        "esac\n",
        "utf-8",
    )
    path.chmod(0o755)
    return path


def importer(folder: Path, script: str = "exit 0") -> Path:
    path = folder / "host-linux-x64" / "QdstrmImporter"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def _nowhere(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(nsys, "INSTALL_FOLDERS", ())
    monkeypatch.setattr(nsys, "IMPORTER_FOLDERS", ())


def test_the_newest_of_the_usual_folders_is_taken_when_the_path_has_none(tmp_path, monkeypatch):
    for year in ("2023.4.4.54", "2025.5.2.266", "2024.6.2.1"):
        fake_nsys(tmp_path / year, year)
    monkeypatch.setenv("PATH", os.defpath if not shutil.which("nsys", path=os.defpath) else "/")
    monkeypatch.setattr(nsys, "INSTALL_FOLDERS", (str(tmp_path / "*" / "target-linux-*"),))
    assert nsys.find().version == "2025.5.2.266"


@pytest.mark.usefixtures("_nowhere")
def test_no_nsys_anywhere_is_an_environment_fault_and_auto_takes_torch():
    with pytest.raises(EnvironmentFault, match="nsys is neither"):
        nsys.find()
    choice = choose.choose("auto", cuda=False)
    assert choice.tracer.name == "torch"
    assert "neither on the PATH" in choice.why
    with pytest.raises(EnvironmentFault):
        choose.choose("nsys", cuda=False)


def test_a_program_that_is_no_nsys_is_named(tmp_path):
    path = tmp_path / "nsys"
    path.write_text("#!/bin/sh\necho hello\n", "utf-8")
    path.chmod(0o755)
    with pytest.raises(EnvironmentFault, match="hello"):
        nsys.find(str(path))


@pytest.mark.parametrize(
    ("nsys_version", "nvtx_version", "cuda", "refused"),
    [
        ("2022.4.2.1", "0.2.12", False, True),
        ("2023.4.4.54", "0.3.0", False, True),
        ("2023.4.4.54", "0.2.11", False, False),
        ("2024.1.1.59", "0.2.12", False, False),
        ("2023.4.4.54", "0.2.12", True, False),
    ],
)
def test_a_pair_that_loses_every_mark_is_refused_beforehand(
    monkeypatch, nsys_version, nvtx_version, cuda, refused
):
    monkeypatch.setattr(nsys.metadata, "version", lambda name: nvtx_version)
    fault = nsys.refusal(nsys.Nsys(Path("nsys"), nsys_version, ""), cuda)
    assert (fault is not None) == refused
    if fault:
        assert "nvtx==0.2.10" in fault.cure


def test_the_command_asks_only_for_what_the_build_knows(tmp_path):
    old = nsys.NsysTracer(nsys.Nsys(Path("nsys"), "2022.4.2.1", "--sample"), cuda=False)
    new = nsys.NsysTracer(nsys.Nsys(Path("nsys"), "2025.5.2", "--discard-environment"), cuda=True)
    plain, full = (t.command(["python", "x"], tmp_path) for t in (old, new))
    assert plain[-2:] == full[-2:] == ["python", "x"]
    assert "--sample=none" in plain
    assert "--cpuctxsw=none" in plain
    assert "--trace=nvtx" in plain
    assert not any("discard" in word or "capture" in word for word in plain)
    assert {"--trace=cuda,nvtx", "--cuda-graph-trace=node", "--discard-environment=true",
            "--capture-range=cudaProfilerApi", "--capture-range-end=stop"} <= set(full)  # fmt: skip


def test_a_newer_report_is_refused_with_the_cure(tmp_path):
    said = "echo 'Version number is invalid: 2025@5@1@121-256'"
    old = nsys.find(str(fake_nsys(tmp_path, "2022.4.2.1", export=said)))
    report = tmp_path / "server.nsys-rep"
    report.write_bytes(b"x")
    with pytest.raises(EnvironmentFault, match="newer nsys than 2022") as told:
        nsys.to_sqlite(report, tmp_path / "out.sqlite", old)
    assert "--nsys" in told.value.cure
    assert sorted(p.name for p in tmp_path.iterdir()) == ["server.nsys-rep", "target-linux-x64"]


@pytest.mark.usefixtures("_nowhere")
def test_a_raw_stream_without_an_importer_says_what_is_missing(tmp_path):
    stream = tmp_path / "a.qdstrm"
    stream.write_bytes(b"x")
    found = nsys._probe(str(fake_nsys(tmp_path)))
    with pytest.raises(EnvironmentFault, match="QdstrmImporter"):
        nsys.to_sqlite(stream, tmp_path / "out.sqlite", found)
    with pytest.raises(EnvironmentFault):
        choose.choose("nsys", cuda=False, path=str(found.path))
    assert not (tmp_path / "out.sqlite").exists()


def test_a_raw_stream_goes_through_the_importer_beside_nsys(tmp_path):
    importer(tmp_path, 'cp "$2" "$4"')
    copy = 'for a in "$@"; do case $a in --output=*) o=${a#--output=};; esac; done; cp "$a" "$o"'
    found = nsys.find(str(fake_nsys(tmp_path, export=copy)))
    stream = tmp_path / "a.qdstrm"
    stream.write_bytes(b"the stream")
    nsys.to_sqlite(stream, tmp_path / "out.sqlite", found)
    assert (tmp_path / "out.sqlite").read_bytes() == b"the stream"


def test_what_is_no_report_is_bad_input(tmp_path):
    found = nsys.find(str(fake_nsys(tmp_path, export="echo 'cannot open it'; exit 1")))
    with pytest.raises(InputError, match="cannot open it"):
        nsys.to_sqlite(tmp_path / "none.nsys-rep", tmp_path / "out.sqlite", found)
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.nsys
def test_the_real_nsys_refuses_what_is_no_report(tmp_path):
    report = tmp_path / "a.nsys-rep"
    report.write_bytes(b"no report at all" * 64)
    with pytest.raises((InputError, EnvironmentFault)):
        nsys.to_sqlite(report, tmp_path / "out.sqlite")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nsys-rep"]


@pytest.mark.nsys
def test_the_real_nsys_records_and_exports_every_range(tmp_path):
    code = "import nvtx\nfor i in range(3):\n  with nvtx.annotate(f'r{i}'): pass\n"
    found = nsys.find()
    command = nsys.NsysTracer(found, cuda=False)
    env = {**os.environ, **command.environment(tmp_path)}
    subprocess.run(
        command.command([sys.executable, "-c", code], tmp_path), env=env, check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    path = command.collect(tmp_path)
    with sqlite3.connect(path) as db:
        (count,) = db.execute("SELECT count(*) FROM NVTX_EVENTS WHERE eventType = 59").fetchone()
    assert count == 3
