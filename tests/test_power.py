"""Clocks and power: what is cut out of NVML's samples for a recording, and for each of its cases.

Samples by hand hold the arithmetic; the last tests run with a stand-in for the binding.
"""

import csv
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsa_profiler import pipeline
from dsa_profiler import session as sessions
from dsa_profiler.capture import power
from dsa_profiler.capture.power import Sample
from dsa_profiler.cli import main
from dsa_profiler.export import module_rows
from dsa_profiler.session import GpuState, Outcome

HERE = Path(__file__).parent


class FakeNvml:
    """A GPU that draws 70 W idle and 700 W busy, hits its power cap, and counts energy."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, energy=True, failing=()):
        self.looks, self.energy, self.failing = 0, energy, failing
        self.began = time.monotonic()

    def idle(self):
        return time.monotonic() - self.began <= power.IDLE_S

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        self.looks += 1
        if self.looks in self.failing:
            raise RuntimeError("GPU is lost")
        return index

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return 70_000 if self.idle() else 700_000

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        return {1: 1980 - 10 * self.looks, 2: 3201}[kind]

    def nvmlDeviceGetTemperature(self, handle, kind):  # noqa: N802
        return 40 + self.looks

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):  # noqa: N802
        return 0x01 if self.idle() else 0x04

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        if not self.energy:
            raise RuntimeError("not supported")
        return 1_000_000 + 70_000 * self.looks

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return [SimpleNamespace(pid=999_999_999)]


@pytest.fixture(autouse=True)
def _brief_idleness(monkeypatch):
    monkeypatch.setattr(power, "IDLE_S", 0.3)


def test_samples_are_written_read_and_summed_up(tmp_path):
    with power.sampling(tmp_path, FakeNvml(), 0):
        time.sleep(0.5)
    found = power.read(tmp_path)
    told = power.summary(found)
    assert len(found) >= 6
    assert told.median_w == 700
    assert told.energy_j == 70 * (len(found) - 1)
    assert told.throttled == ("power cap",)
    assert told.sm_mhz[0] == 1980 - 10 * len(found)
    assert told.others == 1


def test_a_look_that_fails_is_left_out_and_harms_nothing(tmp_path):
    with power.sampling(tmp_path, FakeNvml(energy=False, failing=(2,)), 0):
        time.sleep(0.4)
    told = power.summary(power.read(tmp_path))
    assert told.energy_j is None
    assert (told.idle_w, told.median_w) == (70, 700)


def test_without_nvml_there_is_no_file(tmp_path):
    with power.sampling(tmp_path, None, 0):
        pass
    assert list(tmp_path.iterdir()) == []
    assert power.summary(power.read(tmp_path)) is None
    assert power.state([], {"timed_s": [0, 1], "load": [1, 2, 3]}) is None


def test_a_half_written_line_is_not_read(tmp_path):
    with power.sampling(tmp_path, FakeNvml(), 0):
        pass
    whole = power.read(tmp_path)
    with (tmp_path / power.FILE).open("a") as file:
        file.write(json.dumps({"at_s": 1})[:5])
    assert power.read(tmp_path) == whole


def recording(counter=True, step_s=0.1):
    """Idle at 80 W for 2 s; a case timed at 2.00 to 2.02 and loaded until 3.02 at 500 W; 200 W.

    A look every 50 ms; the counter is told every `step_s`. Under load the clock falls, by the cap.
    """
    samples, joules, told = [], 0.0, 0
    for n in range(100):
        at = n * 0.05
        loaded = 2.0 < at <= 3.02
        joules += 0.05 * (500 if loaded else 80 if at <= 2.0 else 200)
        if n % round(step_s / 0.05) == 0:
            told = round(joules * 1000)
        samples.append(
            Sample(
                at_s=at, power_mw=123_000, sm_mhz=1500 if 2.1 < at <= 3.02 else 1980,
                memory_mhz=3201, celsius=50 + n // 10, throttle=0x04 if 2.1 < at <= 3.02 else 0,
                energy_mj=told if counter else None, processes=int(at > 1.0),
            )
        )  # fmt: skip
    return samples


END = {"timed_s": [2.0, 2.02], "load": [2.02, 3.02, 400]}


def test_a_cases_clocks_are_of_its_timed_iterations_and_its_power_is_of_its_load(monkeypatch):
    monkeypatch.setattr(power, "IDLE_S", 1.0)
    state = power.state(recording(), END)
    assert state.sm_mhz == (1980, 1980, 1980)
    assert state.throttled == ()
    assert (state.celsius, state.memory_mhz) == (54, 3201)
    assert state.power_w == pytest.approx(500)
    assert state.idle_w == pytest.approx(80)
    assert state.load_ns == pytest.approx(2.5e6)
    assert state.load_sm_mhz == 1500
    assert state.energy_mj == pytest.approx(500 * 2.5)
    assert state.energy_above_idle_mj == pytest.approx(420 * 2.5)


def test_without_a_counter_power_is_what_the_old_gpu_reads():
    assert power.state(recording(counter=False), END).power_w == 123


@pytest.mark.parametrize("changes", [{"step_s": 2.0}, {"end": [2.02, 2.32, 100]}])
def test_power_that_the_counter_cannot_tell_is_none_and_says_why(changes):
    end = {**END, "load": changes.get("end", END["load"])}
    state = power.state(recording(step_s=changes.get("step_s", 0.1)), end)
    assert state.power_w is None
    assert state.energy_mj is None
    assert state.energy_above_idle_mj is None
    assert "counter" in state.why
    assert state.sm_mhz == (1980, 1980, 1980)


def test_a_case_without_a_load_has_clocks_and_nothing_to_explain():
    state = power.state(recording(), {**END, "load": None})
    assert (state.power_w, state.why) == (None, "")
    assert power.state(recording(), {"timed_s": None, "load": None}) is None
    assert power.state(recording(), {"timed_s": [90.0, 91.0], "load": None}) is None


def test_a_recording_is_judged_without_its_loads():
    assert power.summary(recording(), [END]).throttled == ()
    assert power.summary(recording()).throttled == ("power cap",)


def test_the_manifest_brings_the_state_back_and_needs_none():
    state = power.state(recording(), END)
    outcome = Outcome("done", "0001", gpu=replace(state, throttled=("power cap",)))
    assert Outcome.from_json(json.loads(json.dumps(outcome.as_json()))) == outcome
    old = {"status": "done", "chunk": "1", "detail": "", "untraced_ns": 1.0,
           "peak_memory_bytes": None}  # fmt: skip
    assert Outcome.from_json(old).as_json() == old


SHAPE = {
    "architectures": ["DeepseekV32ForCausalLM"], "hidden_size": 96, "num_attention_heads": 8,
    "q_lora_rank": 48, "kv_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "index_n_heads": 4, "index_head_dim": 32, "index_topk": 64,
    "num_hidden_layers": 1, "max_position_embeddings": 512,
}  # fmt: skip
LIE = """
import sys
from dsa_profiler.capture import power, recording
power.IDLE_S = 3.0
order = recording._order
recording._order = lambda *given: {**order(*given), "device": "cpu"}
from dsa_profiler.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The only lie beside nvidia-smi and NVML: the worker of this GPU session runs on the CPU.

