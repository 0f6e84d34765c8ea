import functools
import os

from aiconfigurator.sdk import common
from aiconfigurator.sdk.perf_database import (
    PerfDatabase,
    PerfDataNotAvailableError,
    PerformanceResult,
)


# dsa_profiler: begin
def _query_dsa(self, phase, b, seq, prefix, num_heads, fmha, kv, gemm, architecture, mode):
    """One DSA module: silicon rows, or the speed of light where the mode asks or allows it."""
    from aiconfigurator.sdk import dsa

    config = dsa.DeepSeekV32Config()

    def sol(heads, prefix, seq, batch):
        gpu, width = self.system_spec["gpu"], (gemm.value.memory, kv.value.memory)
        return dsa.speed_of_light(config, gpu, phase, batch, seq, prefix, heads, *width)

    def get_silicon():
        folder = os.path.join(
            self.systems_root, self.system_spec["data_dir"], self.backend, self.version
        )
        kinds = (architecture, fmha.name if fmha else dsa.ANY, kv.name, gemm.name)
        try:
            ms, energy = dsa.lookup(
                folder,
                phase,
                kinds,
                (num_heads, prefix, seq, b),
                lambda *sizes: sol(*sizes)[0],
                config.index_topk,
            )
        except dsa.Missing as missing:
            raise PerfDataNotAvailableError(str(missing)) from None
        return PerformanceResult(ms, energy=energy)

    mode = self._default_database_mode if mode is None else mode
    here = (num_heads, prefix, seq, b)
    if mode == common.DatabaseMode.SOL_FULL:
        return sol(*here)
    if mode in (common.DatabaseMode.SOL, common.DatabaseMode.EMPIRICAL):
        return PerformanceResult(sol(*here)[0], energy=0.0)
    return self._query_silicon_or_hybrid(
        get_silicon=get_silicon,
        get_empirical=lambda: sol(*here)[0],
        database_mode=mode,
        error_msg=f"Failed to query {phase} dsa data for {b=}, {seq=}, {prefix=}, {num_heads=}, "
        f"{kv=}, {gemm=}",
    )


@functools.lru_cache(maxsize=32768)
def _query_context_dsa(
    self,
    b,
    s,
    prefix,
    num_heads,
    kvcache_quant_mode,
    fmha_quant_mode,
    gemm_quant_mode,
    architecture="DeepseekV32ForCausalLM",
    database_mode=None,
):
    """Latency (ms) and energy of one DSA layer: `s` new tokens after `prefix` cached, `b` times."""
    kinds = (fmha_quant_mode, kvcache_quant_mode, gemm_quant_mode, architecture)
    return _query_dsa(self, "context", b, s + prefix, prefix, num_heads, *kinds, database_mode)


@functools.lru_cache(maxsize=32768)
def _query_generation_dsa(
    self,
    b,
    s,
    num_heads,
    kvcache_quant_mode,
    gemm_quant_mode,
    architecture="DeepseekV32ForCausalLM",
    database_mode=None,
):
    """Latency (ms) and energy of one DSA layer for one new token that sees `s` keys, `b` times."""
    kinds = (None, kvcache_quant_mode, gemm_quant_mode, architecture)
    return _query_dsa(self, "generation", b, s, 0, num_heads, *kinds, database_mode)


PerfDatabase.query_context_dsa = _query_context_dsa
PerfDatabase.query_generation_dsa = _query_generation_dsa
# dsa_profiler: end
