"""The array-job form of a run, for clusters where Slurm hands out the GPUs."""

from __future__ import annotations

import shlex
from dataclasses import fields

from dsa_profiler.config import RunConfig

HIDDEN = ("options", "shard", "name", "output")


def script(wanted: RunConfig, tasks: int, name: str) -> str:
    """A batch script: one shard of the plan a task, and the merge that follows them all.

    `wanted` carries only what was asked for; each task settles the rest on its own machine.
    """
    words = _flags(wanted)
    run = shlex.join(["dsa-profiler", "run", *words, "--output", wanted.output])
    merged = shlex.join(["dsa-profiler", "merge", name, "--output", wanted.output])
    shards = shlex.quote(f"{wanted.output}/traces/{name}-shard") + "*"
    return f"""#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --array=0-{tasks - 1}
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# Submit:  sbatch THIS_FILE      A requeued task continues where it was.
# After the last task:
#   {merged} {shards}
shard=${{SLURM_ARRAY_TASK_ID:-0}}
session={shlex.quote(name)}-shard$shard
resume=()
[ -e {shlex.quote(wanted.output)}/traces/"$session"/session.json ] && resume=(--resume)
trap 'kill -TERM "$run"; wait "$run"' TERM
{run} --name "$session" --shard "$shard/{tasks}" "${{resume[@]}}" &
run=$!
wait "$run"
"""


def _flags(wanted: RunConfig) -> list[str]:
    """The flags that say what `wanted` says beyond the defaults."""
    words: list[str] = []
    plain = RunConfig()
    for field in fields(RunConfig):
        value = getattr(wanted, field.name)
        if field.name in HIDDEN or value == getattr(plain, field.name):
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [f"--{field.name.replace('_', '-')}", text]
    for key, value in wanted.options.items():
        words += ["--option", f"{key}={value}"]
    return words
