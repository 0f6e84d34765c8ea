"""Generation steps as CUDA graphs: what is warmed up, captured and replayed, and under which marks.

torch.cuda is played by a log, for the order of things needs no GPU; what a graph really holds is
for tests/test_kernels_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dsa_profiler.model import Case, load_model
from dsa_profiler.workloads import measure
from dsa_profiler.workloads.bench import Bench
from dsa_profiler.workloads.order import Order

DECODE, PREFILL = Case("generation", 2, 64), Case("context", 2, 64)


class Stage:
    """A workload of one stage that logs when it is launched."""

    environment: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def prepare(self, case: Case) -> Callable[..., torch.Tensor]:
        def step(mark: Callable[[str], Any]) -> torch.Tensor:
            with mark("topk"):
                self.log.append("launch")
            return torch.ones(1)

        return step


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []

    class Graph:
        def replay(self) -> None:
            said.append("replay")

    @contextmanager
    def graph(held: Graph) -> Iterator[None]:
        assert isinstance(held, Graph)
        said.append("capture")
        yield
        said.append("captured")

    def elapsed(step: Callable[[], torch.Tensor], device: torch.device) -> tuple[float, Any]:
        said.append("timed")
        return 1e6, step()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("wait"))
    monkeypatch.setattr(measure, "elapsed_ns", elapsed)
    monkeypatch.setattr(measure, "reset_peak", lambda device: None)
    monkeypatch.setattr(measure, "peak_bytes", lambda device: 1)
    return said


def bench(log: list[str], **changes: Any) -> Bench:
    order = Order(
        Path(), "stage", load_model("deepseek-v3.2"), (DECODE, PREFILL), "nsys", warmup=2,
        iterations=2, options={"cuda_graph": True}, **changes,
    )  # fmt: skip
    return Bench(order, torch.device("cuda"), Stage(log), lambda event, **fields: None)


def marker(log: list[str]) -> Callable[[str], Any]:
    @contextmanager
    def mark(text: str) -> Iterator[None]:
        log.append(f"<{text}")
        yield
        log.append(">")

    return mark


def test_the_untraced_time_is_of_replays_after_eager_warm_ups(log: list[str]) -> None:
    bench(log).untraced(DECODE)
    warm_up = ["timed", "launch"] * 2
    capture = ["launch", "wait", "capture", "launch", "captured"]
    assert log == [*warm_up, *capture, *["timed", "replay"] * 2]


def test_a_graph_is_captured_under_its_stages_marks_in_a_warm_up_of_the_window(
    log: list[str],
) -> None:
    made = bench(log)
    made.untraced(DECODE)
    log.clear()
    made.traced(DECODE, marker(log))
    stage = ["<dsa:stage topk", "launch", ">"]
    assert log == [
        f"<dsa:case {DECODE.slug}",
        "<dsa:warmup 0", *stage, "wait", ">",
        "<dsa:warmup 1", *stage, "wait", ">",
        "<dsa:warmup 2", "launch", "wait", "capture", *stage, "captured", ">",
        "<dsa:iter 0", "replay", "wait", ">",
        "<dsa:iter 1", "replay", "wait", ">",
        ">",
    ]  # fmt: skip


def test_the_load_replays_the_graph(log: list[str]) -> None:
    made = bench(log, power_s=1e-9)
    made.untraced(DECODE)
    begin, end, count = made.load[DECODE]
    assert log[-count - 1 :] == [*["replay"] * count, "wait"]
    assert count == 100  # of 1 ms each, before the host waits
    assert end >= begin


def test_a_context_is_never_a_graph(log: list[str]) -> None:
    made = bench(log)
    made.untraced(PREFILL)
    made.traced(PREFILL, marker(log))
    assert "capture" not in log
    assert "replay" not in log
