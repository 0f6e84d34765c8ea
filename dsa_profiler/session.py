"""A session: the folder in which one sweep is recorded, and its manifest.

traces/<session>/session.json            the manifest, always replaced atomically
traces/<session>/chunks/<nnnn>/          one recording: a chunk of cases
    chunk.json                           what the child was asked to do
    outcome.jsonl                        what the child says it did, a line an event
    trace.sqlite                         the recording, scrubbed, nsys schema
    log.txt                              stdout and stderr of child and profiler
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dsa_profiler import __version__
from dsa_profiler.errors import InputError, UsageError
from dsa_profiler.model import Case, ModelShape
from dsa_profiler.plan import Plan, Skip

SCHEMA = 1
MANIFEST = "session.json"
Status = Literal["done", "failed", "timeout", "oom", "interrupted", "skipped"]


@dataclass(frozen=True, slots=True)
class GpuState:
    """The GPU while a case was measured untraced, by NVML.

    sm_mhz       least, mean and largest clock in the timed iterations; heat, memory clock and
                 throttling are of the same looks
    power_w      mean draw of the board under load (the same iterations without a pause, long
                 enough for NVML's counter), idle included; None where it was not measured, and
                 `why` says why not where it was tried
    idle_w       mean draw before the recording's worker began
    load_ns      an iteration's time under that load, and `load_sm_mhz` its mean clock
    """

    sm_mhz: tuple[int, float, int]
    memory_mhz: int
    celsius: int
    throttled: tuple[str, ...] = ()
    power_w: float | None = None
    idle_w: float | None = None
    load_ns: float | None = None
    load_sm_mhz: float | None = None
    why: str = ""

    @property
    def energy_mj(self) -> float | None:
        """An iteration's energy in mJ, idle included: W x ns / 1e6."""
        if self.power_w is None or self.load_ns is None:
            return None
        return self.power_w * self.load_ns / 1e6

    @property
    def energy_above_idle_mj(self) -> float | None:
        """An iteration's energy in mJ, less what an idle GPU draws in the same time."""
        if self.energy_mj is None or self.load_ns is None or self.idle_w is None:
            return None
        return self.energy_mj - self.idle_w * self.load_ns / 1e6

    def as_json(self) -> dict[str, Any]:
        """With the energies, for reading; the manifest holds what they are made of."""
        energies = {
            "energy_mj": self.energy_mj,
            "energy_above_idle_mj": self.energy_above_idle_mj,
        }
        return {**asdict(self), **energies}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GpuState:
        low, mean, high = data["sm_mhz"]
        lists = {"sm_mhz": (low, mean, high), "throttled": tuple(data["throttled"])}
        return cls(**{**data, **lists})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one case. `untraced_ns` is its median without a tracer, where measured."""

    status: Status
    chunk: str = ""
    detail: str = ""
    untraced_ns: float | None = None
    peak_memory_bytes: int | None = None
    gpu: GpuState | None = None

    def as_json(self) -> dict[str, Any]:
        """As in the manifest: the GPU's state only where there is one."""
        return {k: v for k, v in asdict(self).items() if k != "gpu" or v is not None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Outcome:
        state = data.get("gpu")
        return cls(**{**data, "gpu": GpuState.from_json(state) if state else None})


@dataclass(frozen=True, slots=True)
class Chunk:
    """One recording. `trace` is relative to the session's folder; empty when it failed. `gpu` is
    the GPU's state meanwhile (watts, clocks, throttling; the loads left out), empty where it was
    not sampled.
    """

    name: str
    cases: tuple[Case, ...]
    trace: str = ""
    gpu: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Session:
    """The manifest. `settings` are the run's numbers (warm-up, iterations, seed, ...)."""

    name: str
    created: str
    workload: str
    tracer: str
    model: ModelShape
    plan: Plan
    settings: dict[str, Any]
    environment: dict[str, Any]
    chunks: tuple[Chunk, ...] = ()
    outcomes: dict[Case, Outcome] = field(default_factory=dict)
    tool_version: str = __version__

    def pending(self) -> tuple[Case, ...]:
        """Cases that no recording has an outcome for yet, in plan order."""
        return tuple(c for c in self.plan.cases if c not in self.outcomes)

    def with_chunk(self, chunk: Chunk, outcomes: dict[Case, Outcome]) -> Session:
        """This session after one more recording. An outcome of `done` is never overwritten."""
        kept = {c: o for c, o in self.outcomes.items() if o.status == "done"}
        merged = {**self.outcomes, **outcomes, **kept}
        return replace(self, chunks=(*self.chunks, chunk), outcomes=merged)

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "tool_version": self.tool_version,
            "name": self.name,
            "created": self.created,
            "workload": self.workload,
            "tracer": self.tracer,
            "model": self.model.as_json(),
            "settings": self.settings,
            "environment": self.environment,
            "plan": [c.slug for c in self.plan.cases],
            "skipped": [{"case": s.case.slug, "reason": s.reason} for s in self.plan.skipped],
            "chunks": [
                {
                    "name": c.name,
                    "cases": [x.slug for x in c.cases],
                    "trace": c.trace,
                    **({"gpu": c.gpu} if c.gpu else {}),
                }
                for c in self.chunks
            ],
            "outcomes": {  # in the plan's order, whatever was finished first
                c.slug: self.outcomes[c].as_json() for c in self.plan.cases if c in self.outcomes
            },
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Session:
        plan = Plan(
            tuple(Case.from_slug(s) for s in data["plan"]),
            tuple(Skip(Case.from_slug(s["case"]), s["reason"]) for s in data["skipped"]),
        )
        chunks = tuple(
            Chunk(
                c["name"],
                tuple(Case.from_slug(s) for s in c["cases"]),
                c["trace"],
                c.get("gpu", {}),
            )
            for c in data["chunks"]
        )
        return cls(
            name=data["name"],
            created=data["created"],
            workload=data["workload"],
            tracer=data["tracer"],
            model=ModelShape.from_json(data["model"]),
            plan=plan,
            settings=data["settings"],
            environment=data["environment"],
            chunks=chunks,
            outcomes={Case.from_slug(s): Outcome.from_json(o) for s, o in data["outcomes"].items()},
            tool_version=data["tool_version"],
        )


def load(folder: Path) -> Session:
    """Read a session's manifest; a newer schema or a broken file is refused, never guessed at."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text("utf-8"))
        schema = data["schema"]
        if schema == SCHEMA:
            return Session.from_json(data)
    except FileNotFoundError:
        raise InputError(
            "session-not-found", f"no {MANIFEST} in {folder}", "give the folder of a session"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise InputError(
            "session-broken", f"cannot read {path}: {error}", "restore it, or run the sweep anew"
        ) from None
    raise InputError(
        "session-schema",
        f"{path} has schema {schema}, this version reads {SCHEMA}",
        "use the version of dsa_profiler that wrote it",
    )


def save(folder: Path, session: Session) -> None:
    """Replace the manifest atomically."""
    write_atomic(folder / MANIFEST, json.dumps(session.as_json(), indent=1) + "\n")


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one, never half."""
    with replacing(path) as part:
        part.write_text(text, "utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` that takes its place if the block ends well; else it goes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UsageError(
            "folder-unwritable",
            f"cannot write in {path.parent}: {error.strerror}",
            "give a folder that can be written, with --output",
        ) from None
    os.close(handle)
    part = Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
