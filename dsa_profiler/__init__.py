"""Profile DeepSeek Sparse Attention: one layer, a grid of sizes, every kernel accounted for."""

__version__ = "0.1.0"
