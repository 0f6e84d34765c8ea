"""What a GPU can do: peak rates, bandwidth, SM count, each with its source (`systems.toml`)."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any, Literal

from dsa_profiler.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Gemm = Literal["bfloat16", "fp8", "nvfp4"]


@dataclass(frozen=True, slots=True)
class System:
    """Rates of one GPU. flop/s dense by operand type, bytes/s, ns a kernel launch.

    `nvfp4` is 0 where the hardware has no such unit. `head_tile` and `executes_padding` say what
    the sparse-attention kernel of this architecture does with heads and key slots nobody asked for.
    """

    name: str
    sm: int
    sm_count: int
    bfloat16: float
    fp8: float
    bandwidth: float
    launch_ns: float
    head_tile: int
    executes_padding: bool
    fp8_attention: bool
    source: str
    nvfp4: float = 0.0

    def peak(self, dtype: str) -> float:
        """flop/s of products of `dtype`; a type without a unit of its own runs as bfloat16."""
        rates = {"bfloat16": self.bfloat16, "fp8": self.fp8, "nvfp4": self.nvfp4}
        return rates.get(dtype) or self.bfloat16


def gemm_of(name: str) -> Gemm:
    """The precision of the projections' weights behind a table's name for it (`fp8_block`)."""
    if name.startswith("fp8"):
        return "fp8"
    return "nvfp4" if name == "nvfp4" else "bfloat16"


@cache
def _data() -> dict[str, dict[str, Any]]:
    text = resources.files("dsa_profiler.analysis").joinpath("systems.toml").read_text("utf-8")
    return tomllib.loads(text)


def names() -> tuple[str, ...]:
    return tuple(_data())


def load(name: str, datasheet: bool = False) -> System:
    """The system called `name`; `datasheet` takes the vendor's rates where ours are measured."""
    entry = _data().get(name)
    if entry is None:
        raise UsageError(
            "system-unknown", f"unknown system {name!r}", f"one of {', '.join(names())}"
        )
    entry = {**entry, **(entry.get("datasheet", {}) if datasheet else {})}
    known = {f.name for f in fields(System)}
    return System(name=name, **{k: v for k, v in entry.items() if k in known})


def of_device(device: str) -> System | None:
    """The system behind a device's name (`NVIDIA H200`), or None: better no floor than a wrong one.

    The longest match wins, so that GB200 is not taken for a B200.
    """
    text = device.lower()
    found = [
        (len(part), name) for name, e in _data().items() for part in e["matches"] if part in text
    ]
    return load(max(found)[1]) if found else None
