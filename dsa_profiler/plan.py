"""From axes to cases: the standard grids, their limits, and what was left out and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsa_profiler.errors import UsageError
from dsa_profiler.model import Case, Dtype, Phase

CONTEXT_BATCHES = tuple(2**k for k in range(9))
CONTEXT_LENGTHS = (
    1, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 10240, 12288, 16384,
    32768,
)  # fmt: skip
CONTEXT_TOKEN_LIMIT = 65_536

GENERATION_BATCHES = tuple(2**k for k in range(11))
GENERATION_LENGTHS = tuple(2**k - 1 for k in range(1, 18))
GENERATION_KV_LIMIT = 16_777_216


@dataclass(frozen=True, slots=True)
class Grid:
    """Axes of one phase. Cases with batch × length above `limit` are skipped (0: no limit)."""

    phase: Phase
    batch_sizes: tuple[int, ...]
    seq_lens: tuple[int, ...]
    num_heads: tuple[int, ...] = (128,)
    dtypes: tuple[Dtype, ...] = ("bfloat16",)
    prefixes: tuple[int, ...] = (0,)
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Skip:
    """A grid point that is not run, and the reason."""

    case: Case
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The cases to run, in order and without repeats, and the ones left out."""

    cases: tuple[Case, ...]
    skipped: tuple[Skip, ...] = ()


def standard(phase: Phase, num_heads: tuple[int, ...] = (128,)) -> Grid:
    """The full grid: 110 context cases, 181 generation cases a head count."""
    if phase == "context":
        return Grid(phase, CONTEXT_BATCHES, CONTEXT_LENGTHS, num_heads, limit=CONTEXT_TOKEN_LIMIT)
    return Grid(phase, GENERATION_BATCHES, GENERATION_LENGTHS, num_heads, limit=GENERATION_KV_LIMIT)


def smoke(phase: Phase, num_heads: tuple[int, ...] = (128,)) -> Grid:
    """A handful of cases at true dimensions that a laptop's CPU ends within two minutes.

    The generation lengths lie on both sides of the 2,048 keys that top-k keeps.
    """
    if phase == "context":
        return Grid(phase, (1,), (16, 64), num_heads)
    return Grid(phase, (1, 2), (1023, 2047, 4095), num_heads)


GRIDS = {"standard": standard, "smoke": smoke}


def build(grids: Iterable[Grid], max_position: int | None = None) -> Plan:
    """All cases of the grids. Repeats collapse; sizes over a limit are skipped with the reason.

    max_position  the model's longest sequence in tokens; longer cases are skipped.
    """
    cases: dict[Case, None] = {}
    skipped: dict[Case, str] = {}
    for grid in grids:
        for case in _points(grid):
            reason = _reason_to_skip(case, grid, max_position)
            if reason:
                skipped.setdefault(case, reason)
            else:
                cases.setdefault(case)
    if not cases:
        raise UsageError(
            "grid-empty",
            f"the grid holds no case to run ({len(skipped)} skipped)",
            "give at least one batch size and one sequence length within the limits",
        )
    rest = tuple(Skip(c, reason) for c, reason in skipped.items() if c not in cases)
    return Plan(tuple(cases), rest)


def _points(grid: Grid) -> Iterable[Case]:
    for heads in grid.num_heads:
        for dtype in grid.dtypes:
            for prefix in grid.prefixes:
                for seq in grid.seq_lens:
                    for batch in grid.batch_sizes:
                        yield Case(grid.phase, batch, seq, heads, dtype, prefix)


def _reason_to_skip(case: Case, grid: Grid, max_position: int | None) -> str:
    product = case.batch_size * (case.seq_len + case.prefix)
    if grid.limit and product > grid.limit:
        return f"batch x length = {product:,} exceeds {grid.limit:,}"
    if max_position is not None and case.kv_len > max_position:
        return f"{case.kv_len:,} tokens exceed the model's {max_position:,}"
    return ""
