"""As much of transformers as TensorRT-LLM's configs need."""


class PretrainedConfig:
    """A bag of fields; one that nobody set is an AttributeError, as in the real one."""
