from aiconfigurator.sdk.common import ARCHITECTURE_TO_MODEL_FAMILY

# dsa_profiler: begin
ARCHITECTURE_TO_MODEL_FAMILY["DeepseekV32ForCausalLM"] = "DEEPSEEK"
# dsa_profiler: end
