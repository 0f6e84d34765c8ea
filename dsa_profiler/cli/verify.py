"""Example:  dsa-profiler verify tables/ --package ~/venvs/aiconfigurator

Ask aiconfigurator itself for every row of a root that `export --to aiconfigurator` wrote, and for
its estimate of DeepSeek-V3.2 before and after. Exit 6 if it answers any row otherwise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsa_profiler.errors import Exit, InputError, UsageError
from dsa_profiler.model import layer_map, load_model

if TYPE_CHECKING:
    import pandas as pd

    from dsa_profiler.export.read_back import Estimate, Setup, Verdict

SHOWN = 5
PRESETS = {"DeepseekV32ForCausalLM": "deepseek-v3.2", "GlmMoeDsaForCausalLM": "glm-5"}
PREFERRED = ("fp8_block", "bfloat16", "nvfp4")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", type=Path)
    parser.add_argument(
        "--package",
        metavar="VENV",
        help="where aiconfigurator is installed: an environment, its python or a folder of "
        "packages; default $DSA_AICONFIGURATOR, else beside this tool",
    )
    parser.add_argument("--model", help="the hub's name, or a folder with config.json")
    parser.add_argument("--tp", type=int, default=8, help="tensor parallelism (default 8)")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--isl", type=int, default=4096, help="input tokens (default 4096)")
    parser.add_argument("--osl", type=int, default=64, help="output tokens (default 64)")
    parser.add_argument("--kv", help="KV cache: bfloat16 or fp8; default what the rows have")
    parser.add_argument("--gemm-type", help="of the projections; default what the rows have")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    from dsa_profiler.export import aic_package, module_tables, read_back

    if min(args.tp, args.batch_size, args.isl) < 1 or args.osl < 2:
        raise UsageError("size-below-one", "sizes start at 1, --osl at 2", "give larger ones")
    entries = read_back.entries(args.root)
    package = aic_package.locate(args.package)
    documents, sound = [], True
    for entry in entries:
        frames = {p: module_tables.read(f).frame for p, f in entry.files.items()}
        setup = _setup(args, frames)
        before = _before(package, entry)
        verdict = read_back.verify(args.root, entry, package, setup, before)
        sound = sound and not verdict.mismatches
        support = _support(frames, setup)
        if args.json:
            documents.append(_document(verdict, support, setup, before))
        else:
            print(f"aiconfigurator {package.version} ({package.layout.way}): {args.root}")
            _print(verdict, support, setup, before)
    if args.json:
        print(json.dumps({"schema": 1, "root": str(args.root), "entries": documents}, indent=1))
    return int(Exit.OK if sound else Exit.GATE)


def _setup(args: argparse.Namespace, frames: Mapping[str, pd.DataFrame]) -> Setup:
    """The estimate's types are those of the rows: SM90 has bfloat16 KV alone, whatever the
    checkpoint says.
    """
    from dsa_profiler.export import module_rows, read_back

    kv = {str(v) for f in frames.values() for v in f["kv_cache_dtype"]}
    gemm = {str(v) for f in frames.values() for v in f["gemm_type"]}
    return read_back.Setup(
        model=args.model or module_rows.MODELS[_architecture(frames)],
        tp=args.tp,
        batch=args.batch_size,
        isl=args.isl,
        osl=args.osl,
        kv=args.kv or ("bfloat16" if "bfloat16" in kv else min(kv)),
        gemm=args.gemm_type or next((g for g in PREFERRED if g in gemm), "fp8_block"),
    )


def _architecture(frames: Mapping[str, pd.DataFrame]) -> str:
    found = {str(v) for f in frames.values() for v in f.get("architecture", ())}
    if len(found) == 1 and found <= set(PRESETS):
        return found.pop()
    raise InputError(
        "architecture-unknown",
        f"the rows are of {', '.join(sorted(found)) or 'no architecture'}",
        f"one a root, of {', '.join(PRESETS)}",
    )


def _before(package: Any, entry: Any) -> str | None:
    """The shipped version whose DSA rows the estimate had before ours."""
    from dsa_profiler.export.aic_package import version_key

    shipped = package.versions(entry.system, entry.backend, "dsa_generation_module_perf")
    below = [v for v in shipped if version_key(v) <= version_key(entry.version)]
    return below[-1] if below else None


def _support(frames: Mapping[str, pd.DataFrame], setup: Setup) -> dict[str, Any]:
    """What is there for this model and what is not, which `cli support` of the package, a look-up
    in a packaged list, cannot know.
    """
    architecture = _architecture(frames)
    shape = load_model(PRESETS[architecture])
    heads = sorted({int(h) for f in frames.values() for h in f["num_heads"]})
    wanted = shape.num_attention_heads // setup.tp
    missing = [f"{p} rows" for p in ("context", "generation") if p not in frames]
    for phase, frame in frames.items():
        rows = frame[(frame["gemm_type"] == setup.gemm) & (frame["kv_cache_dtype"] == setup.kv)]
        if not len(rows):
            missing.append(f"{phase} rows for {setup.gemm} projections and {setup.kv} KV")
            continue
        lacks = [h for h in _local(shape.num_attention_heads) if h not in set(rows["num_heads"])]
        if lacks:
            missing.append(f"{phase} rows for {', '.join(map(str, lacks))} local heads")
        missing += _range(phase, rows[rows["num_heads"] == wanted], setup)
    return {
        "model": setup.model,
        "architecture": architecture,
        "family": shape.family,
        "dsa": {
            "index_n_heads": shape.index_n_heads,
            "index_head_dim": shape.index_head_dim,
            "index_topk": shape.index_topk,
        },
        "layers": str(layer_map(shape)),
        "rows": {phase: len(frame) for phase, frame in frames.items()},
        "local_heads": heads,
        "missing": missing,
    }


def _local(heads: int) -> list[int]:
    return [heads // tp for tp in (1, 2, 4, 8, 16)]


def _range(phase: str, rows: pd.DataFrame, setup: Setup) -> list[str]:
    """What the estimate asks beyond the rows: there the engine extrapolates from their edge."""
    if not len(rows):
        return []
    asked = (setup.isl, setup.isl) if phase == "context" else (setup.isl, setup.isl + setup.osl)
    have = rows["isl"] if phase == "context" else rows["isl"] + rows["step"]
    out = []
    if asked[0] < have.min() or asked[1] > have.max():
        out.append(
            f"{phase} rows at {asked[0]} to {asked[1]} tokens (there are {have.min()} to "
            f"{have.max()}): extrapolated"
        )
    batch = rows["batch_size"]
    if not batch.min() <= setup.batch <= batch.max():
        out.append(f"{phase} rows at batch {setup.batch}: extrapolated")
    return out


def _print(verdict: Verdict, support: dict[str, Any], setup: Setup, before: str | None) -> None:
    entry, dsa = verdict.entry, support["dsa"]
    print(f"System: {entry.system}, {entry.backend} {entry.version}")
    print(f"Model: {support['model']}")
    print(f"Architecture: {support['architecture']}")
    print(f"Family: {support['family']}")
    print("DSA: " + " ".join(f"{name}={value}" for name, value in dsa.items()))
    print(support["layers"])
    print("Rows: " + ", ".join(f"{phase} {n}" for phase, n in support["rows"].items()))
    print("Local heads: " + ", ".join(map(str, support["local_heads"])))
    print("Missing: " + ("; ".join(support["missing"]) or "nothing"))
    if entry.merged:
        print("Merged: shipped rows answer where these have none")
    wrong = verdict.mismatches
    print(f"Read back: {verdict.rows - len(wrong)} of {verdict.rows} rows as written")
    for row in wrong[:SHOWN]:
        said = "no answer" if row.answer is None else f"{row.answer:.6g} ms"
        print(f"  {row.phase} {row.key}: wrote {row.written:.6g} ms, {said}")
    if verdict.error:
        print(f"  {verdict.error}")
    print(
        f"Estimate: batch {setup.batch}, {setup.isl} in, {setup.osl} out, tensor parallelism "
        f"{setup.tp}, {setup.kv} KV, {setup.gemm} projections"
    )
    _print_estimates(verdict, before)


def _print_estimates(verdict: Verdict, before: str | None) -> None:
    old, new = verdict.before, verdict.after
    for name, why in verdict.refused.items():
        print(f"  no estimate {name}: {why}")
    print(f"  {'':22}{'before (' + before + ')' if before else 'before':>22}{'after':>12}")
    for label, field, unit in (
        ("TTFT, ms", "ttft", 1.0),
        ("TPOT, ms", "tpot", 1.0),
        ("attention of TTFT, %", "context_share", 100.0),
        ("attention of TPOT, %", "generation_share", 100.0),
    ):
        columns = [_number(e, field, unit) for e in (old, new)]
        print(f"  {label:22}{columns[0]:>22}{columns[1]:>12}")


def _number(estimate: Estimate | None, field: str, unit: float) -> str:
    return "-" if estimate is None else f"{getattr(estimate, field) * unit:.3f}"


def _document(
    verdict: Verdict, support: dict[str, Any], setup: Setup, before: str | None
) -> dict[str, Any]:
    return {
        "system": verdict.entry.system,
        "backend": verdict.entry.backend,
        "version": verdict.entry.version,
        "way": verdict.entry.way,
        "merged": verdict.entry.merged,
        "support": support,
        "rows": verdict.rows,
        "mismatches": [asdict(m) for m in verdict.mismatches],
        "error": verdict.error,
        "setup": asdict(setup),
        "before_version": before,
        "before": None if verdict.before is None else asdict(verdict.before),
        "after": None if verdict.after is None else asdict(verdict.after),
        "refused": dict(verdict.refused),
    }
