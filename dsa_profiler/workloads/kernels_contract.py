"""What the Hopper kernels' calls look like, recorded, and how a loaded package's differ.

A call that only counts its arguments finds out on the GPU that two of them changed places. Here the
names, types, defaults and results are compared, before anything runs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@cache
def contract() -> dict[str, Any]:
    """The recorded calls: per package its version and its `ops` or `calls`."""
    text = resources.files(__package__).joinpath("kernels_contract.toml").read_text("utf-8")
    return tomllib.loads(text)


def ops() -> dict[str, str]:
    """Every recorded op -> its schema, without the name."""
    recorded = contract()
    return {**recorded["vllm"]["ops"], **recorded["sglang"]["ops"]}


def op_difference(schema: Any, wanted: str) -> str:
    """How a registered schema differs from a recorded one; empty where it does not."""
    expected = _op_text(torch._C.parse_schema(f"op{wanted}"))
    return _told(_op_text(schema), expected)


def call_difference(call: Callable[..., Any], wanted: str) -> str:
    """How a Python call's signature, the first line of its docstring, differs. Annotations are
    left out: their spelling belongs to pybind, not to the package.
    """
    line = (call.__doc__ or "").partition("\n")[0]
    inside = re.match(r"\w+\((.*)\)(?: -> .*)?$", line)
    if inside is None:
        return "tells no signature"
    flat = inside[1]
    while (shorter := re.sub(r"\[[^\[\]]*\]", "", flat)) != flat:
        flat = shorter
    names = []
    for argument in filter(None, flat.split(", ")):
        name, _, default = argument.partition(" = ")
        names.append(name.partition(":")[0] + (f"={default}" if default else ""))
    return _told(", ".join(names), wanted)


def _op_text(schema: Any) -> str:
    arguments = [
        f"{a.type} {a.name}" + (f"={a.default_value}" if a.has_default_value() else "")
        for a in schema.arguments
    ]
    returns = ", ".join(str(r.type) for r in schema.returns)
    return f"{', '.join(arguments)} -> {returns or 'nothing'}"


def _told(has: str, expected: str) -> str:
    """The whole text names the change only to who reads both: what differs comes first."""
    if has == expected:
        return ""
    ours, theirs = expected.split(", "), has.split(", ")
    new = [part for part in theirs if part not in ours]
    gone = [part for part in ours if part not in theirs]
    if not new and not gone:
        return f"takes its arguments in another order: ({has})"
    parts = [f"has {', '.join(new)}"] * bool(new) + [f"lacks {', '.join(gone)}"] * bool(gone)
    return " and ".join(parts)
