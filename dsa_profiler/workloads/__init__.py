"""What runs under the profiler.

torch and tensorrt_llm are imported only here, and only in the child process.
"""
