from aiconfigurator.sdk.operations import Operation, PerformanceResult


# dsa_profiler: begin
class ContextDSA(Operation):
    """
    Context phase of a whole DSA attention module: projections, indexer, top-k, sparse attention.

    `weights` are the bytes of one layer that the module brings, of which it replaces the ops.
    """

    def __init__(
        self,
        name,
        scale_factor,
        num_heads,
        kvcache_quant_mode,
        fmha_quant_mode,
        gemm_quant_mode,
        architecture="DeepseekV32ForCausalLM",
        weights=0.0,
    ):
        super().__init__(name, scale_factor)
        self._num_heads = num_heads
        self._kvcache_quant_mode = kvcache_quant_mode
        self._fmha_quant_mode = fmha_quant_mode
        self._gemm_quant_mode = gemm_quant_mode
        self._architecture = architecture
        self._weights = weights

    def query(self, database, **kwargs):
        """Latency in ms and energy of all layers together."""
        result = database.query_context_dsa(
            b=kwargs.get("batch_size"),
            s=kwargs.get("s"),
            prefix=kwargs.get("prefix") or 0,
            num_heads=self._num_heads,
            kvcache_quant_mode=self._kvcache_quant_mode,
            fmha_quant_mode=self._fmha_quant_mode,
            gemm_quant_mode=self._gemm_quant_mode,
            architecture=self._architecture,
        )
        energy = result.energy * self._scale_factor
        return PerformanceResult(float(result) * self._scale_factor, energy=energy)

    def get_weights(self, **kwargs):
        return self._weights * self._scale_factor


class GenerationDSA(Operation):
    """Generation phase of a whole DSA attention module: one new token a sequence."""

    def __init__(
        self,
        name,
        scale_factor,
        num_heads,
        kv_cache_dtype,
        gemm_quant_mode,
        architecture="DeepseekV32ForCausalLM",
        weights=0.0,
    ):
        super().__init__(name, scale_factor)
        self._num_heads = num_heads
        self._kv_cache_dtype = kv_cache_dtype
        self._gemm_quant_mode = gemm_quant_mode
        self._architecture = architecture
        self._weights = weights

    def query(self, database, **kwargs):
        """Latency in ms and energy of all layers together."""
        assert kwargs.get("beam_width", 1) == 1, "only support beam_width=1"
        result = database.query_generation_dsa(
            b=kwargs.get("batch_size"),
            s=kwargs.get("s"),
            num_heads=self._num_heads,
            kvcache_quant_mode=self._kv_cache_dtype,
            gemm_quant_mode=self._gemm_quant_mode,
            architecture=self._architecture,
        )
        energy = result.energy * self._scale_factor
        return PerformanceResult(float(result) * self._scale_factor, energy=energy)

    def get_weights(self, **kwargs):
        return self._weights * self._scale_factor


# dsa_profiler: end
