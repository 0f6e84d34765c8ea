"""What `run` is asked to do: defaults, overlaid by a TOML file, overlaid by flags.

The TOML keys are the fields below, by the same names; a key that is none of them, or a value of
another type, is refused rather than ignored.
"""

from __future__ import annotations

import difflib
import heapq
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from dsa_profiler.errors import InputError, UsageError
from dsa_profiler.model import Case, Dtype, ModelShape, Phase
from dsa_profiler.plan import GRIDS, Grid, Plan, build

MODES: dict[str, tuple[Phase, ...]] = {
    "context": ("context",),
    "generation": ("generation",),
    "both": ("context", "generation"),
}
TRACERS = ("auto", "nsys", "torch")
DEVICES = ("auto", "cpu", "cuda")
ROUNDS = {"smoke": (2, 5), "standard": (3, 10)}
"""Warm-up and measured iterations of a preset, where nothing else is asked."""


Costs = Callable[[tuple[Case, ...]], Mapping[Case, float]]


def alike(cases: tuple[Case, ...]) -> dict[Case, float]:
    """Costs where nothing predicts them."""
    return dict.fromkeys(cases, 1.0)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run. `auto` and None are settled by the machine or the preset.

    batch_sizes, seq_lens   replace the axes of the preset's grid; its limit stays
    prefixes                cached tokens before the new ones, context only
    settle                  wanted width of the median's 95 % interval, as a share of it;
                            warm-up and iterations then go on until it is met or `budget`
                            seconds are spent
    power                   seconds under load a case, to measure its power; 0 for none
    timeout                 seconds that one case may take
    options                 the workload's own (cuda_graph, gemm_type, ...), by name
    chunk_cases             most cases in one recording
    gpus                    `1`, `all` of one node, or a list like `0,2`: one worker each
    shard                   `i/n`: only the i-th of n parts of the plan, counted from 0
    output                  folder that gets `traces/<name>/` and `reports/<name>/`
    """

    mode: str = "both"
    preset: str = "auto"
    batch_sizes: tuple[int, ...] | None = None
    seq_lens: tuple[int, ...] | None = None
    num_heads: tuple[int, ...] | None = None
    prefixes: tuple[int, ...] = (0,)
    dtypes: tuple[Dtype, ...] = ("bfloat16",)
    model: str = "deepseek-v3.2"
    workload: str = "auto"
    tracer: str = "auto"
    nsys: str | None = None
    device: str = "auto"
    warmup: int | None = None
    iterations: int | None = None
    settle: float | None = None
    budget: float = 10.0
    seed: int = 0
    power: float = 1.0
    timeout: float = 600.0
    chunk_cases: int = 32
    gpus: str = "1"
    shard: str | None = None
    output: str = "."
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, MODES)
        _one_of("preset", self.preset, ("auto", *GRIDS))
        _one_of("tracer", self.tracer, TRACERS)
        _one_of("device", self.device, DEVICES)
        for dtype in self.dtypes:
            _one_of("dtype", dtype, get_args(Dtype))
        least_of = {"warmup": 0, "iterations": 1, "chunk_cases": 1, "seed": 0, "power": 0}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UsageError("value-small", f"{name} = {value} is below {least}", "raise it")
        for name in ("timeout", "budget", "settle"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError("value-small", f"{name} = {value} is not above 0", "raise it")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", self.name, re.ASCII):
            raise UsageError(
                "name-malformed",
                f"{self.name!r} cannot name a session",
                "use letters, digits, dots, dashes and underscores",
            )

    def settled(self, cuda: bool) -> RunConfig:
        """The preset and its iterations, settled for a machine with or without CUDA."""
        preset = self.preset if self.preset != "auto" else "standard" if cuda else "smoke"
        warmup, iterations = ROUNDS[preset]
        return replace(
            self,
            preset=preset,
            warmup=warmup if self.warmup is None else self.warmup,
            iterations=iterations if self.iterations is None else self.iterations,
        )

    def plan(self, model: ModelShape, costs: Costs = alike) -> Plan:
        """The cases of a settled configuration; of a shard, its part by what `costs` predicts. They
        must be the same on every machine.
        """
        grids = [self._grid(phase, model) for phase in MODES[self.mode]]
        plan = build(grids, model.max_position_embeddings)
        return plan if self.shard is None else _part(plan, self.shard, costs(plan.cases))

    def _grid(self, phase: Phase, model: ModelShape) -> Grid:
        heads = (model.num_attention_heads,) if self.num_heads is None else self.num_heads
        grid = GRIDS[self.preset](phase, heads)
        return replace(
            grid,
            batch_sizes=grid.batch_sizes if self.batch_sizes is None else self.batch_sizes,
            seq_lens=grid.seq_lens if self.seq_lens is None else self.seq_lens,
            dtypes=self.dtypes,
            prefixes=self.prefixes if phase == "context" else (0,),
        )


def load(path: str | None, flags: Mapping[str, Any]) -> RunConfig:
    """Defaults < the TOML file at `path` < `flags` (those that are not None)."""
    values = _from_toml(Path(path)) if path else {}
    given = {name: value for name, value in flags.items() if value is not None}
    if "options" in given:
        given["options"] = {**values.get("options", {}), **given["options"]}
    return RunConfig(**{**values, **given})


def _from_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError("config-not-found", f"no such file: {path}", "check --config") from None
    except (OSError, ValueError) as error:
        raise InputError(
            "config-unreadable", f"cannot read {path}: {error}", "give a valid TOML file"
        ) from None
    return {name: _value(name, value, path) for name, value in data.items()}


def _value(name: str, value: Any, path: Path) -> Any:
    kinds = {f.name: str(f.type) for f in fields(RunConfig)}
    kind = kinds.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, kinds, n=1)
        cure = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(kinds)}"
        raise InputError("config-key", f"{path}: unknown key {name!r}", cure)
    if kind.startswith("tuple"):
        item = int if "int" in kind else str
        if isinstance(value, list) and all(_is(item, v) for v in value):
            return tuple(value)
        wanted = f"a list of {'whole numbers' if item is int else 'strings'}"
    elif kind.startswith("Mapping"):
        if isinstance(value, dict):
            return value
        wanted = "a table"
    else:
        wants: tuple[type, str] = (str, "a string")
        if "int" in kind:
            wants = (int, "a whole number")
        elif "float" in kind:
            wants = (float, "a number")
        if _is(wants[0], value) or (wants[0] is float and _is(int, value)):
            return value
        wanted = wants[1]
    raise InputError("config-value", f"{path}: {name} = {value!r}", f"give {wanted}")


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _part(plan: Plan, shard: str, costs: Mapping[Case, float]) -> Plan:
    """One of n parts that cost about alike: the dearest case left goes to the cheapest part."""
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", shard, re.ASCII)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError("shard-malformed", f"no shard: {shard!r}", "give i/n with 0 <= i < n")
    bins: list[tuple[float, int, list[Case]]] = [(0.0, n, []) for n in range(int(match[2]))]
    for case in sorted(plan.cases, key=lambda c: (-costs[c], c)):
        total, number, held = heapq.heappop(bins)
        heapq.heappush(bins, (total + costs[case], number, [*held, case]))
    mine = {case for _, number, held in bins if number == int(match[1]) for case in held}
    if not mine:
        raise UsageError("grid-empty", f"shard {shard} holds no case", "use fewer shards")
    return Plan(tuple(case for case in plan.cases if case in mine), plan.skipped)


def _one_of(what: str, value: str, known: Any) -> None:
    if value not in known:
        raise UsageError(
            f"{what}-unknown", f"unknown {what} {value!r}", f"one of {', '.join(known)}"
        )
