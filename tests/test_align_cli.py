"""`align` on the command line: exit codes, JSON, Markdown and the page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from align_factory import DECODE, DECODE_CASE, K, Server, server, slower, standalone, without
from trace_factory import export

from dsa_profiler.cli import main
from dsa_profiler.columns import Trace
from dsa_profiler.model import load_model
from dsa_profiler.plan import Plan
from dsa_profiler.session import Chunk, Outcome, Session, save
from dsa_profiler.trace import writer


@pytest.fixture
def files(tmp_path: Path) -> Path:
    writer.write(standalone(), tmp_path / "s.sqlite")
    writer.write(server(), tmp_path / "same.sqlite")
    worse = slower(without(DECODE, 8), "topk", 2.6)
    writer.write(server(worse, Server(ranks=2, slow_rank=1.3)), tmp_path / "worse.sqlite")
    writer.write(server(how=Server(mode="hidden")), tmp_path / "hidden.sqlite")
    return tmp_path


def align(folder: Path, e2e: str, *more: str) -> int:
    return main(["align", str(folder / "s.sqlite"), str(folder / e2e), *more])


@pytest.mark.parametrize(
    ("e2e", "code", "verdict"),
    [("same.sqlite", 0, "pass"), ("worse.sqlite", 6, "fail"), ("hidden.sqlite", 6, "inconclusive")],
)
def test_exit_codes_follow_the_verdict(
    files: Path, e2e: str, code: int, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align(files, e2e, "--json") == code
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == verdict
    assert align(files, e2e, "-q") == code
    assert capsys.readouterr().out == f"{verdict}\n"


def test_gates_and_tolerances_are_flags(files: Path) -> None:
    assert align(files, "worse.sqlite", "-q", "--fail-on", "names") == 0
    assert align(files, "worse.sqlite", "-q", "--fail-on", "none") == 0
    assert align(files, "worse.sqlite", "-q", "--fail-on", "latency", "--tolerance", "4") == 0
    gate = ("-q", "--fail-on", "latency", "--tolerance", "4", "--tolerance", "topk=2")
    assert align(files, "worse.sqlite", *gate) == 6
    assert align(files, "same.sqlite", "-q", "--min-steps", "9") == 6


@pytest.mark.parametrize(
    "more",
    [
        ["--tolerance", "0.5"],
        ["--tolerance", "nowhere=2"],
        ["--tolerance", "fast"],
        ["--fail-on", "everything"],
        ["--case", "nonsense"],
        ["--case", "context-b9-s9-h128-bfloat16"],
        ["--tp", "none"],
        ["--batch", "0"],
        ["--era", "Z"],
    ],
)
def test_wrong_flags_are_usage(
    files: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert align(files, "same.sqlite", *more) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_mistyped_stage_is_guessed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert align(files, "same.sqlite", "--tolerance", "sparse_atn=2") == 2
    assert "did you mean 'sparse_attn'?" in capsys.readouterr().err


def test_broken_files_are_bad_input(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (files / "same.sqlite").read_bytes()
    (files / "cut.sqlite").write_bytes(whole[: len(whole) // 3])
    (files / "text.sqlite").write_text("no trace")
    (files / "empty").mkdir()
    for name in ("cut.sqlite", "text.sqlite", "empty", "missing.sqlite"):
        assert align(files, name) == 4, name
        assert len(capsys.readouterr().err.strip().splitlines()) == 2


@pytest.mark.parametrize("generation", ["2.9.1", "3.13.2", "3.25.0"])
def test_exports_of_any_nsys_align(tmp_path: Path, generation: str) -> None:
    export(standalone(), tmp_path / "s.sqlite", generation)
    export(server(how=Server(mode="captured")), tmp_path / "e.sqlite", generation)
    assert align(tmp_path, "e.sqlite", "-q") == 0


def test_a_folder_of_ranks_is_one_server(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = files / "ranks"
    for n in range(2):
        writer.write(server(seed=n), ranks / f"e2e_rank{n}.sqlite")
    assert align(files, "ranks", "--json") == 0
    assert json.loads(capsys.readouterr().out)["e2e"]["ranks"] == 2


def make_session(folder: Path) -> None:
    other = replace(DECODE_CASE, batch_size=8)
    chunks = (
        Chunk("0000", (DECODE_CASE,), "chunks/0000/trace.sqlite"),
        Chunk("0001", (other,), ""),
    )
    writer.write(standalone(), folder / "chunks/0000/trace.sqlite")
    save(
        folder,
        Session(
            "s", "2026-01-01T00:00:00Z", "reference", "nsys", load_model("deepseek-v3.2"),
            Plan((DECODE_CASE, other)), {}, {}, chunks, {DECODE_CASE: Outcome("done", "0000")},
        ),
    )  # fmt: skip


def test_a_session_is_a_standalone_side(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_session(files / "session")
    asked = ["align", str(files / "session"), str(files / "same.sqlite"), "--json"]
    assert main([*asked, "--case", DECODE_CASE.slug]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [n["slug"] for n in document["notes"]] == ["align-layer-count"], "5 of the model's 61"
    assert main([*asked, "--case", replace(DECODE_CASE, batch_size=8).slug]) == 2
    assert "no recording of" in capsys.readouterr().err


def test_text_and_markdown_tell_the_difference(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    align(files, "worse.sqlite")
    text = capsys.readouterr().out
    assert text.startswith("FAIL")
    assert "fusedCatFp8Kernel" in text
    align(files, "worse.sqlite", "--markdown")
    markdown = capsys.readouterr().out
    assert markdown.startswith("## ❌ Alignment: fail")
    assert "| missing | indexer_quant |" in markdown
    assert "fusedCatFp8Kernel&lt;(bool)1&gt;" in markdown, "a name is no HTML"
    for line in markdown.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_inconclusive_says_what_cures_it(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    align(files, "hidden.sqlite")
    assert "--cuda-graph-trace=node" in capsys.readouterr().err


def test_the_page_joins_the_slots_and_is_the_same_twice(files: Path) -> None:
    for name in ("a.html", "b.html"):
        assert align(files, "worse.sqlite", "-q", "-o", str(files / name)) == 6
    page = (files / "a.html").read_text("utf-8")
    assert page == (files / "b.html").read_text("utf-8")
    assert page.count("<polygon") == len(DECODE) - 1, "a band a slot"
    assert page.count("<rect") == 2 * len(DECODE) - 1
    assert page.count(' alone"') == 1, "the missing kernel stands alone"
    assert page.count("data-copy>") == 2 * (len(DECODE) - 1)
    assert "straggler" in page
    assert not re.search(r"(src|href)=\"?https?:", page)
    assert page.index("Checks and differences") < page.index("A typical layer")


def test_the_page_of_an_inconclusive_alignment(files: Path) -> None:
    assert align(files, "hidden.sqlite", "-q", "-o", str(files / "a.html")) == 6
    page = (files / "a.html").read_text("utf-8")
    assert "Inconclusive." in page
    assert "<polygon" not in page


def test_a_hostile_kernel_name_stays_text(tmp_path: Path) -> None:
    evil = K("topk", "<img src=x onerror=alert(1)></script><b>", 26_000)
    kernels = [evil if k.stage == "topk" else k for k in DECODE]
    writer.write(standalone(kernels), tmp_path / "s.sqlite")
    writer.write(server(kernels), tmp_path / "e.sqlite")
    align(tmp_path, "e.sqlite", "-q", "-o", str(tmp_path / "a.html"))
    page = (tmp_path / "a.html").read_text("utf-8")
    assert "onerror" in page
    assert "<img" not in page


def chrome(trace: Trace, path: Path) -> Path:
    """The same recording as torch.profiler would have written it."""
    events: list[dict[str, Any]] = []
    rows = zip(*(c.tolist() for c in columns(trace.kernels)), strict=True)
    for start, end, device, stream, _, correlation, node, name, kind in rows:
        events.append(
            {
                "ph": "X", "cat": ("kernel", "gpu_memcpy", "gpu_memset")[kind], "pid": device,
                "tid": stream, "name": trace.strings[name], "ts": start / 1e3,
                "dur": (end - start) / 1e3,
                "args": {"device": device, "stream": stream, "correlation": correlation,
                         **({"graph node id": node} if node > 0 else {})},
            }
        )  # fmt: skip
    for start, end, _, correlation in zip(
        *(c.tolist() for c in columns(trace.launches)), strict=True
    ):
        events.append(
            {
                "ph": "X", "cat": "cuda_runtime", "pid": 7, "tid": 8, "name": "cudaLaunchKernel",
                "ts": start / 1e3, "dur": (end - start) / 1e3, "args": {"correlation": correlation},
            }
        )  # fmt: skip
    for start, end, _, text, *_rest in zip(
        *(c.tolist() for c in columns(trace.ranges)), strict=True
    ):
        events.append(
            {
                "ph": "X", "cat": "user_annotation", "pid": 7, "tid": 8,
                "name": trace.strings[text], "ts": start / 1e3, "dur": (end - start) / 1e3,
            }
        )  # fmt: skip
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def columns(table: Any) -> list[Any]:
    return [getattr(table, name) for name in type(table).__slots__]


@pytest.mark.parametrize("style", ["sglang", "vllm"])
def test_a_server_that_torch_profiler_recorded(files: Path, style: str) -> None:
    """The steps of vLLM and SGLang are named by record_function, which nsys does not see."""
    how = Server(style=style, mode="eager")
    chrome(server(how=how), files / "same.json")
    chrome(server(without(DECODE, 9), how), files / "worse.json")
    assert align(files, "same.json", "-q") == 0
    assert align(files, "worse.json", "-q") == 6
