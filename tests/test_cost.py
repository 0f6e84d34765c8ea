"""What a case will cost, the shards made of it, and the time left."""

import pytest

from dsa_profiler import session as sessions
from dsa_profiler.analysis import roofline, systems
from dsa_profiler.cli import cost, main, progress
from dsa_profiler.model import Case, load_model
from dsa_profiler.plan import build, standard

MODEL = load_model("deepseek-v3.2")
CASES = build([standard("context"), standard("generation")]).cases


@pytest.mark.parametrize(
    "device", ["NVIDIA H200", "NVIDIA B200", "cpu", "some GPU of tomorrow", ""]
)
def test_every_case_costs_more_than_its_floors_and_its_fixed_part(device):
    costs = cost.predict(MODEL, CASES, device, rounds=26)
    assert tuple(costs) == CASES
    system = cost._system(device)
    for case in CASES[::17]:
        found = roofline.floor(MODEL, case, system)
        least = cost.FIXED_S + 26 * (found.floor_ns / cost.FLOOR_SHARE + found.launch_ns) / 1e9
        assert costs[case] == pytest.approx(least, rel=0.02) or costs[case] > least


def test_more_work_costs_more_and_no_case_is_free():
    sizes = [Case("context", b, s, 128) for b, s in ((1, 1), (1, 4096), (1, 32768), (2, 32768))]
    steps = [Case("generation", b, 4095, h) for b, h in ((1, 8), (64, 8), (64, 128), (1024, 128))]
    for row in (sizes, steps):
        costs = list(cost.predict(MODEL, row).values())
        assert costs == sorted(costs)
        assert costs[0] >= cost.FIXED_S
    assert cost.predict(MODEL, sizes, "NVIDIA B200")[sizes[2]] < costs[-1] * 100


def test_an_unknown_machine_is_taken_for_the_nominal_one():
    assert cost.predict(MODEL, CASES, "some GPU") == cost.predict(MODEL, CASES, "NVIDIA H200")
    assert systems.of_device("some GPU") is None


def test_shards_are_the_whole_plan_in_parts_that_cost_alike(capsys):
    parts = []
    for number in range(8):
        flags = ["run", "--dry-run", "--preset", "standard", "--shard", f"{number}/8"]
        assert main(flags) == 0
        lines = capsys.readouterr().out.splitlines()
        slugs = [line for line in lines[:-1] if not line.startswith("skip ")]
        parts.append([Case.from_slug(slug) for slug in slugs])
    assert sorted(case for part in parts for case in part) == sorted(CASES)
    costs = cost.predict(MODEL, CASES)
    sums = [sum(costs[case] for case in part) for part in parts]
    assert max(sums) < 1.02 * min(sums)


def story(case, passes=2, steps=3):
    """What a worker says of a case that goes well."""
    for _ in range(passes):
        yield {"event": "start", "case": case.slug}
        yield from [{"event": "beat", "case": case.slug}] * steps
    yield {"event": "end", "case": case.slug, "status": "done"}


def test_the_time_left_is_right_when_all_cases_are_off_by_one_factor():
    now = 0.0
    costs = {case: float(n % 7 + 1) for n, case in enumerate(CASES)}
    estimate = progress.Estimate(costs, 6, lambda: now)
    assert estimate.left_s is None
    whole, looks = 3 * sum(costs.values()), []
    for case in CASES:
        for event in story(case):
            now += 3 * costs[case] / 6 if event["event"] == "beat" else 0.0
            estimate.add(event)
            looks.append((now, estimate.left_s))
    for at, left in looks[8:]:
        assert left == pytest.approx(whole - at, abs=1e-6 * whole)
    assert (estimate.ended, estimate.done) == (len(CASES), pytest.approx(estimate.whole))


def test_a_case_is_credited_once_whatever_happens_to_it():
    costs = dict.fromkeys(CASES[:3], 1.0)
    estimate = progress.Estimate(costs, 6)
    crashed, *others = costs
    for event in [*list(story(crashed))[:6], *story(crashed, steps=9), *story(crashed)]:
        estimate.add(event)
    assert (estimate.ended, estimate.done) == (1, pytest.approx(1.0))
    for case in others:
        estimate.add({"event": "end", "case": case.slug, "status": "oom"})
    assert (estimate.ended, estimate.left_s) == (3, pytest.approx(0.0, abs=1e-9))


def test_the_clock_is_told_in_hours():
    assert [progress.clock(s) for s in (None, 0.4, 61, 36_000)] == [
        "-", "0:00:00", "0:01:01", "10:00:00"
    ]  # fmt: skip


def test_a_session_is_predicted_on_its_own_machine_and_with_its_own_budget():
    goal = {"width": 0.02, "budget_s": 9.0}
    made = sessions.Session(
        name="s", created="", workload="kernels", tracer="nsys", model=MODEL,
        plan=build([standard("context")]), environment={"device_name": "NVIDIA B200"},
        settings={"warmup": 1, "iterations": 2, "device": "cuda", "goal": goal},
    )  # fmt: skip
    some = made.plan.cases[:5]
    assert cost.rounds_of(made) == 6
    assert cost.of(made, some) == cost.predict(MODEL, some, "NVIDIA B200", 6, cost.FIXED_S + 9.0)
