"""How long it takes to write a root of 10,000 rows and to have aiconfigurator answer every one.

    python benchmarks/overlay.py --package VENV [--rows 10000] [--repeat 3]

The rows are made up (sizes on a grid, latencies by a formula): only their number matters. The limit
is 20 s for both together, the estimate before and after included; the exit code is 6 beyond it, or
if an answer is not what was written.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from dsa_profiler.export import aic_package, aiconfigurator, read_back
from dsa_profiler.export.aic_package import Target

LIMIT_S = 20.0
SYSTEM, BACKEND, VERSION, BEFORE = "h200_sxm", "trtllm", "1.3.0rc20+bench", "1.3.0rc20"
HEADS, BATCHES = (8, 16, 32, 64, 128), (1, 2, 4, 8, 16)


def table(phase: str, rows: int) -> pd.DataFrame:
    """`rows` different keys of one phase."""
    context = phase == "context"
    lengths = range(17, 17 * (rows // (len(HEADS) * len(BATCHES)) + 2), 17)
    return pd.DataFrame(
        {
            "framework": "TRTLLM", "version": "1.3.0rc20", "device": "NVIDIA H200",
            "op_name": f"dsa_{phase}_module", "kernel_source": "bench",
            "model": "deepseek-ai/DeepSeek-V3.2", "architecture": "DeepseekV32ForCausalLM",
            "mla_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "gemm_type": "fp8_block",
            "num_heads": heads, "batch_size": batch, "isl": length if context else 1, "tp_size": 1,
            "step": 0 if context else length, "latency": 0.1 + heads * 1e-3 + batch * length * 1e-5,
        }
        for heads in HEADS for batch in BATCHES for length in lengths
    ).head(rows)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--package", required=True, metavar="VENV")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    package = aic_package.locate(args.package)
    tables = {phase: table(phase, args.rows // 2) for phase in ("context", "generation")}
    target = Target(package, SYSTEM, BACKEND, VERSION, False)
    written, verified, wrong = [], [], 0
    for _ in range(args.repeat):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            begin = time.perf_counter()
            aiconfigurator.write_tables(tables, root, target, runtime=BEFORE)
            middle = time.perf_counter()
            entry = read_back.entries(root)[0]
            verdict = read_back.verify(root, entry, package, read_back.Setup(), BEFORE)
            verified.append(time.perf_counter() - middle)
            written.append(middle - begin)
            wrong += len(verdict.mismatches)
    rows = sum(map(len, tables.values()))
    total = statistics.median(w + v for w, v in zip(written, verified, strict=True))
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
          f"aiconfigurator {package.version}")  # fmt: skip
    print(f"{rows} rows, median of {args.repeat}: written in {statistics.median(written):.2f} s, "
          f"verified in {statistics.median(verified):.2f} s, both {total:.2f} s "
          f"(limit {LIMIT_S:.0f} s), {wrong} answers other than written")  # fmt: skip
    return 0 if total <= LIMIT_S and not wrong else 6


if __name__ == "__main__":
    sys.exit(main())
