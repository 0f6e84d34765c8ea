"""Which API call launched a kernel: the join by process and correlation id.

Ids count up inside each process, so ids of two processes collide: joined by the id alone, a
capture of two processes pairs kernels with the calls of the other one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.analysis.coding import blocks, distinct, place_in
from dsa_profiler.columns import NULL, PROCESS_MASK, Launches

if TYPE_CHECKING:
    from collections.abc import Callable

    from dsa_profiler.columns import Ints

    Rows = np.ndarray[Any, np.dtype[np.int32]]
    Keys = Callable[[Ints, Ints], Ints]


def join(launches: Launches, process: Ints, correlation: Ints) -> tuple[Rows, int]:
    """The launch row of each (process, correlation), NULL for none; and how many rows of `launches`
    repeat the key of another one, of which the earliest counts.
    """
    found = np.full(len(process), NULL, np.int32)
    rows = np.flatnonzero(launches.correlation >= 0)
    if not len(rows) or not len(process):
        return found, 0
    own, key, size = _keys(launches, rows, len(process))
    table = np.full(size + 1, NULL, np.int32)  # its last entry is for keys that no launch has
    table[own] = rows
    repeats = len(rows) - int(np.count_nonzero(table >= 0))
    if repeats:
        columns = (launches.thread, launches.end, launches.start)
        last_first = np.lexsort([c[rows] for c in columns])[::-1]
        table[own[last_first]] = rows[last_first]
    for part in blocks(len(found)):
        found[part] = table[key(process[part], correlation[part])]
    return found, repeats


def _keys(launches: Launches, rows: Ints, wanted: int) -> tuple[Ints, Keys, int]:
    """Keys of the given launches, numbers below the returned size; and the function that gives the
    key of (process, correlation), -1 for one that no launch has.

    Ids are dense in real files, so the key is the id itself, process after process; where that
    would make too large a table, keys are numbered first.
    """
    whole = len(rows) == len(launches)
    ids = launches.correlation if whole else launches.correlation[rows]
    thread = launches.thread if whole else launches.thread[rows]
    threads = distinct(thread)
    processes = distinct(threads & PROCESS_MASK)
    low, high = int(ids.min()), int(ids.max())
    width = high - low + 1
    owner = np.searchsorted(processes, threads & PROCESS_MASK)
    own = owner[np.searchsorted(threads, thread)]
    if len(processes) * width <= 8 * (len(rows) + wanted) + (1 << 12):
        own *= width
        own += ids
        own -= low

        def dense(process: Ints, correlation: Ints) -> Ints:
            place = place_in(processes, process)
            missing = (place < 0) | (correlation < low) | (correlation > high)
            return np.where(missing, NULL, place * width + (correlation - low))

        return own, dense, len(processes) * width
    known = distinct(ids)
    own = own * len(known) + np.searchsorted(known, ids)
    keys = distinct(own)

    def sparse(process: Ints, correlation: Ints) -> Ints:
        place, number = place_in(processes, process), place_in(known, correlation)
        return place_in(keys, np.where(place < 0, NULL, place * len(known) + number)) | np.where(
            number < 0, NULL, 0
        )

    return np.searchsorted(keys, own), sparse, len(keys)
