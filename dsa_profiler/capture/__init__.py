"""How a workload is recorded: subprocesses, signals, nsys, NVML."""
