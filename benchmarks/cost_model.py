"""How far off is the cost model? Left-out rows of published DSA tables, beside linear brackets.

    python benchmarks/cost_model.py --seed 0 [--tables DIR] [--systems h200_sxm,b200_sxm]

The tables are the TensorRT-LLM DSA module tables of aiconfigurator-core (an installed package, or
--tables with its `systems/data` folder). Nothing is fitted to a row that is scored: every split
refits the model from nothing. The opponent gets the same rows in the same run: linear brackets
along the length (then heads), and utilisation held against our own roofline beyond the grid. Rows
that exceed both neighbours in length (spikes) are left out of both and counted.

Splits: `inside` (a seeded twentieth of the rows at a time, scored where a length is left on either
side), `length +1/+2` and `batch +1/+2` (the last, the last two of every line left out, the last
scored), `heads` (two head counts of different padding given, all others scored).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dsa_profiler.analysis import costmodel, measured, roofline, systems
from dsa_profiler.analysis.measured import Rows
from dsa_profiler.analysis.roofline import Points
from dsa_profiler.analysis.systems import Gemm, System
from dsa_profiler.errors import InputError
from dsa_profiler.model import FAMILIES, ModelShape, Phase, load_model

MODELS = {"DEEPSEEKV32": "deepseek-v3.2", "GLM5": "glm-5"}
GEMM: dict[str, Gemm] = {"bfloat16": "bfloat16", "fp8_block": "fp8", "nvfp4": "nvfp4"}
FILES: dict[Phase, str] = {
    "context": "dsa_context_module_perf.parquet",
    "generation": "dsa_generation_module_perf.parquet",
}
WANTED = {
    ("context", "length +1"): (0.04, 0.10),
    ("context", "length +2"): (0.06, 0.15),
    ("context", "batch +1"): (0.04, 0.10),
    ("context", "batch +2"): (0.06, 0.15),
    ("generation", "length +1"): (0.04, 0.10),
    ("generation", "length +2"): (0.06, 0.15),
    ("generation", "batch +1"): (0.04, 0.10),
    ("generation", "batch +2"): (0.06, 0.15),
    ("generation", "knee"): (None, 0.06),
    ("context", "heads"): (None, 0.08),
    ("generation", "heads"): (None, 0.08),
}


@dataclass(frozen=True)
class Slice:
    """One table of one device and precision."""

    system: System
    version: str
    family: str
    shape: ModelShape
    gemm: Gemm
    rows: Rows

    @property
    def phase(self) -> Phase:
        return self.rows.at.phase

    @property
    def name(self) -> str:
        return f"{self.system.name} {self.family} {self.gemm}/{self.rows.dtype}"


def main() -> int:
    args = arguments()
    slices = list(load(Path(args.tables or packaged()), args.systems, args.version, args.models))
    if not slices:
        sys.exit("no DSA tables found: give --tables .../aiconfigurator_core/systems/data")
    if args.speed:
        return speed(slices)
    scores: list[pd.DataFrame] = []
    begin = time.perf_counter()
    for one in slices:
        spiked = measured.spikes(one.rows)
        if args.spikes:
            for i in np.flatnonzero(spiked):
                print(f"spike {one.name} {one.rows.case(int(i)).slug}", file=sys.stderr)
        for split in splits(one.rows, spiked, args):
            if args.only and not split[0].startswith(args.only):
                continue
            found = score(one, *split)
            if len(found):
                scores.append(found.assign(system=one.system.name, phase=one.phase, spikes=0))
        print(f"{one.name} {one.phase}: {spiked.sum()} spikes left out", file=sys.stderr)
    table = pd.concat(scores, ignore_index=True)
    summary = summarise(table)
    noise = campaigns(Path(args.tables or packaged()), args.version, args.against)
    if args.json:
        document = {"seed": args.seed, "rows": summary, "noise": noise}
        print(json.dumps(document, indent=1))
    else:
        show(summary, noise, table, args)
        print(f"\n{len(slices)} tables, {time.perf_counter() - begin:.0f} s, seed {args.seed}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", help="a systems/data folder; default: the installed package")
    parser.add_argument("--systems", default="", help="comma-separated; default: all")
    parser.add_argument("--models", default="DEEPSEEKV32", help="DEEPSEEKV32,GLM5")
    parser.add_argument("--version", default="1.3.0rc20")
    parser.add_argument("--against", default="1.3.0rc23", help="second campaign, for the noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=4, help="folds to run; 0: all")
    parser.add_argument("--speed", action="store_true", help="time fits and predictions alone")
    parser.add_argument("--spikes", action="store_true", help="name the spikes on stderr")
    parser.add_argument("--only", default="", help="splits whose name begins like this")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def packaged() -> Path:
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        sys.exit("aiconfigurator_core is not installed here: give --tables")
    return Path(spec.origin).parent / "systems" / "data"


def load(root: Path, names: str, version: str, models: str) -> Iterator[Slice]:
    """Every (system, phase, model, precision) of one TensorRT-LLM version."""
    for system in names.split(",") if names else systems.names():
        for phase, file in FILES.items():
            path = root / system / "sparse_attention" / "trtllm" / version / file
            if not path.exists():
                continue
            frame = pd.read_parquet(path)
            keys = ["architecture", "mla_dtype", "kv_cache_dtype", "gemm_type"]
            for (architecture, _, kv, gemm), part in frame.groupby(keys):
                family = FAMILIES[architecture]
                if family in models.split(","):
                    shape = load_model(MODELS[family])
                    found = rows_of(part, phase, kv)
                    yield Slice(systems.load(system), version, family, shape, GEMM[gemm], found)


def rows_of(part: pd.DataFrame, phase: Phase, kv: Any) -> Rows:
    context = phase == "context"
    return measured.rows(
        phase,
        part.batch_size,
        part.isl if context else part.step,
        part.step if context else 0 * part.step,
        part.num_heads,
        part.latency * 1e6,
        kv,
    )


Split = tuple[str, Any, Any]


def splits(rows: Rows, spiked: Any, args: argparse.Namespace) -> Iterator[Split]:
    """(name, mask given to the fit, mask scored)."""
    fold = np.random.default_rng(args.seed).permutation(len(rows)) % args.folds
    for number in range(args.rounds or args.folds):
        yield "inside", fold != number, (fold == number) & ~spiked
    for axis, name in (("seq", "length"), ("batch", "batch")):
        rank, count = from_the_end(rows.at, axis)
        for step in (1, 2):
            scored = (rank == 0) & (count > step + 2) & ~spiked
            yield f"{name} +{step}", rank >= step, scored
    heads = np.unique(rows.at.heads)
    for other in heads[:-1]:
        given = np.isin(rows.at.heads, (other, heads[-1]))
        if np.ceil(other / 64) != np.ceil(heads[-1] / 64):
            yield "heads", given, ~given & ~spiked


def from_the_end(at: Points, axis: str) -> tuple[Any, Any]:
    """Place of each row on its line, counted from the last; and the length of the line."""
    others = [c for c in ("heads", "prefix", "batch", "seq") if c != axis]
    frame = pd.DataFrame({c: getattr(at, c) for c in (*others, axis)})
    grouped = frame.groupby(others)[axis]
    rank = grouped.rank(ascending=False).to_numpy().astype(int) - 1
    return rank, grouped.transform("size").to_numpy()


def score(one: Slice, split: str, given: Any, scored: Any) -> pd.DataFrame:
    """Relative errors of both models on the scored rows, and whether our interval held."""
    seen, held = one.rows[given], one.rows[scored]
    seen_clean = seen[~measured.spikes(seen)]
    if split == "inside":
        inner, line = bracket(seen_clean, held)
        held, line = held[inner], line[inner]
    elif split == "heads":
        line = along_heads(seen_clean, held)
    else:
        line = held_utilisation(one, seen_clean, held, "seq" if "length" in split else "batch")
    if not len(held):
        return pd.DataFrame()
    try:
        found = costmodel.fit(one.shape, one.system, seen, one.gemm).predict(held.at)
    except InputError as error:
        print(f"{one.name} {split}: {error.what}", file=sys.stderr)
        return pd.DataFrame()
    return pd.DataFrame(
        {
            "split": split,
            "ours": found.ns / held.ns - 1,
            "linear": line / held.ns - 1,
            "inside": (found.low_ns <= held.ns) & (held.ns <= found.high_ns),
            "width": np.log(found.high_ns / found.ns),
            "keys": held.at.before + held.at.rows,
            "given": ",".join(f"{h:g}" for h in np.unique(seen.at.heads))
            if split == "heads"
            else "",
        }
    )


def lines(rows: Rows, axis: str) -> dict[tuple[Any, ...], tuple[Any, Any]]:
    """(positions, latencies) along an axis, by the other coordinates."""
    at = rows.at
    others = [c for c in ("heads", "prefix", "batch", "seq") if c != axis]
    frame = pd.DataFrame({c: getattr(at, c) for c in (*others, axis)}).assign(ns=rows.ns)
    frame = frame.sort_values([*others, axis])
    return {key: (part[axis].to_numpy(), part.ns.to_numpy()) for key, part in frame.groupby(others)}


def keys_of(at: Points, axis: str) -> list[tuple[Any, ...]]:
    others = [c for c in ("heads", "prefix", "batch", "seq") if c != axis]
    return list(zip(*(getattr(at, c) for c in others), strict=True))


def bracket(seen: Rows, held: Rows) -> tuple[Any, Any]:
    """Linear in latency between the nearest shorter and longer row; where there are both."""
    known = lines(seen, "seq")
    inner, line = np.zeros(len(held), bool), np.full(len(held), np.nan)
    for i, key in enumerate(keys_of(held.at, "seq")):
        x, y = known.get(key, (np.zeros(0), np.zeros(0)))
        at = held.at.seq[i]
        if len(x) and x[0] < at < x[-1]:
            inner[i], line[i] = True, np.interp(at, x, y)
    return inner, line


def along_heads(seen: Rows, held: Rows) -> Any:
    """Linear in heads between the two given counts, the nearer one's value outside them."""
    known = lines(seen, "heads")
    out = np.full(len(held), np.nan)
    for i, key in enumerate(keys_of(held.at, "heads")):
        if key in known:
            out[i] = np.interp(held.at.heads[i], *known[key])
    return out


