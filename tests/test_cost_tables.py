"""The cost model on published tables: the short form of benchmarks/cost_model.py."""

import numpy as np
import pytest
from aiconfigurator_packages import shipped

from dsa_profiler.analysis import costmodel, measured, systems
from dsa_profiler.model import load_model

V32 = load_model("deepseek-v3.2")
H200 = systems.load("h200_sxm")


def table(phase, system="h200_sxm", version="1.3.0rc20"):
    found = measured.of_frame(shipped(system, version, phase), phase)
    return found["DeepseekV32ForCausalLM", "fp8_block", "bfloat16"]


def off(given, scored, system=H200):
    """|relative error| and whether the interval held, of rows that the fit did not see."""
    found = costmodel.fit(V32, system, given, "fp8").predict(scored.at)
    held = (found.low_ns <= scored.ns) & (scored.ns <= found.high_ns)
    return np.abs(found.ns / scored.ns - 1), held


@pytest.mark.parametrize("phase", ["context", "generation"])
def test_left_out_rows_inside_are_predicted_and_held(phase):
    rows = table(phase)
    spiked = measured.spikes(rows)
    out = np.random.default_rng(11).permutation(len(rows)) % 20 == 0
    wrong, held = off(rows[~out], rows[out & ~spiked])
    assert np.median(wrong) < 0.01
    assert np.quantile(wrong, 0.9) < 0.07
    assert held.mean() > 0.8


def test_the_last_length_of_context_is_predicted_within_ten_per_cent():
    rows = table("context")
    wrong, held = off(rows[rows.at.seq < 32768], rows[rows.at.seq == 32768])
    assert np.median(wrong) < 0.08
    assert np.quantile(wrong, 0.9) < 0.13
    assert held.mean() > 0.8


@pytest.mark.parametrize("other", [16, 32, 64])
@pytest.mark.parametrize("phase", ["context", "generation"])
def test_other_head_counts_on_hopper_are_predicted_from_any_one_and_all(phase, other):
    rows = table(phase)
    given = np.isin(rows.at.heads, (other, 128))
    wrong, held = off(rows[given], rows[~given & ~measured.spikes(rows)])
    assert np.quantile(wrong, 0.9) < 0.08
    assert held.mean() > 0.9


def test_the_last_length_is_predicted_as_well_as_it_can_be_measured_again():
    rows, second = table("context"), table("context", version="1.3.0rc23")
    assert (rows.at.seq == second.at.seq).all()
    assert (rows.at.heads == second.at.heads).all()
    last = rows.at.seq == 32768
    wrong, _ = off(rows[~last], rows[last])
    again = np.abs(second.ns[last] / rows.ns[last] - 1)
    assert np.quantile(wrong, 0.9) <= np.quantile(again, 0.9)
    assert np.median(wrong) <= 1.1 * np.median(again)


def test_sixteen_and_thirty_two_heads_on_blackwell_are_predicted_though_they_take_another_kernel():
    rows = table("context", "b200_sxm")
    given = np.isin(rows.at.heads, (8, 128))
    one = rows.at.batch == 1
    unseen = np.isin(rows.at.heads, (16, 32))
    slower = rows.ns[one & (rows.at.heads == 16) & (rows.at.seq >= 4096)]
    faster = rows.ns[one & (rows.at.heads == 64) & (rows.at.seq >= 4096)]
    assert (slower > faster).mean() > 0.9  # a quarter of the heads, and slower
    wrong, held = off(rows[given], rows[unseen & one], systems.load("b200_sxm"))
    assert np.quantile(wrong, 0.9) < 0.08
    assert held.mean() >= 0.9


def test_the_spikes_of_decode_lie_just_past_top_k():
    rows = table("generation")
    found = rows[measured.spikes(rows)]
    assert len(found) > 20
    assert set(found.at.seq) == {2048}
