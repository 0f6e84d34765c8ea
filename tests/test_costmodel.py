"""The cost model: what it must recover, what it must never say, and what it refuses."""

import time

import numpy as np
import pandas as pd
import pytest
from cost_factory import H200, V32, points, rows, staged, truth
from hypothesis import given, settings
from hypothesis import strategies as st

from dsa_profiler.analysis import costmodel, hull, measured, residual, systems, terms
from dsa_profiler.analysis.roofline import Points
from dsa_profiler.columns import MODULE_HEADER, PERF_HEADER, PREDICTED
from dsa_profiler.errors import InputError
from dsa_profiler.model import Case

FITTED = costmodel.fit(V32, H200, rows())


@pytest.fixture(scope="module")
def model():
    return FITTED


def at(phase, *cases):
    return Points(phase, *np.array(cases, float).T)


def errors(model, where):
    return np.abs(model.predict(where).ns / truth(where) - 1)


def test_it_recovers_what_made_the_rows(model):
    assert np.quantile(errors(model, model.rows.at), 0.95) < 0.015


def test_wave_steps_between_the_rows_are_not_smeared(model):
    # 132 SMs, two tiles a token at 128 heads: the second wave begins at batch 67.
    one, two = model.predict(at("generation", (66, 1024, 0, 128), (67, 1024, 0, 128))).ns
    assert two - one == pytest.approx(150e3, rel=0.1)


def test_the_knee_at_top_k_is_not_smeared(model):
    before, after = model.predict(at("generation", (8, 2047, 0, 128), (8, 2048, 0, 128))).ns
    low, high = truth(at("generation", (8, 2047, 0, 128), (8, 2048, 0, 128)))
    assert after - before == pytest.approx(high - low, rel=0.3)


def gathered(system, *cases, phase="context"):
    layer = terms.Layer(V32, systems.load(system))
    return terms.table(("gathered",), layer, at(phase, *cases))[:, 0]


@pytest.mark.parametrize("case", [(1, 8192), (1, 100), (4, 512), (16, 128)])
def test_few_keys_are_fetched_twice_by_sixteen_and_thirty_two_heads_on_blackwell(case):
    eight, sixteen, many, all_heads = gathered(
        "b200_sxm", *((*case, 0, heads) for heads in (8, 16, 64, 128))
    )
    assert sixteen > 1.9 * eight
    assert many < 1.1 * eight
    assert all_heads < 1.4 * eight


@pytest.mark.parametrize("case", [(2, 8192), (8, 512), (32, 64)])
def test_more_keys_are_fetched_once_by_every_head_count(case):
    eight, sixteen = gathered("b200_sxm", (*case, 0, 8), (*case, 0, 16))
    assert sixteen == pytest.approx(eight, rel=0.02)


def test_decode_fetches_once_and_hopper_has_waves_instead():
    eight, sixteen = gathered("b200_sxm", (1, 8192, 0, 8), (1, 8192, 0, 16), phase="generation")
    assert sixteen == pytest.approx(eight, rel=0.02)
    assert gathered("h200_sxm", (1, 8192, 0, 16)) == 0


def test_head_counts_never_measured_are_predicted_from_two(model):
    given_two = costmodel.fit(V32, H200, rows(heads=(16, 128)))
    where = points(heads=(8, 32, 64))
    assert np.quantile(errors(given_two, where), 0.9) < 0.08


def test_the_last_two_lengths_are_predicted_from_the_rest():
    whole = rows("context")
    model = costmodel.fit(V32, H200, whole[whole.at.seq <= 8192])
    beyond = whole[whole.at.seq > 8192]
    found = model.predict(beyond.at)
    assert np.median(np.abs(found.ns / beyond.ns - 1)) < 0.04
    assert (found.reason == 2).all()
    assert np.mean((found.low_ns <= beyond.ns) & (beyond.ns <= found.high_ns)) >= 0.9


