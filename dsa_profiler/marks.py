"""NVTX marks: the text that a workload writes and the analysis reads back.

Written and parsed here alone, so that a mark always parses back to what built it:

    dsa:case <slug> > dsa:warmup <n> | dsa:iter <n> > dsa:stage <stage>
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

MarkKind = Literal["case", "warmup", "iter", "stage"]
PREFIX = "dsa:"

STAGE_GROUPS: dict[str, tuple[str, ...]] = {
    "projections": ("qkv_a_proj", "qkv_a_norm", "q_b_proj", "q_absorb", "v_up_proj", "o_proj"),
    "indexer": (
        "indexer_q_proj",
        "indexer_k_proj",
        "indexer_rope_norm",
        "indexer_quant",
        "indexer_cache",
    ),
    "mqa_logits": ("mqa_logits",),
    "topk": ("topk", "index_convert"),
    "sparse_attn": ("rope_append", "sparse_attn", "sparse_attn_combine", "dense_attn"),
    "other": ("schedule", "communication", "memory", "unknown"),
}
GROUP_OF: dict[str, str] = {s: group for group, stages in STAGE_GROUPS.items() for s in stages}
STAGES: tuple[str, ...] = tuple(GROUP_OF)


@dataclass(frozen=True, slots=True)
class Mark:
    """One parsed mark: its kind and its value (a slug, a number or a stage)."""

    kind: MarkKind
    value: str

    @property
    def number(self) -> int:
        return int(self.value)


def case(slug: str) -> str:
    return f"{PREFIX}case {slug}"


def warmup(number: int) -> str:
    return f"{PREFIX}warmup {number}"


def iteration(number: int) -> str:
    return f"{PREFIX}iter {number}"


def stage(name: str) -> str:
    """The mark of a stage; a name outside the closed list is a bug of the workload."""
    if name not in GROUP_OF:
        raise ValueError(f"not a stage: {name!r}")
    return f"{PREFIX}stage {name}"


def parse(text: str) -> Mark | None:
    """The mark that `text` is, or None when it is somebody else's range or a malformed mark."""
    if not text.startswith(PREFIX):
        return None
    kind, _, value = text[len(PREFIX) :].partition(" ")
    if kind not in get_args(MarkKind) or not value or value != value.strip():
        return None
    if kind in ("warmup", "iter") and not (value.isascii() and value.isdigit()):
        return None
    if kind == "stage" and value not in GROUP_OF:
        return None
    return Mark(kind, value)  # type: ignore[arg-type]
