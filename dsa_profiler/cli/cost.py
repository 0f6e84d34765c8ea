"""What a case will cost in seconds, by the roofline: for packing and for the time left.

    cost = fixed + 2 x filling the cache + rounds x (FLOOR_SHARE^-1 x floor + launches)

Two passes a case (untraced, traced), each with warm-up and iterations. Only proportions matter to
packing, and the time left is corrected by what has ended, so a machine that is not known is taken
for a nominal one. Shards must be alike on every machine and are always packed by the nominal one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dsa_profiler.model import Case, ModelShape
from dsa_profiler.session import Session

FIXED_S = 0.5
FLOOR_SHARE = 0.2
"""A layer takes about five times its floor: contexts lie at 8 to 20 % of the roofline (H200)."""
FILLING = 0.1
"""Of the memory's bandwidth, when a cache is filled with random values."""
NOMINAL = "h200_sxm"
CPU: dict[str, Any] = {"sm": 0, "sm_count": 0, "bfloat16": 1e11, "fp8": 1e11, "bandwidth": 1e10,
       "launch_ns": 2e4, "head_tile": 1, "executes_padding": False,
       "fp8_attention": False, "source": "a few cores"}  # fmt: skip


def predict(
    shape: ModelShape,
    cases: Iterable[Case],
    device: str = "",
    rounds: int = 26,
    fixed_s: float = FIXED_S,
) -> dict[Case, float]:
    """Seconds by case. `device` is a GPU's name, `cpu`, or what is not known; `rounds` the steps
    of both passes together; `fixed_s` what every case takes besides.
    """
    import numpy as np

    from dsa_profiler.analysis.roofline import LAUNCHES, Points, time, work

    system, found = _system(device), dict[Case, float]()
    groups: dict[tuple[Any, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.phase, case.dtype), []).append(case)
    for (phase, dtype), group in groups.items():
        sizes = [(c.batch_size, c.seq_len, c.prefix, c.num_heads) for c in group]
        at = Points(phase, *np.array(sizes, dtype=np.float64).T)
        stages = work(shape, at, system, kv=dtype).values()
        step = sum(time(w.executed, w, system) for w in stages) / FLOOR_SHARE / 1e9
        cache = at.batch * (at.before + at.rows) * 2 * (shape.kv_lora_rank + shape.qk_rope_head_dim)
        filling = 2 * cache / (FILLING * system.bandwidth)
        launches = sum(LAUNCHES.values()) * system.launch_ns / 1e9
        seconds = fixed_s + filling + rounds * (step + launches)
        found.update(zip(group, seconds.tolist(), strict=True))
    return found


def rounds_of(session: Session) -> int:
    """Steps of a case in both passes together; more where a goal has them go on."""
    return 2 * (int(session.settings["warmup"]) + int(session.settings["iterations"]))


def of(session: Session, cases: Iterable[Case]) -> dict[Case, float]:
    """Seconds by case of a session, on its own machine as far as it is known yet."""
    settings, about = session.settings, session.environment
    gpus = about.get("gpus") or [{}]
    device = about.get("device_name") or gpus[0].get("name", "")
    cuda = settings.get("device") == "cuda"
    goal = settings.get("goal") or {"budget_s": 0.0}
    loop = settings.get("power_s", 0.0) if cuda else 0.0
    fixed = FIXED_S + goal["budget_s"] + loop
    return predict(session.model, cases, device if cuda else "cpu", rounds_of(session), fixed)


def _system(device: str) -> Any:
    from dsa_profiler.analysis import systems

    if device == "cpu":
        return systems.System(name="cpu", **CPU)
    return systems.of_device(device) or systems.load(NOMINAL)
