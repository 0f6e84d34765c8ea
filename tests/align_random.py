"""One random pair of recordings from a seed: a server, and the difference planted in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from align_factory import (
    CAT,
    DECODE,
    DECODE_CASE,
    NORM,
    PREFILL,
    PREFILL_CASE,
    SHORT_DECODE,
    SPARSE,
    STYLES,
    K,
    Server,
    retiled,
    server,
    slower,
    standalone,
    with_extra,
    without,
)

from dsa_profiler.columns import Trace
from dsa_profiler.model import Case

LAYERS = {
    "decode": (DECODE, DECODE_CASE),
    "prefill": (PREFILL, PREFILL_CASE),
    "short": (SHORT_DECODE, Case("generation", 64, 1023)),
}
EXTRAS = (
    K("", "void some::unknown_kernel<3>(x)", 3000),
    K("", "nvjet_tst_8x8_64x4_1x1_h_bz_NNT", 5000),
    K("", NORM, 2500),
    K("", "[memset]", 1500),
    K("", SPARSE, 40000),
    K("", "void tensorrt_llm::kernels::fusedCatFp8Kernel<(bool)1>(x)", 2000),
    K("", "void at::native::vectorized_elementwise_kernel<4, FillFunctor<float>>(x)", 2000),
    K("", CAT, 4000),
)  # fmt: skip
KINDS = ("slow", "fast", "missing", "extra", "renamed", "missing_some", "extra_some")
PerLayer = Callable[[int], dict[int, Sequence[K]]]


@dataclass(frozen=True)
class Pair:
    """`planted` is empty where both sides are equal but for tiles, noise and surroundings."""

    planted: str
    how: Server
    standalone: Trace
    server: Trace


def pair(seed: int) -> Pair:
    """The pair of a seed; one in five is equal."""
    rng = random.Random(seed)
    phase = rng.choice(list(LAYERS))
    kernels, case = LAYERS[phase]
    how = Server(
        layers=rng.choice([4, 6, 9]),
        steps=rng.choice([3, 4]),
        ranks=rng.choice([1, 1, 2]),
        mode=rng.choice(["node", "eager", "captured", "marks"]),
        style=rng.choice([s for s in STYLES if s != "vllm_kv"]),
        case=case,
        dense_layers=rng.choice([0, 1, 2]),
        surroundings=rng.random() < 0.75,
        other_steps=rng.choice([(), ((1, 3), (0, 7))]),
    )
    if how.style == "none":
        how = replace(how, other_steps=())
    planted, changed, some = _plant(rng, kernels)
    if rng.random() < 0.2:
        planted, changed, some = "", kernels, None
    if rng.random() < 0.3:
        changed = retiled(changed, seed)
    per_layer = some(how.layers) if some else None
    return Pair(
        f"{planted} ({phase})" if planted else "",
        how,
        standalone(kernels, case, seed=seed + 1),
        server(changed, how, per_layer, seed=seed),
    )


def _plant(rng: random.Random, kernels: Sequence[K]) -> tuple[str, Sequence[K], PerLayer | None]:
    kind, place = rng.choice(KINDS), rng.randrange(len(kernels))
    stage, extra = kernels[place].stage, rng.choice(EXTRAS)
    if kind in ("slow", "fast"):
        factor = 2.6 if kind == "slow" else 1 / 2.6
        return f"{kind} {stage}", slower(kernels, stage, factor), None
    if kind == "renamed":
        named = [n for n, k in enumerate(kernels) if "nvjet" not in k.name and k.stage]
        place = rng.choice([n for n in named if "cutlass" not in kernels[n].name])
        changed = [
            replace(k, name="void other::brand_new_kernel<7>(x)") if n == place else k
            for n, k in enumerate(kernels)
        ]
        return f"renamed {kernels[place].stage}", changed, None
    if kind.startswith("missing"):
        changed, what = without(kernels, place), f"{kind} {place} {stage}"
    else:
        place = rng.randrange(1, len(kernels))
        changed, what = with_extra(kernels, place, extra), f"{kind} {place} {extra.name[:40]}"
    if kind.endswith("_some"):
        return what, kernels, lambda layers: dict.fromkeys(range(layers // 2), changed)
    return what, changed, None
