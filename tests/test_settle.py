"""The stopping rule of a measurement: the interval of the median, checked by simulation."""

import random
from itertools import count
from statistics import median

import pytest

from dsa_profiler.workloads.settle import MOST, Goal, interval, measure, warm_up, width


def test_too_few_times_have_no_interval():
    assert interval([1.0] * 5) is None
    assert width([1.0] * 5) == float("inf")


def test_six_times_are_enclosed_by_their_extremes():
    """2 x 2^-6 = 3.1 % outside, the first count that keeps 95 %."""
    assert interval([5, 1, 6, 2, 4, 3]) == (1, 6)


@pytest.mark.parametrize("size", [6, 10, 25, 60])
def test_the_interval_holds_the_true_median_of_a_skewed_law_as_often_as_it_says(size):
    draw, trials = random.Random(size), 2000
    held = 0
    for _ in range(trials):
        low, high = interval([draw.lognormvariate(0, 1) for _ in range(size)])
        held += low <= 1.0 <= high  # the median of this law is 1
    assert held / trials >= 0.95 - 3 * (0.05 * 0.95 / trials) ** 0.5


def noisy(spread, seed=0):
    draw = random.Random(seed)
    return lambda: 100.0 * draw.lognormvariate(0, spread)


def test_without_a_goal_the_count_is_by_decree():
    times, met = measure(noisy(1.0), 5, None)
    assert (len(times), met) == (5, True)


def test_more_noise_takes_more_iterations_until_the_interval_is_narrow():
    counts = []
    for spread in (0.001, 0.02, 0.1):
        times, met = measure(noisy(spread), 6, Goal(0.03, 60), clock=lambda: 0.0)
        assert met
        assert width(times) <= 0.03
        assert median(times) == pytest.approx(100, rel=0.05)
        counts.append(len(times))
    assert counts == sorted(counts)
    assert counts[0] == 6


def test_what_never_settles_ends_by_budget_or_by_count_and_says_so():
    ticks = count()
    times, met = measure(noisy(2.0), 6, Goal(1e-6, 20), clock=lambda: float(next(ticks)))
    assert not met
    assert 20 <= len(times) <= 30
    times, met = measure(noisy(2.0), 6, Goal(1e-6, 1e9), clock=lambda: 0.0)
    assert (len(times), met) == (MOST, False)


def test_a_ramp_is_warmed_through():
    """Times that fall to a plateau: warm-up ends only on it."""
    given = iter([100 * 0.8**n + 10 for n in range(200)])
    taken = []

    def once():
        taken.append(next(given))
        return taken[-1]

    warm_up(once, 2, Goal(0.02, 1e9), clock=lambda: 0.0)
    assert taken[-1] == pytest.approx(10, rel=0.1)
