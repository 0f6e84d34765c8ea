"""CUDA graphs: from a replayed kernel back to the call that created its node.

A replay runs clones. `graphNodeId` names the clone, `originalGraphNodeId` what it was cloned from,
and that chain may be longer than one hop. Only the root's creation lies where the layer's code
ran, so only its time and thread can say which stage a replayed kernel belongs to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.columns import NULL, PROCESS_MASK, GraphNodes

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

    Rows = np.ndarray[Any, np.dtype[np.int32]]


def creations(nodes: GraphNodes, process: Ints, node: Ints) -> Rows:
    """The row of `nodes` that created each (process, node)'s root; NULL where the file lacks it.

    A chain that ends at a node without a creation row, or runs in a circle, has no root.
    """
    if not len(nodes):
        return np.full(len(node), NULL, np.int32)
    owner = nodes.thread & PROCESS_MASK
    keys, code = _codes((owner, nodes.node), (owner, nodes.original), (process, node))
    own, original, wanted = np.split(code, [len(nodes), 2 * len(nodes)])
    order = np.lexsort((nodes.original, nodes.end, nodes.thread, nodes.start))[::-1]
    cloned = nodes.original > 0
    created_by = np.full(keys, NULL, np.int32)
    fresh = order[~cloned[order]]
    created_by[own[fresh]] = fresh
    up = np.arange(keys)
    clones = order[cloned[order]]
    up[own[clones]] = original[clones]
    root = (up == np.arange(keys)) & (created_by >= 0)
    root[own[clones]] = False
    for _ in range(keys.bit_length()):
        further = up[up]
        if np.array_equal(further, up):
            break
        up = further
    top = up[wanted]
    return np.where(root[top], created_by[top], NULL).astype(np.int32)


def _codes(*columns: tuple[Ints, Ints]) -> tuple[int, Ints]:
    """One small number for each distinct (process, node) of all the columns, one after another."""
    _, owner = np.unique(np.concatenate([c[0] for c in columns]), return_inverse=True)
    ids, node = np.unique(np.concatenate([c[1] for c in columns]), return_inverse=True)
    distinct, code = np.unique(owner * len(ids) + node, return_inverse=True)
    return len(distinct), code