def test_intervals_hold_nine_in_ten_rows_that_were_left_out():
    whole = rows(noise=0.03, seed=5)
    out = np.random.default_rng(1).permutation(len(whole)) % 5 == 0
    found = costmodel.fit(V32, H200, whole[~out]).predict(whole[out].at)
    held = (found.low_ns <= whole[out].ns) & (whole[out].ns <= found.high_ns)
    assert 0.85 <= held.mean() <= 0.99


def test_reasons_say_inside_between_and_how_far_beyond(model):
    found = model.predict(
        at(
            "generation",
            (64, 4096, 0, 128),
            (64, 3000, 0, 128),
            (64, 4096, 0, 32),
            (64, 2**18, 0, 128),
            (1024, 2**14, 0, 128),
            (512, 2**16, 0, 128),
        )
    )
    assert [costmodel.REASONS[r] for r in found.reason] == [
        "inside", "between", "between", "beyond", "beyond", "beyond",
    ]  # fmt: skip
    assert found.steps.tolist() == [0, 0, 0, 1, 1, 1]
    half = np.log(found.high_ns / found.ns)
    assert half[3] > half[0]
    assert half[2] > half[1]


def test_a_spike_is_named_left_out_and_not_averaged_in():
    whole = rows()
    ns, where = whole.ns.copy(), whole.at
    ns[(where.seq == 2048) & (where.batch == 64) & (where.heads == 128)] *= 1.6
    columns = (where.batch, where.seq, where.prefix, where.heads, ns)
    model = costmodel.fit(V32, H200, measured.rows("generation", *columns))
    assert [model.spikes.case(i).slug for i in range(len(model.spikes))] == [
        "generation-b64-s2048-h128-bfloat16"
    ]
    assert errors(model, at("generation", (64, 2048, 0, 128)))[0] < 0.03


def test_doubling_every_latency_doubles_every_prediction(model):
    twice = costmodel.fit(V32, H200, rows(scale=2.0))
    where = at("generation", (3, 777, 0, 128), (64, 4096, 0, 16), (2000, 300_000, 0, 100))
    once, double = model.predict(where), twice.predict(where)
    for name in ("ns", "low_ns", "high_ns"):
        assert getattr(double, name) == pytest.approx(2 * getattr(once, name), rel=1e-6)


def test_the_order_of_rows_changes_nothing(model):
    shuffled = costmodel.fit(
        V32, H200, rows(order=np.random.default_rng(3).permutation(len(points())))
    )
    where = at("generation", (3, 777, 0, 128), (2000, 300_000, 0, 100))
    assert (shuffled.predict(where).ns == model.predict(where).ns).all()


def test_on_grid_lines_predictions_do_not_fall_with_batch_or_length_by_noise():
    model = costmodel.fit(V32, H200, rows(noise=0.003))
    line = np.unique(model.rows.at.seq), np.unique(model.rows.at.batch)
    seq, batch = (g.reshape(-1) for g in np.meshgrid(*line))
    for heads in (16.0, 48.0, 128.0):
        where = Points("generation", batch, seq, 0 * seq, np.full(len(seq), heads))
        table = model.predict(where).ns.reshape(len(line[1]), len(line[0]))
        assert (np.diff(table, axis=0) >= 0).all()
        assert (np.diff(table, axis=1) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 600), st.integers(1, 2**17), st.sampled_from((1.0, 8.0, 48.0, 64.0, 128.0)))
def test_predictions_are_positive_and_grow_but_for_noise_between_grid_lines(batch, seq, heads):
    cases = ((batch, seq, 0, heads), (batch, 2 * seq, 0, heads), (2 * batch, seq, 0, heads))
    found = FITTED.predict(at("generation", *cases))
    assert (found.low_ns > 0).all()
    assert (found.low_ns <= found.ns).all()
    assert (found.ns <= found.high_ns).all()
    here, longer, wider = found.ns
    assert min(longer, wider) >= 0.97 * here


