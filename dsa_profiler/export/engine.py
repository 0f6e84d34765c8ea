"""The half of `verify` that runs in aiconfigurator's own interpreter, a script of its own.

It reads one JSON request on stdin and prints one JSON reply; nothing else of dsa_profiler is loaded
there, and only this file ever imports aiconfigurator. Latencies are ms.

request   way, root, system, backend, version, queries: [[phase, architecture, mla, kv, gemm, heads,
          step, isl, batch], ...], and runs: [{root, version, model, tp, kv, gemm, batch, isl, osl}]
reply     answers: [ms | null, ...], error (of the first null), runs: [{context: {op: ms},
          generation: {op: ms}} | {error}]
"""

from __future__ import annotations

import json
import logging
import sys
from functools import cache
from typing import Any


def main() -> None:
    logging.disable(logging.CRITICAL)
    request = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr
    answers, error = _answers(request)
    runs = [_run(request, run) for run in request["runs"]]
    json.dump({"answers": answers, "error": error, "runs": runs}, out)


def _answers(request: dict[str, Any]) -> tuple[list[float | None], str]:
    if not request["queries"]:
        return [], ""
    try:
        ask = (_ask_engine if request["way"] == "overlay" else _ask_python)(request)
    except Exception as refused:
        return [None] * len(request["queries"]), _line(refused)
    answers: list[float | None] = []
    error = ""
    for query in request["queries"]:
        try:
            answers.append(float(ask(*query)))
        except Exception as refused:
            answers.append(None)
            error = error or _line(refused)
    return answers, error


def _ask_engine(request: dict[str, Any]) -> Any:
    """0.11 and later: the compiled engine over the root's tables, strict about provenance."""
    from aiconfigurator_core.sdk import EngineHandle, common, operations, perf_database

    database = perf_database.get_database(
        request["system"],
        request["backend"],
        request["version"],
        systems_paths=[request["root"]],
        allow_unlisted_version=True,
        strict_provenance=True,
    )
    if database is None:
        raise LookupError(f"{request['root']} holds no {request['backend']} {request['version']}")
    engine = EngineHandle.for_database(database, systems_path=request["root"])

    @cache
    def op(phase: str, arch: str, mla: str, kv: str, gemm: str, heads: int) -> str:
        kv_mode, gemm_mode = common.KVCacheQuantMode[kv], common.GEMMQuantMode[gemm]
        if phase == "context":
            fmha = common.FMHAQuantMode[mla]
            made = operations.ContextDSAModule(phase, 1.0, heads, kv_mode, fmha, gemm_mode, arch)
        else:
            made = operations.GenerationDSAModule(phase, 1.0, heads, kv_mode, gemm_mode, arch)
        return f"[{made._spec_json()}]"

    def ask(phase: str, arch: str, mla: str, kv: str, gemm: str, *sizes: int) -> float:
        heads, step, isl, batch = sizes
        ops = op(phase, arch, mla, kv, gemm, heads)
        if phase == "context":
            reply = engine.evaluate_ops_json(
                ops, is_context=True, batch_size=batch, s=isl, prefix=step
            )
        else:
            reply = engine.evaluate_ops_json(ops, is_context=False, batch_size=batch, s=isl + step)
        return float(reply[0][1])

    return ask


