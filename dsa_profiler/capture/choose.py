"""Which tracer records, and why: said before the sweep, written into the manifest."""

from __future__ import annotations

from typing import NamedTuple

from dsa_profiler.capture import nsys
from dsa_profiler.capture.torch_profiler import TorchTracer
from dsa_profiler.capture.tracer import Tracer
from dsa_profiler.errors import EnvironmentFault


class Choice(NamedTuple):
    """The tracer, the reason for it, and the version of nsys where it is nsys."""

    tracer: Tracer
    why: str
    nsys_version: str | None


def choose(asked: str, cuda: bool, path: str | None = None) -> Choice:
    """`nsys` or `torch` as asked; `auto` takes nsys where it can record our marks, else torch."""
    if asked == "torch":
        return Choice(TorchTracer(), "asked for", None)
    try:
        found = nsys.find(path)
        refused = nsys.refusal(found, cuda) or nsys.no_reports(found)
        if refused is not None:
            raise refused
    except EnvironmentFault as fault:
        if asked == "nsys":
            raise
        return Choice(TorchTracer(), fault.what, None)
    why = "asked for" if asked == "nsys" else f"nsys {found.version} is here"
    return Choice(nsys.NsysTracer(found, cuda), why, found.version)