@given(st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_a_fit_of_few_scattered_rows_stays_positive_and_finite(seed):
    rng = np.random.default_rng(seed)
    scattered = Points(
        "context", *(rng.integers(1, top, 12).astype(float) for top in (64, 8192)),
        np.zeros(12), rng.choice([16.0, 128.0], 12),
    )  # fmt: skip
    if len(np.unique(scattered.heads)) < 2 or len(np.unique(scattered.batch)) < 2:
        return
    found = costmodel.fit(
        V32, H200,
        measured.rows("context", scattered.batch, scattered.seq, scattered.prefix,
                      scattered.heads, truth(scattered) * np.exp(0.3 * rng.standard_normal(12))),
    ).predict(at("context", (1, 1, 0, 64), (7, 1000, 0, 16), (500, 100_000, 512, 256)))  # fmt: skip
    assert np.isfinite(found.high_ns).all()
    assert (found.low_ns > 0).all()


def made(**columns):
    base = {"batch": [1, 2, 4, 8] * 4, "seq": np.repeat([64, 256, 1024, 4096], 4),
            "prefix": [0] * 16, "heads": [128] * 16, "ns": np.linspace(1e5, 9e6, 16)}  # fmt: skip
    base.update(columns)
    return measured.rows("context", *(base[k] for k in ("batch", "seq", "prefix", "heads", "ns")))


@pytest.mark.parametrize("bad", [float("nan"), 0.0, -1.0, float("inf")])
def test_a_latency_that_is_none_is_named(bad):
    ns = np.linspace(1e5, 9e6, 16)
    ns[5] = bad
    with pytest.raises(InputError, match="context-b2-s256-h128-bfloat16"):
        made(ns=ns)


@pytest.mark.parametrize(
    ("columns", "what"),
    [({"batch": [4] * 16}, "one batch size"), ({"seq": [64] * 16}, "one sequence length")],
)
def test_one_batch_size_or_one_length_makes_no_model(columns, what):
    with pytest.raises(InputError, match=what):
        made(**columns)


def test_one_row_makes_no_model():
    with pytest.raises(InputError, match="1 row "):
        measured.rows("context", [1], [64], [0], [128], [1e6])


def test_one_head_count_says_nothing_about_another():
    model = costmodel.fit(V32, H200, rows(heads=(128,)))
    with pytest.raises(InputError, match="128 heads alone say nothing about 64"):
        model.predict(at("generation", (1, 64, 0, 64)))


def module_frame(**columns):
    found = rows(heads=(128,))
    frame = pd.DataFrame(
        {
            "framework": "TRTLLM", "version": "1", "device": "NVIDIA H200",
            "op_name": "dsa_generation_module", "kernel_source": "default", "model": "m",
            "architecture": "DeepseekV32ForCausalLM", "mla_dtype": "bfloat16",
            "kv_cache_dtype": "bfloat16", "gemm_type": "fp8_block",
            "num_heads": found.at.heads.astype(int), "batch_size": found.at.batch.astype(int),
            "isl": 1, "tp_size": 1, "step": found.at.seq.astype(int), "latency": found.ns / 1e6,
        }
    )  # fmt: skip
    assert tuple(frame.columns) == MODULE_HEADER
    return frame.assign(**columns)


def test_module_tables_and_perf_tables_read_as_the_same_rows():
    frame = module_frame()
    ((key, found),) = measured.of_frame(frame, "generation").items()
    assert key == ("DeepseekV32ForCausalLM", "fp8_block", "bfloat16")
    perf = frame.assign(dsa_dtype="bfloat16", isl=frame.step, step=1, index_n_heads=64,
                        index_topk=2048)[list(PERF_HEADER)]  # fmt: skip
    ((_, same),) = measured.of_frame(perf, "generation").items()
    assert (found.ns == same.ns).all()
    assert (found.at.seq == same.at.seq).all()


@pytest.mark.parametrize(("column", "what"), [("device", "devices"), ("version", "versions")])
def test_rows_of_two_machines_make_no_model(column, what):
    frame = module_frame()
    frame[column] = np.where(np.arange(len(frame)) % 2, "a", "b")
    with pytest.raises(InputError, match=f"several {what}: a, b"):
        measured.of_frame(frame, "generation")


def test_predicted_rows_never_count_as_measured():
    frame = module_frame()
    filled = frame.assign(kernel_source=f"{PREDICTED}_between", latency=1e9)
    both = pd.concat([frame, filled])
    ((_, found),) = measured.of_frame(both, "generation").items()
    assert len(found) == len(frame)


def test_a_breakdown_is_fitted_stage_by_stage():
    results = staged()
    ((key, found),) = measured.of_results(results).items()
    assert key == ("generation", "bfloat16")
    model = costmodel.fit(V32, H200, found)
    where = at("generation", (67, 3000, 0, 128), (67, 300, 0, 128))
    by_stage = model.by_stage(where)
    assert by_stage["mqa_logits"][0] == pytest.approx(5e3 + 0.03 * 67 * 3000, rel=0.15)
    assert by_stage["mqa_logits"][1] == 0
    assert by_stage["topk"][1] == 0
    assert by_stage["sparse_attn"][0] == pytest.approx(300e3, rel=0.05)
    total = sum(stage[0] for stage in by_stage.values())
    assert model.predict(where).ns[0] == pytest.approx(1.1 * total, rel=0.03)


def test_the_surface_alone_goes_through_smooth_data_and_fades_far_away():
    grid = points(heads=(128,))
    where = residual.axes(grid, 2048)
    bump = 0.2 * np.exp(-((where["seq"] - 10) ** 2) / 8)
    surface = residual.smooth(where, bump)
    assert np.abs(surface.at(where) - bump).max() < 0.05
    assert surface.at(where) == pytest.approx(surface.here())
    far = residual.axes(at("generation", (2.0**40, 2.0**60, 0, 128)), 2048)
    assert abs(surface.at(far)[0]) < 0.05


def test_weights_are_never_negative_and_give_back_an_exact_sum():
    grid = points(heads=(64, 128))
    form = ("call", "tokens", "token_heads", "batch_keys")
    matrix = terms.table(form, terms.Layer(V32, H200), grid)
    exact = matrix @ [5e4, 90, 3, 0.01]
    assert matrix @ terms.weigh(form, matrix, exact) == pytest.approx(exact, rel=0.02)
    noise = np.exp(np.random.default_rng(0).standard_normal(len(grid)))
    assert (terms.weigh(form, matrix, noise * 1e5) >= 0).all()


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
def test_distance_is_zero_just_where_a_row_dominates(cells, asked):
    known = at("context", *((2.0**b, 2.0**s, 0, 64) for b, s in cells))
    where = at("context", (2.0 ** asked[0], 2.0 ** asked[1], 0, 64))
    dominated = any(b >= asked[0] and s >= asked[1] for b, s in cells)
    below = asked[0] < min(b for b, _ in cells) or asked[1] < min(s for _, s in cells)
    assert (hull.distance(known, where).sum() == 0) == (dominated and not below)


@pytest.mark.slow
def test_four_thousand_rows_fit_in_seconds_and_a_hundred_thousand_cases_are_predicted_in_one():
    big = rows("context", heads=tuple(range(8, 129, 3)))
    assert len(big) >= 2000
    begin = time.perf_counter()
    model = costmodel.fit(V32, H200, big)
    fitted = time.perf_counter()
    rng = np.random.default_rng(0)
    model.predict(Points("context", *(rng.integers(1, n, 100_000).astype(float)
                                      for n in (256, 32768)),
                         np.zeros(100_000), rng.choice([64.0, 128.0], 100_000)))  # fmt: skip
    assert fitted - begin < 30
    assert time.perf_counter() - fitted < 15


def test_a_case_comes_back_from_points():
    case = Case("context", 4, 512, 64, "fp8", 128)
    assert at("context", (4, 512, 128, 64)).case(0, "fp8") == case
