"""Which kernels a DSA layer must, may and must not run: `expected.toml` as values.

A rule speaks only when everything that it asks about is known: nothing is inferred from a version
that was not given, and an unknown setting never makes a kernel forbidden.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Set = Literal["required", "optional", "forbidden"]
ERAS = "ABCDE"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one side; empty or None where it is not.

    kv         `short` when no sequence exceeds index_topk, `long` when one does.
    framework  trtllm, vllm, sglang.
    era        A (1.2) to E of TensorRT-LLM's versions, see docs/alignment.md.
    """

    phase: str = ""
    kv: str = ""
    dtype: str = ""
    sm: str = ""
    framework: str = ""
    era: str = ""
    graph: bool | None = None
    tp: int | None = None

    def holds(self, condition: dict[str, Any]) -> bool:
        """Whether every named condition is known and true."""
        for key, wanted in condition.items():
            known = getattr(self, key)
            if key == "era":
                if not known or not _era_fits(known, wanted):
                    return False
            elif key == "tp":
                if known is None or (known > 1) != (wanted == "many"):
                    return False
            elif known is None or known == "" or known != wanted:
                return False
        return True


@dataclass(frozen=True, slots=True)
class Rule:
    """One kernel, by stage or by a pattern on its base name, and what it is under a condition."""

    set: Set
    why: str
    when: dict[str, Any]
    on: str
    stage: str
    pattern: re.Pattern[str] | None

    def about(self, stage: str, base: str) -> bool:
        if self.pattern is not None:
            return self.pattern.search(base) is not None
        return stage == self.stage


def _era_fits(known: str, wanted: str) -> bool:
    if wanted.endswith("+"):
        return known >= wanted[0]
    return known <= wanted[0] if wanted.endswith("-") else known == wanted


@cache
def _data() -> dict[str, Any]:
    text = resources.files("dsa_profiler.analysis").joinpath("expected.toml").read_text("utf-8")
    return tomllib.loads(text)


def _roles() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((r["name"], re.compile(r["match"])) for r in _data()["role"])


ROLES = _roles()
"""(role, pattern) in the order in which they are tried."""


@cache
def alias(base: str) -> str:
    """The one base name of a kernel that has several by shape."""
    for entry in _data()["alias"]:
        if re.fullmatch(entry["match"], base):
            return str(entry["base"])
    return base


def phase_of(base: str) -> str:
    """The phase that a kernel's base name tells, "" where it tells none."""
    for entry in _data()["phase"]:
        if re.search(entry["match"], base):
            return str(entry["phase"])
    return ""


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule of the data file, in its order."""
    return tuple(
        Rule(
            r["set"], r["why"], r["when"], r.get("on", ""), r.get("stage", ""),
            re.compile(r["name"], re.IGNORECASE) if "name" in r else None,
        )
        for r in _data()["rule"]
    )  # fmt: skip


@cache
def reasons() -> dict[str, str]:
    """Known reasons for a difference, by name."""
    return {r["name"]: r["text"] for r in _data()["reason"]}


def why_absent(stage: str, base: str, lacking: Setting, side: str) -> str:
    """Why a side may lack a kernel that the other one runs; "" when no rule allows it.

    What is forbidden on the standalone side alone says nothing for a server that runs it.
    """
    for rule in rules():
        absent = rule.set == "optional" and rule.on in ("", side)
        absent = absent or (rule.set == "forbidden" and not rule.on)
        if absent and rule.about(stage, base) and lacking.holds(rule.when):
            return rule.why
    return ""


def verdict_on(stage: str, base: str, setting: Setting, side: str, among: Set) -> str:
    """Why a kernel is in a set under a setting, "" when no rule says so.

    side  "standalone" or "e2e"; a rule bound to one side is silent about the other.
    """
    for rule in rules():
        if (
            rule.set == among
            and rule.on in ("", side)
            and rule.about(stage, base)
            and setting.holds(rule.when)
        ):
            return rule.why
    return ""


def required_stages(setting: Setting) -> dict[str, str]:
    """Stages that must show under a setting, with the reason."""
    return {r.stage: r.why for r in rules() if r.set == "required" and setting.holds(r.when)}
