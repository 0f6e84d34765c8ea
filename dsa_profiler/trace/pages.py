"""Integer columns straight from the pages of a SQLite file, thousands of rows at a time.

SQLite hands out rows one by one; a trace has millions of them. Here the leaf pages of one table
are read in order and all their records decoded together with numpy: the type codes at the head of
each record give the place of every value, and one gather per column fetches it. The format is
https://www.sqlite.org/fileformat2.html, sections 1.5 (pages), 1.6 (b-trees), 2.1 (records).

Law: what this returns equals what SQL returns, row for row. Whatever it is not sure of (overflow
pages, other types, added columns, a damaged page) it declines with `Declined`, and SQL decides.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.columns import NULL

if TYPE_CHECKING:
    from typing import TypeAlias

    from dsa_profiler.columns import Ints

    Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
    Words: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]

CHUNK_BYTES = 2 << 20
PAD = 512
LONGEST_TEXT = 256
"""In bytes; longer range texts are rare, and their pages are read text by text."""
INTERIOR, LEAF = 5, 13
REAL, BLOB = 7, 12
UTF8 = 1

SIZES = np.array([0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0], np.int64)
SHIFTS = np.array([0, 56, 48, 40, 32, 16, 0, 0, 0, 0, 0, 0], np.int64)
MASKS = np.array([(1 << 64) - (1 << (64 - 8 * n)) for n in range(9)], np.uint64)
"""By the number of bytes kept at the top of a word."""
CONSTANT = {0: NULL, 8: 0, 9: 1}
"""Type codes without a value in the record: NULL, 0 and 1."""


class Declined(Exception):
    """The pages hold something that only SQLite itself should interpret."""


@dataclass
class Scan:
    """Columns of one table in the order of rowids; `text` indexes `texts`, NULL where not text."""

    columns: list[Ints]
    text: Ints
    texts: list[str] = field(default_factory=list)


def scan(path: Path, root: int, wanted: Sequence[int], text: int | None = None) -> Scan:
    """The columns at the positions `wanted`, and the text at position `text`."""
    with path.open("rb", buffering=0) as file:
        pages = _Pages(file.fileno())
        leaves = _leaves(pages, root)
        rows = _Rows(len(wanted) + 1)
        interned: dict[bytes, int] = {}
        per_chunk = max(1, CHUNK_BYTES // pages.size)
        for i in range(0, len(leaves), per_chunk):
            data = pages.read(leaves[i : i + per_chunk])
            rows.append(_decode(data, pages, wanted, text, interned), (len(leaves) - i) / per_chunk)
    columns = rows.columns()
    texts = [raw.decode("utf-8", "replace") for raw in interned]
    return Scan(columns[:-1], columns[-1], texts)


class _Rows:
    """Columns being filled.

    Memory that nobody has written to costs nothing, so they start out large; and a column that has
    held one value so far is that value, since half the columns of a trace never hold another.
    """

    def __init__(self, columns: int) -> None:
        self.filled = 0
        self.space: list[Ints | None] = [None] * columns
        self.constant = [NULL] * columns

    def append(self, piece: list[Ints], left: float) -> None:
        """Add rows; about `left` pieces like this one, itself among them, are still to come."""
        more = len(piece[0])
        if not more:
            return
        total = self.filled + more
        for i, values in enumerate(piece):
            space = self.space[i]
            if space is None:
                first = int(values[0])
                if self.filled == 0:
                    self.constant[i] = first
                if self.constant[i] == first and values.strides == (0,):
                    continue
                space = np.empty(self.filled + _ahead(more, left), np.int64)
                space[: self.filled] = self.constant[i]
            elif total > len(space):
                space, old = np.empty(self.filled + _ahead(more, left), np.int64), space
                space[: self.filled] = old[: self.filled]
            space[self.filled : total] = values
            self.space[i] = space
        self.filled = total

    def columns(self) -> list[Ints]:
        return [
            np.broadcast_to(np.int64(value), self.filled) if space is None else space[: self.filled]
            for space, value in zip(self.space, self.constant, strict=True)
        ]


def _ahead(rows: int, left: float) -> int:
    return int(rows * max(1.0, left) * 1.125)


class _Pages:
    """The pages of an open file, by number from 1."""

    def __init__(self, file: int) -> None:
        head = os.pread(file, 100, 0)
        if len(head) < 100 or int.from_bytes(head[56:60], "big") != UTF8:
            raise Declined("no UTF-8 database")
        self.file = file
        self.size = int.from_bytes(head[16:18], "big") or 0
        self.size = 65536 if self.size == 1 else self.size
        if self.size < 512 or self.size & (self.size - 1):
            raise Declined("page size")
        self.usable = self.size - head[20]
        self.count = os.fstat(file).st_size // self.size

    def read(self, numbers: Ints) -> Bytes:
        """These pages one after the other, and a pad that words may run into."""
        data = np.empty(len(numbers) * self.size + PAD, np.uint8)
        data[-PAD:] = 0
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        for first, last in zip([0, *breaks], [*breaks, len(numbers)], strict=True):
            into = memoryview(data.data)[first * self.size : last * self.size]
            if os.preadv(self.file, [into], (int(numbers[first]) - 1) * self.size) != len(into):
                raise Declined("file ends early")
        return data


def _leaves(pages: _Pages, root: int) -> Ints:
    """The leaf pages of the table b-tree at `root`, in key order."""
    level = np.array([root], np.int64)
    seen = 0
    while True:
        if not len(level) or int(level.min()) < 2 or int(level.max()) > pages.count:
            raise Declined("page number")
        seen += len(level)
        if seen > pages.count:
            raise Declined("a page is its own descendant")
        if pages.read(level[:1])[0] != INTERIOR:
            return level
        level = np.concatenate([_children(pages, page) for page in level])


def _children(pages: _Pages, page: int) -> Ints:
    data = pages.read(np.array([page], np.int64))
    count = int(data[3]) << 8 | int(data[4])
    if data[0] != INTERIOR or 12 + 2 * count > pages.usable:
        raise Declined("not an interior page")
    cells = data[12 : 12 + 2 * count].view(">u2").astype(np.int64)
    if count and int(cells.max()) + 4 > pages.usable:
        raise Declined("cell pointer")
    left = data[cells[:, None] + np.arange(4)].astype(np.int64) @ np.array(
        [1 << 24, 1 << 16, 256, 1]
    )
    right = int.from_bytes(data[8:12].tobytes(), "big")
    return np.append(left, right)


def _decode(
    data: Bytes,
    pages: _Pages,
    wanted: Sequence[int],
    text: int | None,
    interned: dict[bytes, int],
) -> list[Ints]:
    """The wanted columns of all records on some leaf pages, and the text column last."""
    words = np.ndarray(len(data) - 7, np.uint64, data.data, 0, (1,))
    record, end = _records(data, words, pages)
    head = data[record]
    if len(head) and int(head.max()) >= 0x80:
        raise Declined("long record header")
    code_at, codes_end, value_at = record + 1, record + head, record + head
    out: dict[int, Ints] = {}
    for position in range(1 + max(-1 if text is None else text, *wanted)):
        code, width = _codes(data, code_at)
        size = _sizes(code)
        if (position in wanted or position == text) and bool((value_at + size > end).any()):
            raise Declined("a value beyond its record")
        if position in wanted:
            out[position] = _values(words, value_at, code)
        elif position == text:
            out[position] = _texts(data, words, value_at, code, interned)
        code_at += width
        value_at += size
    if bool((code_at > codes_end).any()):
        raise Declined("records from before a column was added")
    none = np.broadcast_to(np.int64(NULL), len(record))
    return [*(out[p] for p in wanted), none if text is None else out[text]]


def _records(data: Bytes, words: Words, pages: _Pages) -> tuple[Ints, Ints]:
    """Where each record's header begins and its payload ends, in order of page and cell."""
    base = np.arange((len(data) - PAD) // pages.size, dtype=np.int64) * pages.size
    count = data[base + 3].astype(np.int64) << 8 | data[base + 4]
    if bool((data[base] != LEAF).any()) or int(count.max()) * 2 + 8 > pages.usable:
        raise Declined("not a leaf page")
    page = np.repeat(base, count)
    first = np.cumsum(count) - count
    pointer = page + 8 + 2 * (np.arange(len(page)) - np.repeat(first, count))
    inside = data[pointer].astype(np.int64) << 8 | data[pointer + 1]
    if len(inside) and int(inside.max()) + 4 > pages.usable:
        raise Declined("cell pointer")
    cell = page + inside
    word = _gather(words, cell)
    payload, rest = (word >> 56).astype(np.int64), word << 8
    longer = payload >= 0x80
    if bool(longer.any()):
        second = (word >> 48 & 0xFF).astype(np.int64)
        payload = np.where(longer, (payload & 0x7F) << 7 | second, payload)
        if bool((second[longer] >= 0x80).any()):
            raise Declined("overflow")
        rest = np.where(longer, word << 16, rest)
    if len(payload) and int(payload.max()) > pages.usable - 35:
        raise Declined("overflow")
    # the rowid's varint ends at the first byte whose top bit is clear
    _, exponent = np.frexp((~rest & 0x8080808080808080).astype(np.float64))
    prefix = 2 + longer + (64 - exponent.astype(np.int64)) // 8
    if bool((prefix > 8).any()):
        raise Declined("long rowid")
    record = cell + prefix
    end = record + payload
    if bool((end > page + pages.usable).any()):
        raise Declined("a record beyond its page")
    return record, end


def _codes(data: Bytes, at: Ints) -> tuple[Any, Ints | int]:
    """Type codes and how many bytes each takes in the header, a number where all take one."""
    code = data[at]
    if not len(code) or int(code.max()) < 0x80:
        return code, 1
    second = data[at + 1].astype(np.int64)
    longer = code >= 0x80
    if bool((second[longer] >= 0x80).any()):
        raise Declined("long value")
    whole = np.where(longer, (code.astype(np.int64) & 0x7F) << 7 | second, code)
    return whole, 1 + longer.astype(np.int64)


def _sizes(code: Ints) -> Ints | int:
    """Bytes of each value, one number where the codes are all the same."""
    if not len(code):
        return 0
    low, high = int(code.min()), int(code.max())
    if low == high:
        return int(SIZES[low]) if low < BLOB else (low - BLOB) // 2
    if high < BLOB:
        return SIZES[code]
    return np.where(code < BLOB, SIZES[np.minimum(code, BLOB - 1)], (code - BLOB) // 2)


def _values(words: Words, at: Ints, code: Ints) -> Ints:
    """Whole numbers: big-endian, 1 to 8 bytes, shifted down from the top of a word."""
    if not len(code):
        return np.empty(0, np.int64)
    low, high = int(code.min()), int(code.max())
    if high > 9 or bool((code == REAL).any()):
        raise Declined("not an integer")
    if low == high and low in CONSTANT:
        return np.broadcast_to(np.int64(CONSTANT[low]), len(code))
    value = _gather(words, at).view(np.int64)
    value >>= SHIFTS[low] if low == high else SHIFTS[code]
    if low == 0 or high >= 8:
        for constant, meaning in CONSTANT.items():
            value[code == constant] = meaning
    same = value[0] == value[-1] and bool((value == value[0]).all())
    return np.broadcast_to(value[0], len(value)) if same else value


def _texts(data: Bytes, words: Words, at: Ints, code: Ints, interned: dict[bytes, int]) -> Ints:
    """Indexes into `interned`, NULL where the value is no text. Equal hashes are compared."""
    out = np.full(len(code), NULL, np.int64)
    rows = np.flatnonzero((code > BLOB) & (code & 1 == 1))
    if not len(rows):
        return out
    at, length = at[rows], (code[rows].astype(np.int64) - BLOB) // 2
    if int(length.max()) > LONGEST_TEXT:
        out[rows] = [
            interned.setdefault(data[a : a + n].tobytes(), len(interned))
            for a, n in zip(at.tolist(), length.tolist(), strict=True)
        ]
        return out
    eights = [
        _gather(words, at + i) & MASKS[np.clip(length - i, 0, 8)]
        for i in range(0, int(length.max()), 8)
    ]
    mixed = length.astype(np.uint64)
    for word in eights:
        mixed ^= word
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> 29
    _, first, group = np.unique(mixed, return_index=True, return_inverse=True)
    twin = first[group]
    if not all(np.array_equal(word, word[twin]) for word in (length, *eights)):
        raise Declined("two texts with one hash")
    ids = [
        interned.setdefault(data[a : a + n].tobytes(), len(interned))
        for a, n in zip(at[first].tolist(), length[first].tolist(), strict=True)
    ]
    out[rows] = np.array(ids, np.int64)[group]
    return out


def _gather(words: Words, at: Ints) -> Words:
    """The eight bytes at each place, as a big-endian number."""
    return words[at].byteswap(inplace=True)
