"""Two layers, kernel by kernel: which does the same work, under the same name or another.

Symmetric: with the sides swapped, every pair is swapped and missing becomes extra. Both orders of
the arguments run the same comparison, on the two sequences in one canonical order.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from dsa_profiler.analysis import lcs

if TYPE_CHECKING:
    from dsa_profiler.analysis.words import Word

How = Literal["matched", "moved", "retuned", "renamed"]
ALIKE = 0.6
"""Likeness of two base names from which they may be one kernel renamed."""
NEAR = 2
"""Pairs between two places up to which a matrix product may have moved."""
SHORT = 40_000
"""Cells up to which the more careful LCS is worth its quadratic time."""


@dataclass(frozen=True, slots=True)
class Item:
    """One kernel of a layer: its word, the stage of its mark ("" for none), its median time."""

    word: Word
    token: int
    marked: str = ""
    median_ns: float = 0.0

    @property
    def stage(self) -> str:
        return self.marked or self.word.stage


@dataclass(frozen=True, slots=True)
class Pair:
    """Places in the two layers.

    how  matched: same token in issue order. moved: same token, another place. retuned: a matrix
    product in its place, from another tile or cuBLAS kernel. renamed: another name for the stage.
    """

    left: int
    right: int
    how: How


@dataclass(frozen=True, slots=True)
class Pairing:
    """Everything in the left layer is paired or missing; in the right one, paired or extra."""

    pairs: tuple[Pair, ...]
    missing: tuple[int, ...]
    extra: tuple[int, ...]


def pair(left: Sequence[Item], right: Sequence[Item]) -> Pairing:
    """Pair two layers given in issue order."""
    if _canonical(left) <= _canonical(right):
        found = _pair(left, right)
    else:
        found = [Pair(p.right, p.left, p.how) for p in _pair(right, left)]
    found.sort(key=lambda p: (p.left, p.right))
    lefts, rights = {p.left for p in found}, {p.right for p in found}
    return Pairing(
        tuple(found),
        tuple(i for i in range(len(left)) if i not in lefts),
        tuple(j for j in range(len(right)) if j not in rights),
    )


def _canonical(items: Sequence[Item]) -> tuple[object, ...]:
    return tuple((i.word.name, i.marked, i.median_ns) for i in items)


def _pair(a: Sequence[Item], b: Sequence[Item]) -> list[Pair]:
    tokens_a, tokens_b = [i.token for i in a], [i.token for i in b]
    if len(a) * len(b) <= SHORT and tokens_a != tokens_b:
        ordered = lcs.weighted(tokens_a, tokens_b, lambda i, j: _same_work(a[i], b[j]))
    else:
        ordered = lcs.pairs(tokens_a, tokens_b)
    found = [Pair(i, j, _how(a[i], b[j])) for i, j in ordered]
    free_a = [i for i in range(len(a)) if i not in {i for i, _ in ordered}]
    free_b = [j for j in range(len(b)) if j not in {j for _, j in ordered}]
    gap_a, gap_b = _gaps(ordered, len(a), 0), _gaps(ordered, len(b), 1)
    for step in (_moved, _renamed):
        scores = []
        for i in free_a:
            for j in free_b:
                apart = abs(gap_a[i] - gap_b[j])
                score = step(a[i], b[j], apart)
                if score > 0:
                    scores.append((-score, apart, i + j, abs(i - j), i, j))
        for *_, i, j in sorted(scores):
            if i in free_a and j in free_b:
                free_a.remove(i)
                free_b.remove(j)
                same = step is _moved and _how(a[i], b[j]) != "renamed"
                found.append(Pair(i, j, "moved" if same else "renamed"))
    return found


def _same_work(a: Item, b: Item) -> float:
    """0 to 1: like names, and like times, decide between kernels that are equal as tokens."""
    name = 0.4 * (a.word.name == b.word.name) + 0.2 * (a.word.precision == b.word.precision)
    low, high = sorted((a.median_ns, b.median_ns))
    return name + 0.4 * (low / high if high > 0 else 1.0)


def _how(a: Item, b: Item) -> How:
    if a.word.role == b.word.role == "gemm":
        if a.word.precision and b.word.precision and a.word.precision != b.word.precision:
            return "renamed"
        return "matched" if a.word.name == b.word.name else "retuned"
    return "matched"


def _gaps(ordered: list[tuple[int, int]], length: int, side: int) -> list[int]:
    """How many pairs lie before each place."""
    cuts = {p[side] for p in ordered}
    out, seen = [], 0
    for n in range(length):
        out.append(seen)
        seen += n in cuts
    return out


def _moved(a: Item, b: Item, apart: int) -> float:
    """The same token elsewhere: streams overlap and issue in another order. A matrix product far
    from its place is another one.
    """
    if a.token != b.token or (a.word.role == "gemm" and apart > NEAR):
        return 0.0
    return 1.0 + (apart == 0)


def _renamed(a: Item, b: Item, apart: int) -> float:
    """By stage where one is known, else by name between the same neighbours."""
    same_gap = apart == 0
    if {a.word.role, b.word.role} & {"context", "memory"}:
        return 0.0
    alike = _alike(*sorted((a.word.base, b.word.base)))
    if a.stage != "unknown" and b.stage != "unknown":
        return (1.0 + alike + same_gap) * (a.stage == b.stage)
    if not same_gap:
        return 0.0
    if a.word.role == b.word.role == "gemm":
        return 1.0 + alike
    return alike if alike >= ALIKE and a.word.role == b.word.role else 0.0


@lru_cache(maxsize=1 << 14)
def _alike(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