def held_utilisation(one: Slice, seen: Rows, held: Rows, axis: str) -> Any:
    """floor(case) / utilisation of the last row of its line."""
    known = lines(seen, axis)
    out = np.full(len(held), np.nan)
    for i, key in enumerate(keys_of(held.at, axis)):
        if key in known:
            x, y = known[key]
            case = held.case(i)
            size = {"seq": "seq_len", "batch": "batch_size"}[axis]
            last = type(case)(**{**case.as_json(), size: int(x[-1])})
            now, then = (
                roofline.floor(one.shape, c, one.system, one.gemm).floor_ns for c in (case, last)
            )
            out[i] = now * y[-1] / then
    return out


def speed(slices: list[Slice]) -> int:
    """Fits until 4,000 rows are fitted, then 100,000 predictions; wall and processor time."""
    rows, wall, processor = 0, time.perf_counter(), time.process_time()
    for one in slices:
        model = costmodel.fit(one.shape, one.system, one.rows, one.gemm)
        rows += len(one.rows)
        if rows >= 4000:
            break
    print(f"{rows} rows fitted: {time.perf_counter() - wall:.2f} s, "
          f"{time.process_time() - processor:.2f} s of processor time")  # fmt: skip
    rng = np.random.default_rng(0)
    top = one.rows.at
    columns = (rng.uniform(1, c.max(), 100_000).round() for c in (top.batch, top.seq))
    heads = rng.choice(np.unique(top.heads), 100_000)
    at = Points(one.phase, *columns, np.zeros(100_000), heads)
    wall, processor = time.perf_counter(), time.process_time()
    model.predict(at)
    print(f"100000 predictions: {time.perf_counter() - wall:.2f} s, "
          f"{time.process_time() - processor:.2f} s of processor time")  # fmt: skip
    return 0


