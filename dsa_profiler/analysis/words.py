"""The vocabulary of an alignment: kernel names of both sides as small numbers, with their roles.

Two kernels are the same word's token when they do the same work under another spelling: the base
name without namespace and template, and for matrix products the library they come from, since the
autotuner picks tile names anew in every process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from dsa_profiler.analysis.classify import classify
from dsa_profiler.analysis.expected import ROLES, alias

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints, Trace

Role = Literal["", "gemm", "gemm_helper", "norm", "context", "memory"]

_ROLE_OF_FAMILY: dict[str, Role] = {
    "gemm": "gemm",
    "splitk": "gemm_helper",
    "norm": "norm",
    "moe": "context",
    "communication": "context",
    "memory": "memory",
}
_NVJET = re.compile(r"nvjet_(?:sm\d+[af]?_)?([a-z]+)_")


@dataclass(frozen=True, slots=True)
class Word:
    """One kernel name.

    stage      by the name alone; "unknown" where it takes an order or a mark to tell.
    role       gemm; gemm_helper (a split-K reduction comes and goes with the tile); norm; context
               (mixture of experts, collectives, sampling: never part of the attention module);
               memory; "" for everything else.
    token      what the LCS compares.
    family     as kernels.toml groups names.
    precision  of a matrix product, where its name tells it.
    """

    name: str
    base: str
    stage: str
    role: Role
    token: str
    family: str = ""
    precision: str = ""

    @property
    def in_module(self) -> bool:
        """Whether the name alone says that this belongs to the attention module."""
        return self.stage not in ("unknown", "communication", "memory", "schedule") and (
            self.role in ("", "memory")
        )


def word(name: str) -> Word:
    """The word of a demangled kernel name."""
    kernel = classify(name)
    base = alias(kernel.name.base)
    stage = kernel.stage or "unknown"
    role = _role(name, base, stage, kernel.family)
    if role == "gemm":
        match = _NVJET.search(name)
        token = f"gemm {_library(name, base)}"
        return Word(name, base, stage, role, token, kernel.family, match[1] if match else "")
    return Word(name, base, stage, role, f"{stage} {base}", kernel.family)


def _role(name: str, base: str, stage: str, family: str) -> Role:
    if family in _ROLE_OF_FAMILY and family != "gemm":
        return _ROLE_OF_FAMILY[family]
    if family not in ("", "gemm") or stage != "unknown":
        return "gemm" if family == "gemm" else ""
    for role, pattern in ROLES:
        if pattern.search(base) or pattern.search(name):
            return cast(Role, role)
    return _ROLE_OF_FAMILY.get(family, "")


def _library(name: str, base: str) -> str:
    """Whose matrix product it is. cuBLAS picks nvjet, CUTLASS or older kernels as it sees fit."""
    if "deep_gemm" in name:
        return "deep_gemm"
    if base == "fused_a_gemm_kernel":
        return "fused_a"
    if "fp8_blockscale" in name or "tensorrt_llm" in name:
        return "tensorrt_llm"
    return "triton" if "triton" in name else "cublas"


class Words:
    """Names to numbers, growing while traces are read; the same name has the same number."""

    def __init__(self) -> None:
        self.all: list[Word] = []
        self._number: dict[str, int] = {}
        self._token: dict[str, int] = {}
        self.token: list[int] = []

    def of(self, trace: Trace, column: Ints) -> Ints:
        """The word of each entry of a column of string ids."""
        ids, inverse = np.unique(column, return_inverse=True)
        numbers = [self.number(trace.strings.get(n, f"[name {n}]")) for n in ids.tolist()]
        return np.array(numbers, np.int64)[inverse]

    def number(self, name: str) -> int:
        if name not in self._number:
            self._number[name] = len(self.all)
            new = word(name)
            self.all.append(new)
            self.token.append(self._token.setdefault(new.token, len(self._token)))
        return self._number[name]

    def rank(self, column: Ints) -> Ints:
        """Each word's place among all names sorted: breaks ties without the order of rows."""
        place = np.empty(len(self.all), np.int64)
        place[sorted(range(len(self.all)), key=lambda n: self.all[n].name)] = np.arange(
            len(self.all)
        )
        return place[column] if len(column) else column

    def tokens(self, column: Ints) -> Ints:
        return np.array(self.token, np.int64)[column] if len(column) else column

    def flags(self, *roles: Role) -> list[bool]:
        """By word: whether its role is one of these."""
        return [w.role in roles for w in self.all]
