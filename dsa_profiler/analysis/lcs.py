"""Longest common subsequence of two sequences of ints: which items of one are items of the other.

Hyyrö's bit-parallel recurrence on Python's whole numbers, one per item of `b`, kept for the way
back (`u = v & match[y]; v = (v + u) | (v - u)`, a zero bit is a step of the LCS). Exact, O(n·m/64)
time and n·m/8 bytes. rapidfuzz, where installed, walks back by the same rule, so that the pairs do
not depend on what is installed.

difflib is not an LCS: on a stream of like layers it finds a fraction of the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

try:
    from rapidfuzz.distance import LCSseq
except ImportError:  # pragma: no cover - the pure form is tested beside it
    LCSseq = None  # type: ignore[assignment]

Pairs = list[tuple[int, int]]


def pairs(a: Sequence[int], b: Sequence[int]) -> Pairs:
    """Index pairs (i, j), ascending in both, with a[i] == b[j]; as many as there can be."""
    head = _common(a, b)
    tail = _common(a[head:][::-1], b[head:][::-1])
    middle_a, middle_b = a[head : len(a) - tail], b[head : len(b) - tail]
    middle: Pairs = []
    if len(middle_a) and len(middle_b):
        middle = (pure if LCSseq is None else _with_rapidfuzz)(middle_a, middle_b)
    return [
        *((i, i) for i in range(head)),
        *((i + head, j + head) for i, j in middle),
        *((len(a) - k, len(b) - k) for k in range(tail, 0, -1)),
    ]


def pure(a: Sequence[int], b: Sequence[int]) -> Pairs:
    """The LCS without any package."""
    match: dict[int, int] = {}
    for i, item in enumerate(a):
        match[item] = match.get(item, 0) | 1 << i
    mask = (1 << len(a)) - 1
    row, rows = mask, []
    for item in b:
        common = row & match.get(item, 0)
        row = ((row + common) | (row - common)) & mask
        rows.append(row)
    found: Pairs = []
    i, j = len(a), len(b)
    while i and j:
        if rows[j - 1] >> (i - 1) & 1:
            i -= 1
            continue
        j -= 1
        if j and not rows[j - 1] >> (i - 1) & 1:
            continue
        i -= 1
        found.append((i, j))
    return found[::-1]


def _with_rapidfuzz(a: Sequence[int], b: Sequence[int]) -> Pairs:
    found: Pairs = []
    for block in LCSseq.opcodes(a, b):
        if block.tag == "equal":
            found += zip(
                range(block.src_start, block.src_end),
                range(block.dest_start, block.dest_end),
                strict=True,
            )
    return found


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def weighted(a: Sequence[int], b: Sequence[int], likeness: Callable[[int, int], float]) -> Pairs:
    """Among all LCSs the one whose pairs are most alike; O(n·m) steps, so for short sequences.

    likeness  of a[i] and b[j], from 0 to 1, asked only where they are equal. It decides which of
    three like GEMMs is the one that is missing; it never costs a pair.
    """
    width = len(b) + 1
    bound = min(len(a), len(b)) + 1.0
    best = [[0.0] * width for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        row, below = best[i], best[i + 1]
        for j in range(len(b) - 1, -1, -1):
            score = below[j] if below[j] >= row[j + 1] else row[j + 1]
            if a[i] == b[j]:
                score = max(score, below[j + 1] + bound + likeness(i, j))
            row[j] = score
    found: Pairs = []
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i] == b[j] and best[i][j] == best[i + 1][j + 1] + bound + likeness(i, j):
            found.append((i, j))
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return found
