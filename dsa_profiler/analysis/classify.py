"""The stage and family of a kernel, from its name or from its place: rules are `kernels.toml`.

A name proves a stage or it does not; a GEMM's never does. Place decides then, where the kernels
between two known ones are exactly those that a layer launches there; anything else stays unknown.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from typing import Any

from dsa_profiler.analysis import names
from dsa_profiler.marks import GROUP_OF

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

START, END = "start", "end"


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[kernel]]` of kernels.toml. `stage` is None where the name alone proves none."""

    base: re.Pattern[str]
    template: re.Pattern[str]
    namespace: re.Pattern[str]
    stage: str | None
    family: str
    examples: tuple[str, ...]

    def matches(self, name: names.Name) -> bool:
        return bool(
            self.base.fullmatch(name.base)
            and self.template.search(name.template)
            and self.namespace.search("::".join(name.namespace))
        )


@dataclass(frozen=True, slots=True)
class OrderRule:
    """One `[[order]]`: between stages `after` and `before`, families that fit `pattern`.

    Group n of `pattern` is stage n. A family is one letter of the alphabet that `_letter` gives.
    """

    after: str
    before: str
    pattern: re.Pattern[str]
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a kernel's name says: its parts, the stage it proves (or None), its family (or "")."""

    name: names.Name
    stage: str | None
    family: str


@dataclass(frozen=True, slots=True)
class Rules:
    """All of kernels.toml."""

    kernels: tuple[Rule, ...]
    orders: tuple[OrderRule, ...]
    letters: dict[str, str]


@lru_cache(maxsize=1 << 16)
def classify(text: str) -> Kernel:
    """Classify a demangled kernel name as nsys or Kineto spells it."""
    name = names.parse(text)
    for rule in rules().kernels:
        if rule.matches(name):
            return Kernel(name, rule.stage, rule.family)
    return Kernel(name, None, "")


def by_order(known: Sequence[str | None], families: Sequence[str]) -> list[str | None]:
    """Stages by place for one iteration's kernels in the order of launch.

    known     the stage of each kernel, None where neither mark nor name says.
    families  the family of each kernel.
    Returns the stage of each kernel that an order rule gives, else None.
    """
    found: list[str | None] = [None] * len(known)
    edges = [-1, *(n for n, stage in enumerate(known) if stage is not None), len(known)]
    letters = rules().letters
    for low, high in pairwise(edges):
        if high - low < 2:
            continue
        after = START if low < 0 else known[low]
        before = END if high == len(known) else known[high]
        gap = "".join(letters.get(f, "?") for f in families[low + 1 : high])
        for rule in rules().orders:
            match = (
                rule.pattern.fullmatch(gap)
                if (rule.after, rule.before) == (after, before)
                else None
            )
            if match is not None:
                for number, stage in enumerate(rule.stages, 1):
                    first, last = match.span(number)
                    found[low + 1 + first : low + 1 + last] = [stage] * (last - first)
                break
    return found


@lru_cache(maxsize=1)
def rules() -> Rules:
    """The packaged rules, read once."""
    text = resources.files("dsa_profiler.analysis").joinpath("kernels.toml").read_text("utf-8")
    data = tomllib.loads(text)
    kernels = tuple(_rule(entry) for entry in data["kernel"])
    families = sorted({rule.family for rule in kernels})
    letters = {family: chr(0x100 + n) for n, family in enumerate(families)}
    return Rules(kernels, tuple(_order(entry, letters) for entry in data["order"]), letters)


def _rule(entry: dict[str, Any]) -> Rule:
    stage = entry.get("stage")
    if stage is not None and stage not in GROUP_OF:
        raise ValueError(f"kernels.toml: not a stage: {stage}")
    return Rule(
        re.compile(entry["base"]),
        re.compile(entry.get("template", "")),
        re.compile(entry.get("namespace", "")),
        stage,
        entry["family"],
        tuple(entry["examples"]),
    )


def _order(entry: dict[str, Any], letters: dict[str, str]) -> OrderRule:
    pattern, stages = "", []
    for step in entry["sequence"]:
        families, _, stage = step.partition(" -> ")
        if stage not in GROUP_OF:
            raise ValueError(f"kernels.toml: not a stage: {stage}")
        stages.append(stage)
        pattern += "("
        for family in families.split():
            pattern += letters[family.rstrip("?")] + ("?" if family.endswith("?") else "")
        pattern += ")"
    return OrderRule(entry["after"], entry["before"], re.compile(pattern), tuple(stages))
