"""The profiled child: `python -m dsa_profiler.workloads.worker chunk.json`.

Two passes over the cases: first all of them untraced, then all of them in the tracer's window. One
pass would be shorter, but nsys takes one capture range a process, and what runs inside it is slowed
by the tracer.

Everything it has to say goes to `outcome.jsonl`, a line an event (docs/how-it-works.md).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsa_profiler.errors import DsaError, EnvironmentFault, Exit, UsageError
from dsa_profiler.workloads.order import Order, read_order

if TYPE_CHECKING:
    import torch

    from dsa_profiler.workloads.seam import Workload

WORKLOADS = {
    "reference": "dsa_profiler.workloads.reference",
    "kernels": "dsa_profiler.workloads.kernels",
    "trtllm": "dsa_profiler.workloads.trtllm",
}

Say = Callable[..., None]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 0 when every case has been dealt with, 3 when nothing could be begun."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _leave)
    try:
        if len(arguments) != 1:
            raise UsageError("arguments", "the worker takes one chunk.json", "use `run`")
        run(read_order(Path(arguments[0])))
    except DsaError as error:
        print(f"error: {error.what}\n cure: {error.cure}", file=sys.stderr)
        return int(Exit.ENVIRONMENT)
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    return int(Exit.OK)


def _leave(number: int, frame: object) -> None:
    """Asked to go: leave through every `finally`; torch.profiler's file gets written there."""
    raise SystemExit(128 + number)


def run(order: Order) -> None:
    """Both passes. What goes wrong before `ready` is raised; later faults belong to their case."""
    torch = _torch()
    from dsa_profiler.workloads import instrument, measure
    from dsa_profiler.workloads.bench import Bench

    device = measure.device_of(order.device)
    mark = instrument.marker(order.tracer, device.type)
    workload = _build(order, device)
    with torch.inference_mode(), _events(order.folder / order.outcome) as say:
        about = {**measure.describe(device), **workload.environment}
        say("ready", device=device.type, pid=os.getpid(), environment=about)
        bench = Bench(order, device, workload, say)
        timed = bench.each(order.cases, bench.untraced, last=order.tracer == "none")
        if (now := dict(workload.environment)).keys() - about:  # what only a case could tell
            say("about", environment=now)
        begun = int(order.told_to_stop)  # the case that was running is finished, no other begun
        timed = timed[-begun:] if begun else timed
        with measure.window(order.tracer, device, order.folder / order.raw_trace):
            if order.tracer != "none":
                bench.each(timed, lambda case: bench.traced(case, mark), last=True, begun=begun)
            say("bye")


def _build(order: Order, device: torch.device) -> Workload:
    module = WORKLOADS.get(order.workload)
    if module is None:
        raise UsageError(
            "workload-unknown",
            f"unknown workload {order.workload!r}",
            f"one of {', '.join(WORKLOADS)}",
        )
    workload: Workload = import_module(module).build(order.model, device, order.seed, order.options)
    return workload


def _torch() -> Any:
    # OpenMP's threads wait by spinning: on a CPU that others use too they starve each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return import_module("torch")
    except (ImportError, OSError) as error:
        raise EnvironmentFault(
            "torch-missing",
            f"torch cannot be loaded: {str(error).partition(chr(10))[0]}",
            "pip install 'dsa-profiler[reference]', or run in a Python that has torch",
        ) from None


@contextmanager
def _events(path: Path) -> Iterator[Say]:
    """Appends an event a line, flushed at once: a crash loses nothing that was said."""
    with path.open("a", encoding="utf-8") as file:

        def say(event: str, **fields: Any) -> None:
            file.write(json.dumps({"event": event, **fields}) + "\n")
            file.flush()

        yield say


if __name__ == "__main__":
    sys.exit(main())