A second of idling says little on a machine so busy that the sampler waits for its turn.
"""


def run(tmp_path: Path, *more: str, visible: str | None = None) -> Path:
    """A whole `run` on a machine that shows a GPU; returns its session."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 'NVIDIA H200, 9.0, 570.86, 143771'\n")
    smi.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{smi.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(HERE / "fake_nvml"),
    }
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    environment |= {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    done = subprocess.run(
        [
            sys.executable, "-c", LIE, "run", "--workload", "reference", "--tracer", "torch",
            "--model", str(tmp_path / "config.json"), "--preset", "smoke", "--mode", "context",
            "--seq-lens", "16", "--batch-sizes", "1,2", "--output", str(tmp_path), "--name", "s",
            *more,
        ],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path / "traces" / "s"


def rows(session: Path) -> list[dict[str, str]]:
    with (session / "dsa_context_bf16_perf.txt").open() as file:
        return list(csv.DictReader(file))


def test_a_whole_run_brings_power_into_the_tables(tmp_path, capsys):
    folder = run(tmp_path, "--power", "4")
    for row in rows(folder):
        assert float(row["power"]) == pytest.approx(600, rel=0.1)
        assert float(row["power_idle_w"]) == pytest.approx(100, rel=0.1)
        gross, above = float(row["energy_mj"]), float(row["energy_above_idle_mj"])
        assert gross == pytest.approx(float(row["power"]) * float(row["load_ms"]), rel=1e-3)
        assert gross - above == pytest.approx(
            float(row["power_idle_w"]) * float(row["load_ms"]), rel=1e-3
        )
        assert float(row["sm_mhz"]) == 1980
        assert row["throttled"] == "power cap"
    results, session = pipeline.analyze(folder), sessions.load(folder)
    slugs = {w.slug for c in results.cases for w in c.warnings}
    assert "gpu-throttled" in slugs
    assert "power-unmeasured" not in slugs
    # A CPU's rows are refused by the export, so the timing is the one thing said for them here.
    on_gpu = replace(results, cases=tuple(replace(c, timing="gpu") for c in results.cases))
    table = module_rows.module_rows(on_gpu, session)["context"]
    assert table["power"].tolist() == [c.gpu.power_w for c in results.cases]
    assert all(isinstance(o.gpu, GpuState) for o in session.outcomes.values())
    slug = session.plan.cases[0].slug
    assert main(["analyze", str(folder), "--case", slug]) == 0
    assert "SM clock 1,980 MHz (1,980 to 1,980), 61 °C, 6" in capsys.readouterr().out
    assert main(["analyze", str(folder), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)["cases"][0]["gpu"]
    assert state["energy_mj"] == pytest.approx(state["power_w"] * state["load_ns"] / 1e6)


def test_no_load_no_power_of_a_gpu_named_by_its_uuid(tmp_path):
    folder = run(tmp_path, "--power", "0", visible="GPU-8f1d4f0e-1b7f-4f1e-9a52-2d1a2f8f2c11")
    for row in rows(folder):
        assert (row["power"], row["energy_mj"]) == ("", "")
        assert float(row["sm_mhz"]) == 1980
    events = (folder / "chunks/0001/outcome.jsonl").read_text().splitlines()
    assert all(json.loads(e).get("load") is None for e in events)
