"""Marks: how a mark's text becomes a range that the tracer records, and how marks get onto the
parts of somebody else's module and off again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any, Literal, TypeAlias

from dsa_profiler import marks
from dsa_profiler.errors import EnvironmentFault

Tracer = Literal["nsys", "torch", "none"]
TextMark: TypeAlias = Callable[[str], AbstractContextManager[Any]]
"""A mark's whole text -> the context in which it holds."""
StageMark: TypeAlias = Callable[[str], AbstractContextManager[Any]]
"""A stage's name -> the context in which its mark holds."""
StageOf: TypeAlias = str | Callable[..., str | None]
"""A stage's name, or what tells it from a call's arguments; None where the call is no stage."""

_NOTHING = nullcontext()
_ABSENT = object()


def unmarked(_: str) -> AbstractContextManager[Any]:
    """Both kinds of mark for runs that are not traced: one shared empty context, no cost."""
    return _NOTHING


def stage_mark(mark: TextMark) -> StageMark:
    """Marks by stage name, out of marks by text."""
    if mark is unmarked:
        return unmarked
    return lambda stage: mark(marks.stage(stage))


def marker(tracer: Tracer, device_type: str) -> TextMark:
    """How `tracer` takes marks on this kind of device.

    nsys    NVTX: torch.cuda.nvtx where there is CUDA, for the package nvtx writes nothing under old
            nsys from 0.2.12 on; the package where torch has no NVTX of its own.
    torch   torch.profiler.record_function, since torch.profiler records no NVTX.
    none    nothing.
    """
    if tracer == "none":
        return unmarked
    if tracer == "torch":
        from torch.profiler import record_function

        return record_function
    if device_type == "cuda":
        from torch.cuda import nvtx as cuda_nvtx

        # range_push, not range(): that one would format braces in the text.
        return _push_pop(cuda_nvtx.range_push, cuda_nvtx.range_pop)
    try:
        import nvtx
    except ImportError:
        raise EnvironmentFault(
            "nvtx-missing",
            "the package nvtx is not installed, so nsys would see no marks",
            "pip install nvtx==0.2.10, or record with --tracer torch",
        ) from None
    return _push_pop(nvtx.push_range, nvtx.pop_range)


def _push_pop(push: Callable[[str], Any], pop: Callable[[], Any]) -> TextMark:
    @contextmanager
    def mark(text: str) -> Iterator[None]:
        push(text)
        try:
            yield
        finally:
            pop()

    return mark


@contextmanager
def patched(root: Any, table: Mapping[str, StageOf], mark: StageMark) -> Iterator[tuple[str, ...]]:
    """Marks on parts of `root` while the block runs; yields the paths that were not there.

    table  dotted path from `root` -> stage. A path names a submodule (its `forward` is marked), a
           method or a function.

    Only instance dictionaries are touched, and each is put back as it was, exception or not: a part
    that had no entry of that name has none afterwards. Entries go on in the table's order and come
    off in the reverse.
    """
    with ExitStack() as stack:
        missing = []
        for path, stage in table.items():
            target = _find(root, path)
            if target is None:
                missing.append(path)
            else:
                _wrap(stack, *target, mark, stage)
        yield tuple(missing)


def _find(root: Any, path: str) -> tuple[Any, str, Callable[..., Any]] | None:
    """The object whose entry is replaced, the entry's name and what it holds now."""
    *parents, name = path.split(".")
    owner = root
    for parent in parents:
        owner = getattr(owner, parent, None)
    part = getattr(owner, name, None)
    forward = getattr(part, "forward", None)
    if callable(forward) and not isinstance(part, type):
        owner, name, part = part, "forward", forward
    return (owner, name, part) if callable(part) and hasattr(owner, "__dict__") else None


def _wrap(
    stack: ExitStack,
    owner: Any,
    name: str,
    call: Callable[..., Any],
    mark: StageMark,
    stage: StageOf,
) -> None:
    # Straight in the instance's dictionary: nn.Module's __setattr__ would file a module elsewhere.
    entries = vars(owner)
    before = entries.get(name, _ABSENT)

    @wraps(call)
    def marked(*args: Any, **kwargs: Any) -> Any:
        told = stage if isinstance(stage, str) else stage(*args, **kwargs)
        with _NOTHING if told is None else mark(told):
            return call(*args, **kwargs)

    def undo() -> None:
        if before is _ABSENT:
            entries.pop(name, None)
        else:
            entries[name] = before

    stack.callback(undo)
    entries[name] = marked