def summarise(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a (phase, split, system), and one for all systems together."""
    knee = table[(table.split == "inside") & table["keys"].between(1000, 4200)]
    knee = knee[knee.phase == "generation"].assign(split="knee")
    both = pd.concat([table, knee])
    out = []
    for (phase, split), group in both.groupby(["phase", "split"], sort=False):
        parts = [*group.groupby("system", sort=False), ("all", group)]
        out += [{"phase": phase, "split": split, **line(name, part)} for name, part in parts]
    return out


def line(name: str, part: pd.DataFrame) -> dict[str, Any]:
    ours, linear = part.ours.abs(), part.linear.abs()
    return {
        "system": name,
        "rows": len(part),
        "median": float(ours.median()),
        "p90": float(ours.quantile(0.9)),
        "linear_median": float(linear.median()),
        "linear_p90": float(linear.quantile(0.9)),
        "held": float(part.inside.mean()),
        "width": float(part.width.median()),
    }


def campaigns(root: Path, version: str, against: str) -> list[dict[str, Any]]:
    """The same shapes measured twice: what no model can beat."""
    out = []
    for system in systems.names():
        for phase, file in FILES.items():
            folder = root / system / "sparse_attention" / "trtllm"
            paths = [folder / v / file for v in (version, against)]
            if not all(p.exists() for p in paths):
                continue
            key = ["architecture", "mla_dtype", "kv_cache_dtype", "gemm_type", "num_heads"]
            key += ["batch_size", "isl", "step"]
            first, second = (pd.read_parquet(p)[[*key, "latency"]] for p in paths)
            both = first.merge(second, on=key)
            off = (both.latency_x / both.latency_y - 1).abs()
            out.append(
                {"system": system, "phase": phase, "rows": len(both)}
                | {
                    n: float(off.quantile(q))
                    for n, q in (("median", 0.5), ("p90", 0.9), ("p95", 0.95))
                }
            )
    return out


def show(
    summary: list[dict[str, Any]],
    noise: list[dict[str, Any]],
    table: pd.DataFrame,
    args: argparse.Namespace,
) -> None:
    print(f"{'phase':<11}{'split':<11}{'system':<10}{'rows':>6}  ours med/p90 %   linear med/p90 %"
          "   interval holds  half-width")  # fmt: skip
    for r in summary:
        print(
            f"{r['phase']:<11}{r['split']:<11}{r['system']:<10}{r['rows']:>6}"
            f"  {100 * r['median']:5.2f} {100 * r['p90']:6.2f}   "
            f"   {100 * r['linear_median']:5.2f} {100 * r['linear_p90']:6.2f}   "
            f"   {100 * r['held']:8.1f} %    {100 * r['width']:6.1f} %   {verdict(r)}"
        )
    heads = table[table.split == "heads"]
    for (phase, system, given), part in heads.groupby(["phase", "system", "given"]):
        r = line(system, part)
        print(f"heads {phase:<11}{system:<10} given {given:<7} med {100 * r['median']:5.2f} "
              f"p90 {100 * r['p90']:5.2f} held {100 * r['held']:.0f} %")  # fmt: skip
    for r in noise:
        print(
            f"noise      {r['phase']:<11}{r['system']:<10}{r['rows']:>6}  {args.version} against "
            f"{args.against}: median {100 * r['median']:.2f} %, p90 {100 * r['p90']:.2f} %, "
            f"p95 {100 * r['p95']:.2f} %"
        )


def verdict(r: dict[str, Any]) -> str:
    if r["split"] == "inside":
        good = r["median"] <= r["linear_median"] and r["p90"] <= 0.8 * r["linear_p90"]
        return "met" if good else "MISSED (never worse than linear, p90 at most 0.8 of it)"
    median, p90 = WANTED[r["phase"], r["split"]]
    good = (median is None or r["median"] <= median) and r["p90"] <= p90
    at_most = f"{'' if median is None else f'{100 * median:g} / '}{100 * p90:g} %"
    return "met" if good else f"MISSED (at most {at_most})"


if __name__ == "__main__":
    sys.exit(main())
