"""The seam between the worker and the workloads beside it: two small protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import torch

from dsa_profiler.model import Case, ModelShape
from dsa_profiler.workloads.instrument import StageMark

Output: TypeAlias = torch.Tensor


class Step(Protocol):
    """One iteration of a case. Running it again does the same work on the same inputs.

    Under a CUDA graph it is captured: then it must launch everything on the current stream (or
    fork from and join it), and wait for nothing on the host.
    """

    def __call__(self, mark: StageMark, /) -> Output: ...


class Workload(Protocol):
    """What runs under the profiler.

    prepare      inputs, caches and weights of one case; dropping the step frees what it alone holds
    environment  what a reader of the numbers must know (versions, data types, initialisation)
    """

    @property
    def environment(self) -> Mapping[str, Any]: ...

    def prepare(self, case: Case, /) -> Step: ...


class Builder(Protocol):
    """`build`, the one function of a workload's module that the worker calls."""

    def __call__(
        self, model: ModelShape, device: torch.device, seed: int, options: Mapping[str, Any], /
    ) -> Workload: ...
