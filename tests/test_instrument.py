"""Marks reach the tracer, and patches leave no trace of themselves."""

from __future__ import annotations

import sys
import types
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from dsa_profiler import marks
from dsa_profiler.errors import EnvironmentFault
from dsa_profiler.workloads.instrument import marker, patched, stage_mark, unmarked


class Recorder:
    """Notes what is entered and left."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @contextmanager
    def __call__(self, stage: str):
        self.log.append(f"+{stage}")
        try:
            yield
        finally:
            self.log.append(f"-{stage}")


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(4, 3)
        self.up = nn.Linear(3, 4)

    def middle(self, x: torch.Tensor, *, times: float = 1.0) -> torch.Tensor:
        return x * times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.middle(self.down(x), times=2.0))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Part()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x)


TABLE = {"part.down": "q_b_proj", "part.middle": "topk", "part.up": "o_proj"}


def entries(root: nn.Module) -> list[tuple[int, str, int]]:
    """Every instance entry of every module, in order and by identity."""
    return [(id(m), k, id(v)) for m in root.modules() for k, v in vars(m).items()]


def test_no_tracer_costs_nothing() -> None:
    assert marker("none", "cuda") is unmarked
    assert stage_mark(unmarked) is unmarked
    assert unmarked("anything") is unmarked("else")


def test_torch_profiler_sees_the_text() -> None:
    mark = marker("torch", "cpu")
    activities = [torch.profiler.ProfilerActivity.CPU]
    case = mark(marks.case("generation-b1-s3-h1-fp8"))
    with torch.profiler.profile(activities=activities) as profiler, case, stage_mark(mark)("topk"):
        torch.ones(3).sum()
    names = [event.name for event in profiler.events()]
    assert "dsa:case generation-b1-s3-h1-fp8" in names
    assert "dsa:stage topk" in names


def test_nsys_on_a_cpu_takes_the_package_and_pops_on_errors(monkeypatch) -> None:
    log: list[str] = []
    fake = types.SimpleNamespace(push_range=log.append, pop_range=lambda: log.append("pop"))
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    mark = marker("nsys", "cpu")
    with pytest.raises(ZeroDivisionError), mark("dsa:iter 0"), mark("dsa:stage topk"):
        _ = 1 / 0
    assert log == ["dsa:iter 0", "dsa:stage topk", "pop", "pop"]


def test_nsys_with_cuda_takes_torch(monkeypatch) -> None:
    log: list[str] = []
    monkeypatch.setattr("torch.cuda.nvtx.range_push", log.append)
    monkeypatch.setattr("torch.cuda.nvtx.range_pop", lambda: log.append("pop"))
    with marker("nsys", "cuda")("a {brace} stays"):
        pass
    assert log == ["a {brace} stays", "pop"]


def test_a_missing_nvtx_is_named_with_its_cure(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(EnvironmentFault) as caught:
        marker("nsys", "cpu")
    assert caught.value.slug == "nvtx-missing"
    assert "nvtx==0.2.10" in caught.value.cure


def test_a_stage_outside_the_list_is_refused() -> None:
    with pytest.raises(ValueError, match="not a stage"):
        stage_mark(Recorder())("attention")


def test_patches_mark_submodules_and_methods() -> None:
    root, mark, x = Whole(), Recorder(), torch.randn(2, 4)
    want = root(x)
    with patched(root, TABLE, mark) as missing:
        got = root(x)
    assert missing == ()
    assert torch.equal(got, want)
    assert mark.log == ["+q_b_proj", "-q_b_proj", "+topk", "-topk", "+o_proj", "-o_proj"]
    mark.log.clear()
    root(x)
    assert mark.log == []


@pytest.mark.parametrize("fault", [False, True])
def test_patches_come_off_exactly(fault: bool) -> None:
    root, before = Whole(), None
    # One entry that was there already must be the same object at the same place afterwards.
    root.part.middle = root.part.middle
    root.part.last = "after"
    before, weights = entries(root), {k: v.clone() for k, v in root.state_dict().items()}
    with pytest.raises(RuntimeError) if fault else _nothing(), patched(root, TABLE, Recorder()):
        assert entries(root) != before
        if fault:
            root(torch.randn(2, 5))
    assert entries(root) == before
    assert all(torch.equal(v, weights[k]) for k, v in root.state_dict().items())
    assert "forward" not in vars(root.part.down)


def test_a_fault_in_a_marked_call_closes_its_range() -> None:
    root, mark = Whole(), Recorder()
    with patched(root, TABLE, mark), pytest.raises(RuntimeError):
        root(torch.randn(2, 5))
    assert mark.log == ["+q_b_proj", "-q_b_proj"]


def test_patches_nest_and_come_off_in_reverse() -> None:
    root, outer, inner = Whole(), Recorder(), Recorder()
    before = entries(root)
    with patched(root, {"part": "sparse_attn"}, outer):
        with patched(root, {"part": "schedule", "part.down": "q_b_proj"}, inner):
            root(torch.randn(1, 4))
        root(torch.randn(1, 4))
    assert entries(root) == before
    assert outer.log == ["+sparse_attn", "-sparse_attn"] * 2
    assert inner.log == ["+schedule", "+q_b_proj", "-q_b_proj", "-schedule"]


def test_functions_of_a_python_module_can_be_marked() -> None:
    library = types.ModuleType("library")
    library.logits = lambda x: x + 1
    library.rest = 0
    before, mark = list(vars(library).items()), Recorder()
    with patched(library, {"logits": "mqa_logits"}, mark):
        assert library.logits(1) == 2
    assert list(vars(library).items()) == before
    assert mark.log == ["+mqa_logits", "-mqa_logits"]


@pytest.mark.parametrize("path", ["part.nothing", "nothing.down", "part.down.weight", "part.rest"])
def test_missing_hooks_are_reported_and_the_rest_is_marked(path: str) -> None:
    root, mark = Whole(), Recorder()
    root.part.rest = 3
    with patched(root, {path: "topk", "part.up": "o_proj"}, mark) as missing:
        root(torch.randn(1, 4))
    assert missing == (path,)
    assert mark.log == ["+o_proj", "-o_proj"]


@contextmanager
def _nothing():
    yield