def _ask_python(request: dict[str, Any]) -> Any:
    """0.7 (patched), 0.8 and 0.10: operations that answer a query in Python."""
    from aiconfigurator.sdk import common, operations

    names = ("ContextDSA", "GenerationDSA")
    if not hasattr(operations, names[0]):
        names = ("ContextDSAModule", "GenerationDSAModule")
    if not hasattr(operations, names[0]):
        raise LookupError("this aiconfigurator knows no DSA: run `sdk_patch/apply.py apply` on it")
    database = _database(request, request["root"], request["version"])

    @cache
    def op(phase: str, arch: str, mla: str, kv: str, gemm: str, heads: int) -> Any:
        kv_mode, gemm_mode = _mode(common.KVCacheQuantMode, kv), _mode(common.GEMMQuantMode, gemm)
        if phase == "context":
            fmha = _mode(common.FMHAQuantMode, mla)
            make = getattr(operations, names[0])
            return make("context_attention", 1.0, heads, kv_mode, fmha, gemm_mode, arch)
        make = getattr(operations, names[1])
        return make("generation_attention", 1.0, heads, kv_mode, gemm_mode, arch)

    def ask(phase: str, arch: str, mla: str, kv: str, gemm: str, *sizes: int) -> float:
        heads, step, isl, batch = sizes
        made = op(phase, arch, mla, kv, gemm, heads)
        if phase == "context":
            return float(made.query(database, x=batch * isl, batch_size=batch, s=isl, prefix=step))
        return float(made.query(database, x=batch, batch_size=batch, beam_width=1, s=isl + step))

    return ask


def _run(request: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """One static estimate, by op. The MoE runs expert-parallel over the same GPUs."""
    try:
        if request["way"] == "overlay":
            return _run_engine(request, run)
        return _run_python(request, run)
    except Exception as refused:
        return {"error": _line(refused)}


def _run_engine(request: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    from aiconfigurator_core.sdk import EngineHandle

    engine = EngineHandle.compile(
        run["model"],
        request["system"],
        request["backend"],
        backend_version=run["version"],
        tp_size=run["tp"],
        moe_tp_size=1,
        moe_ep_size=run["tp"],
        kvcache_quant_mode=run["kv"],
        gemm_quant_mode=run["gemm"],
        fmha_quant_mode="bfloat16",
        systems_path=run["root"],
    )
    phases = engine.run_static_per_op(batch_size=run["batch"], isl=run["isl"], osl=run["osl"])
    context, generation = ({name: ms for name, ms, *_ in ops} for ops in phases)
    return {"context": context, "generation": generation}


def _run_python(request: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    from aiconfigurator.sdk import common, config, models
    from aiconfigurator.sdk.backends.factory import get_backend
    from aiconfigurator.sdk.inference_session import InferenceSession

    chosen = config.ModelConfig(
        tp_size=run["tp"],
        moe_tp_size=1,
        moe_ep_size=run["tp"],
        kvcache_quant_mode=_mode(common.KVCacheQuantMode, run["kv"]),
        gemm_quant_mode=_mode(common.GEMMQuantMode, run["gemm"]),
        fmha_quant_mode=_mode(common.FMHAQuantMode, "bfloat16"),
    )
    model = models.get_model(run["model"], chosen, request["backend"])
    session = InferenceSession(
        model, _database(request, run["root"], run["version"]), get_backend(request["backend"])
    )
    asked = config.RuntimeConfig(batch_size=run["batch"], isl=run["isl"], osl=run["osl"])
    summary = session.run_static(asked, mode="static", stride=32)
    return {
        "context": _plain(summary.get_context_latency_dict()),
        "generation": _plain(summary.get_generation_latency_dict()),
    }


def _plain(by_op: dict[str, Any]) -> dict[str, float]:
    return {name: float(ms) for name, ms in by_op.items()}


def _database(request: dict[str, Any], root: str | None, version: str) -> Any:
    from aiconfigurator.sdk import perf_database

    found = perf_database.get_database(
        request["system"], request["backend"], version, systems_paths=[root] if root else None
    )
    if found is None:
        raise LookupError(f"{root or 'the package'} holds no {request['backend']} {version}")
    return found


def _mode(modes: Any, name: str) -> Any:
    """Half precision is `float16` up to 0.8 and `bfloat16` from 0.10."""
    half = name == "bfloat16" and name not in modes.__members__
    return modes["float16" if half else name]


def _line(error: Exception) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:400]


if __name__ == "__main__":
    main()
