"""Which API call launched a kernel: the join by process and correlation id.

Ids count up inside each process, so ids of two processes collide: joined by the id alone, a
capture of two processes pairs kernels with the calls of the other one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.analysis.coding import distinct, place_in
from dsa_profiler.columns import NULL, PROCESS_MASK, Launches

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

    Rows = np.ndarray[Any, np.dtype[np.int32]]


def join(launches: Launches, process: Ints, correlation: Ints) -> tuple[Rows, int]:
    """The launch row of each (process, correlation), NULL for none; and how many rows of `launches`
    repeat the key of another one, of which the earliest counts.

    Ids are dense in real files, so a table indexed by id is the fastest join; where they are not,
    keys are numbered first.
    """
    rows = np.flatnonzero(launches.correlation >= 0)
    if not len(rows) or not len(process):
        return np.full(len(process), NULL, np.int32), 0
    own, wanted, size = _keys(launches, rows, process, correlation)
    table = np.full(size + 1, NULL, np.int32)
    table[own] = rows
    repeats = len(rows) - int(np.count_nonzero(table >= 0))
    if repeats:
        columns = (launches.thread, launches.end, launches.start)
        last_first = np.lexsort([c[rows] for c in columns])[::-1]
        table[own[last_first]] = rows[last_first]
    return table[wanted], repeats


def _keys(
    launches: Launches, rows: Ints, process: Ints, correlation: Ints
) -> tuple[Ints, Ints, int]:
    """Numbers below `size` for the keys of launches; the same for what is wanted, `size` for keys
    that no launch has.
    """
    ids = launches.correlation if len(rows) == len(launches) else launches.correlation[rows]
    thread = launches.thread if len(rows) == len(launches) else launches.thread[rows]
    threads = distinct(thread)
    processes = distinct(threads & PROCESS_MASK)
    low, high = int(ids.min()), int(ids.max())
    width = high - low + 1
    own = np.searchsorted(processes, threads & PROCESS_MASK)[np.searchsorted(threads, thread)]
    wanted = place_in(processes, process)
    missing = (wanted < 0) | (correlation < low) | (correlation > high)
    size = len(processes) * width
    if size <= 8 * (len(rows) + len(process)) + (1 << 12):
        for key, numbers in ((own, ids), (wanted, correlation)):
            key *= width
            key += numbers
            key -= low
        wanted[missing] = size
        return own, wanted, size
    known = distinct(ids)
    own = own * len(known) + np.searchsorted(known, ids)
    place = place_in(known, correlation)
    keys = distinct(own)
    found = place_in(keys, np.where(missing | (place < 0), NULL, wanted * len(known) + place))
    return np.searchsorted(keys, own), np.where(found < 0, len(keys), found), len(keys)
