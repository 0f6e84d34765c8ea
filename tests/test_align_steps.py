"""Steps: what each server's ranges say, and how kernels find their step."""

from __future__ import annotations

import numpy as np
import pytest
from trace_factory import Program

from dsa_profiler.analysis import steps
from dsa_profiler.analysis.steps import Batch, Step

TEXTS = [
    ("[Executor] _forward_step 7: 0 ctx reqs, 64 gen reqs", "trtllm", Batch(0, 64)),
    ("[Executor] _forward_step 8: 2 ctx reqs, 8192 ctx tokens, 3 gen reqs", "trtllm",
     Batch(2, 3, 8192)),
    ("execute_context_1(4096)_generation_0(0)", "vllm", Batch(1, 0, 4096, 0)),
    ("execute_12_context_0(sq0sk0)_generation_4(sq4sk16384)", "vllm", Batch(0, 4, 0, 4, 16384)),
    ("execute_new_2_cached_30", "vllm", Batch(2, 30)),
    ("step[DECODE bs=64]", "sglang", Batch(0, 64)),
    ("step[decode bs=64]", "sglang", Batch(0, 64)),
    ("step[EXTEND bs=2 toks=8192]", "sglang", Batch(2, 0, 8192)),
    ("step[prefill bs=1 toks=512]", "sglang", Batch(1, 0, 512)),
    ("step[mixed bs=5 ext=2 dec=3]", "sglang", Batch(2, 3)),
    ("step[TARGET_VERIFY bs=8]", "sglang", Batch(0, 8)),
    ("step[idle]", "sglang", Batch(0, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "framework", "batch"), TEXTS, ids=[t[0] for t in TEXTS])
def test_what_a_range_says(text: str, framework: str, batch: Batch) -> None:
    assert steps.parse(text) == (framework, batch)


@pytest.mark.parametrize(
    "text", ["[Executor] _schedule", "[DG] sm90_fp8", "step", "execute_model", "dsa:iter 3", ""]
)
def test_other_ranges_are_no_steps(text: str) -> None:
    assert steps.parse(text) is None


def test_phases() -> None:
    assert Batch(1, 0).phase == "context"
    assert Batch(0, 1).phase == "generation"
    assert Batch(1, 1).phase == "mixed"
    assert Batch(0, 0).phase == "idle"
    assert Batch().phase == "unknown"


def test_steps_of_a_trace_leave_out_nested_and_truncated_ranges() -> None:
    program = Program()
    thread = program.thread(pid=77)
    for n in range(3):
        with thread.range(f"[Executor] _forward_step {n}: 0 ctx reqs, 4 gen reqs"):
            thread.now += 1000
            with thread.range("step[DECODE bs=4]"):
                thread.now += 1000
    cut = program.ranges[-1]
    program.ranges[-1] = (*cut[:6], True)
    framework, found = steps.from_ranges(program.trace())
    assert framework == "trtllm"
    assert [s.number for s in found] == [0, 1]
    assert {s.thread for s in found} == {thread.thread}


def test_a_kernel_belongs_to_the_step_that_launched_it() -> None:
    step = [Step(16, 17, 100 * n, 100 * n + 50, Batch(0, 1), n) for n in range(3)]
    time = np.array([10, 60, 149, 120, 210])
    thread = np.array([17, 17, 17, 99, 17])
    place = steps.assign(step, np.full(5, 16), thread, time)
    assert place.tolist() == [0, -1, 1, -1, 2], "between steps, or from another thread: none"


def test_ranks_do_not_mix() -> None:
    step = [Step(16, 17, 0, 50, Batch(0, 1), 0), Step(32, 33, 0, 50, Batch(0, 1), 0)]
    place = steps.assign(step, np.array([16, 32, 48]), np.array([17, 33, 49]), np.array([5, 5, 5]))
    assert place.tolist() == [0, 1, -1]


@pytest.mark.parametrize(("layers", "dense"), [(5, 1), (61, 3), (8, 2)])
def test_the_period_of_a_server_without_ranges(layers: int, dense: int) -> None:
    one = [0] * dense + [1] * (layers - dense - 1) + [2]
    found = (one * 5)[dense + 1 :]
    assert steps.period(found) == layers
    lengths = [30 if kind == 2 else 20 for kind in found]
    first = steps.boundary(found, lengths, layers)
    assert found[first - 1] == 2, "a step begins after the segment that ends one"


def test_no_period_in_noise() -> None:
    assert steps.period(list(range(50))) == 0
    assert steps.period([1, 2]) == 0
