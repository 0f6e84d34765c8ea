"""Slots of one node: a worker process a GPU, every GPU of the same kind."""

from __future__ import annotations

import os

from dsa_profiler.capture.power import Device
from dsa_profiler.capture.probe import Gpu
from dsa_profiler.capture.sweep import Slot
from dsa_profiler.errors import UsageError


def slots(asked: str, found: tuple[Gpu, ...]) -> tuple[Slot, ...]:
    """`1` is the worker alone, `all` every GPU that is like the first, `0,2` the GPUs named.

    A session is of one kind of GPU, so that its tables never mix two: a list that does is refused.
    """
    ids = _visible(len(found))
    if asked == "1":
        return (Slot(gpu=_device(ids[0]) if found and ids else None),)
    if asked == "all":
        chosen = [n for n in range(len(ids)) if n < len(found) and found[n].name == found[0].name]
    else:
        chosen = _numbers(asked, len(ids))
    kinds = sorted({found[n].name for n in chosen if n < len(found)})
    if len(kinds) > 1:
        raise UsageError(
            "gpus-mixed",
            f"a session takes one kind of GPU, asked for {' and '.join(kinds)}",
            "run one session a kind, then compare them",
        )
    if not chosen:
        return (Slot(),)
    return tuple(Slot(f"gpu{n}", _only(ids[n]), _device(ids[n])) for n in chosen)


def _only(identity: str) -> dict[str, str]:
    """CUDA and NVML must count alike, or the samples are another GPU's."""
    return {"CUDA_VISIBLE_DEVICES": identity, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _device(identity: str) -> Device:
    return int(identity) if identity.isdigit() else identity


def _visible(count: int) -> list[str]:
    """The ids that CUDA_VISIBLE_DEVICES leaves, in its order; all of them where it is not set."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return [str(n) for n in range(count)]
    return [part.strip() for part in value.split(",") if part.strip()]


def _numbers(asked: str, count: int) -> list[int]:
    try:
        chosen = [int(part) for part in asked.split(",")]
    except ValueError:
        raise UsageError(
            "gpus-malformed", f"--gpus {asked!r} names no GPUs", "give all, 1, or a list like 0,2"
        ) from None
    if len(set(chosen)) != len(chosen) or not all(0 <= n < count for n in chosen):
        raise UsageError(
            "gpus-absent", f"--gpus {asked} on a machine with {count}", "name each present GPU once"
        )
    return chosen
