"""Example:  dsa-profiler run --mode generation --batch-sizes 1,8 --seq-lens 1023,4095

Profile a grid of cases and end with tables and a page. Without a GPU the preset is `smoke` and the
rows describe this CPU; with CUDA it is `standard`. Ctrl-C once ends after the running case, twice
at once; `run --resume` continues. Files go to traces/<name>/ and reports/<name>/ under --output.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dsa_profiler import __version__, config, session
from dsa_profiler.capture import choose, power, probe, slots, sweep
from dsa_profiler.capture import workload as workload_choice
from dsa_profiler.capture.recording import Limits
from dsa_profiler.capture.stop import Stop, on_signals
from dsa_profiler.config import RunConfig
from dsa_profiler.errors import DsaError, Exit, InputError, UsageError
from dsa_profiler.model import ModelShape, load_model
from dsa_profiler.plan import Plan
from dsa_profiler.session import Session

KERNELS_PATH = "DSA_KERNELS_PATH"
SETTING_FLAGS = ("workload", "tracer", "device", "warmup", "iterations", "seed", "power")
PLAN_FLAGS = ("mode", "preset", "batch_sizes", "seq_lens", "num_heads", "prefixes", "dtypes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    grid = parser.add_argument_group("what to run")
    grid.add_argument("--mode", metavar="context|generation|both")
    grid.add_argument("--preset", metavar="smoke|standard")
    grid.add_argument("--batch-sizes", type=_numbers, metavar="N,N")
    grid.add_argument("--seq-lens", type=_numbers, metavar="N,N")
    grid.add_argument("--num-heads", type=_numbers, metavar="N,N", help="local heads, an axis")
    grid.add_argument("--prefixes", type=_numbers, metavar="N,N", help="cached tokens in context")
    grid.add_argument("--dtypes", type=_words, metavar="T,T", help="of the KV cache")
    grid.add_argument("--model", help="deepseek-v3.2, glm-5, or the path of a config.json")
    grid.add_argument("--workload", metavar="auto|reference|kernels|trtllm")
    grid.add_argument(
        "--option", action="append", type=_option, metavar="KEY=VALUE", help="of the workload"
    )
    grid.add_argument(
        "--cuda-graph", action="store_true", help="generation steps as a CUDA graph, on a GPU"
    )
    grid.add_argument(
        "--kernels-path", metavar="DIR", help="unpacked wheel or bundle of the workload kernels"
    )
    grid.add_argument("--config", metavar="TOML", help="a file with these settings")
    how = parser.add_argument_group("how")
    how.add_argument("--tracer", metavar="auto|nsys|torch")
    how.add_argument("--nsys", metavar="PATH", help="the nsys to use")
    how.add_argument("--device", metavar="auto|cpu|cuda")
    how.add_argument("--warmup", type=int, metavar="N")
    how.add_argument("--iterations", type=int, metavar="N")
    how.add_argument(
        "--settle", type=float, metavar="W", help="iterate until the median's interval is W of it"
    )
    how.add_argument("--budget", type=float, metavar="S", help="seconds for --settle, a case")
    how.add_argument("--seed", type=int, metavar="N")
    how.add_argument(
        "--power", type=float, metavar="S", help="seconds under load a case, by NVML; 0 for none"
    )
    how.add_argument("--timeout", type=float, metavar="S", help="seconds that a case may take")
    how.add_argument("--chunk-cases", type=int, metavar="N", help="most cases in a recording")
    how.add_argument(
        "--gpus", metavar="1|all|0,2|H200", help="one worker a GPU; a kind where --ray has several"
    )
    how.add_argument("--ray", metavar="ADDRESS", help="one worker a GPU of a Ray cluster")
    how.add_argument("--shard", metavar="I/N", help="only the I-th of N parts of the plan")
    where = parser.add_argument_group("where")
    where.add_argument("--output", metavar="DIR", help="folder of traces/ and reports/")
    where.add_argument("--name", help="of the session; made from model and time otherwise")
    where.add_argument("--resume", action="store_true", help="continue --name, or the newest one")
    where.add_argument(
        "--retry", action="append", choices=(*sweep.RETRYABLE, "all"), help="with --resume"
    )
    where.add_argument(
        "--record-only", action="store_true", help="no tables and no page: `analyze` them elsewhere"
    )
    where.add_argument("--dry-run", action="store_true", help="print the plan and what is skipped")
    where.add_argument(
        "--print-slurm", type=int, metavar="N", help="print an array job of N shards, run nothing"
    )
    where.add_argument("--json", action="store_true", help="one JSON document on stdout")
    where.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")


def run(args: argparse.Namespace) -> int:
    flags = {name: getattr(args, name, None) for name in RunConfig.__slots__}
    options = [*(args.option or ()), *([("cuda_graph", True)] if args.cuda_graph else ())]
    if args.kernels_path:  # not a setting: a manifest is made to be shared and holds no path
        os.environ[KERNELS_PATH] = str(Path(args.kernels_path).absolute())
    flags["options"] = dict(options) if options else None
    wanted = config.load(args.config, flags)
    if args.print_slurm is not None:
        return _print_slurm(wanted, args.print_slurm)
    gpus = probe.gpus()
    cuda = bool(gpus or args.ray) if wanted.device == "auto" else wanted.device == "cuda"
    wanted = wanted.settled(cuda)
    if args.dry_run:
        return _dry_run(wanted, args.json)
    places = _places(wanted.gpus, args.ray, gpus)
    if args.resume or args.retry:
        folder = _existing(wanted)
        session_ = session.load(folder)
        _same_run(session_, wanted, args)
    else:
        folder, session_ = _new(wanted, cuda, gpus)
    return _sweep(folder, session_, wanted, args, places)


def _places(asked: str, ray: str | None, gpus: tuple[probe.Gpu, ...]) -> sweep.Places:
    """Where jobs run, refused before a folder is made: slots of this machine, or a cluster's."""
    if ray is None:
        return slots.slots(asked, gpus)
    from dsa_profiler.capture import cluster

    return cluster.slots(cluster.connect(ray), "all" if asked == "1" else asked)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _option(text: str) -> tuple[str, Any]:
    """`key=value`; the value is read as JSON where it is JSON, else taken as text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _plan(wanted: RunConfig, model: ModelShape) -> Plan:
    from dsa_profiler.cli import cost

    return wanted.plan(model, lambda cases: cost.predict(model, cases))


def _dry_run(wanted: RunConfig, as_json: bool) -> int:
    plan = _plan(wanted, load_model(wanted.model))
    if as_json:
        skipped = [{"case": s.case.slug, "reason": s.reason} for s in plan.skipped]
        cases = [c.slug for c in plan.cases]
        print(json.dumps({"schema": 1, "cases": cases, "skipped": skipped}, indent=2))
        return int(Exit.OK)
    for case in plan.cases:
        print(case.slug)
    for skip in plan.skipped:
        print(f"skip {skip.case.slug}: {skip.reason}")
    counts = Counter(case.phase for case in plan.cases)
    told = ", ".join(f"{n} {phase}" for phase, n in counts.items())
    print(f"{len(plan.cases)} cases ({told}), {len(plan.skipped)} skipped")
    return int(Exit.OK)


def _print_slurm(wanted: RunConfig, tasks: int) -> int:
    from dsa_profiler.cli import slurm

    if tasks < 1:
        raise UsageError("value-small", f"--print-slurm {tasks} is below 1", "give the shards")
    load_model(wanted.model)
    print(slurm.script(wanted, tasks, wanted.name or "dsa-sweep"), end="")
    return int(Exit.OK)


def _traces(wanted: RunConfig) -> Path:
    return Path(wanted.output) / "traces"


def _existing(wanted: RunConfig) -> Path:
    """The session to continue: by name, else the one whose manifest changed last."""
    traces = _traces(wanted)
    if wanted.name:
        return traces / wanted.name
    manifests = sorted(traces.glob(f"*/{session.MANIFEST}"), key=lambda p: p.stat().st_mtime_ns)
    if not manifests:
        raise InputError(
            "session-not-found", f"no session under {traces}", "give --output or --name"
        )
    return manifests[-1].parent


def _same_run(found: Session, wanted: RunConfig, args: argparse.Namespace) -> None:
    """A resumed session goes on as it began: another version, plan or setting is refused."""
    if found.tool_version != __version__:
        raise UsageError(
            "session-version",
            f"session {found.name} is of version {found.tool_version}, this is {__version__}",
            f"continue it with dsa-profiler=={found.tool_version}, or start a new --name",
        )
    planned = [name for name in PLAN_FLAGS if getattr(args, name, None) is not None]
    if (planned or args.config) and _plan(wanted, found.model).cases != found.plan.cases:
        raise UsageError(
            "plan-changed",
            f"session {found.name} has another plan than these flags describe",
            "leave the grid's flags away to continue it, or start a new --name",
        )
    held = {
        **found.settings,
        "workload": found.workload,
        "tracer": found.tracer,
        "power": found.settings.get("power_s"),
    }
    for name in SETTING_FLAGS:
        asked = getattr(args, name, None)
        if asked not in (None, "auto") and asked != held.get(name):
            raise UsageError(
                "setting-changed",
                f"session {found.name} has {name} = {held.get(name)}, asked for {asked}",
                f"leave --{name} away to continue it, or start a new --name",
            )


def _new(wanted: RunConfig, cuda: bool, gpus: tuple[probe.Gpu, ...]) -> tuple[Path, Session]:
    """Everything that can be refused is refused before a file is written."""
    model = load_model(wanted.model)
    plan = _plan(wanted, model)
    workload, why = wanted.workload, "asked for"
    if workload == "auto":
        workload, why = workload_choice.choose(cuda, wanted.options)
    workload_choice.require(workload)
    choice = choose.choose(wanted.tracer, cuda, wanted.nsys)
    now = datetime.now(timezone.utc)
    name = wanted.name or f"{model.name}-{now:%Y%m%d-%H%M%S}"
    folder = _traces(wanted) / name
    if (folder / session.MANIFEST).exists():
        raise UsageError(
            "session-exists", f"{folder} holds a session already", "give --resume or another --name"
        )
    made = Session(
        name=name,
        created=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        workload=workload,
        tracer=choice.tracer.name,
        model=model,
        plan=plan,
        settings=_settings(wanted, cuda),
        environment={
            **probe.environment(gpus, choice.nsys_version),
            "tracer_choice": choice.why,
            "workload_choice": why,
        },
    )
    session.save(folder, made)
    return folder, made


def _settings(wanted: RunConfig, cuda: bool) -> dict[str, Any]:
    return {
        "preset": wanted.preset,
        "warmup": wanted.warmup,
        "iterations": wanted.iterations,
        "goal": {"width": wanted.settle, "budget_s": wanted.budget} if wanted.settle else None,
        "seed": wanted.seed,
        "power_s": wanted.power,
        "device": "cuda" if cuda else "cpu",
        "timeout": wanted.timeout,
        "options": dict(wanted.options),
    }


def _sweep(
    folder: Path, found: Session, wanted: RunConfig, args: argparse.Namespace, places: sweep.Places
) -> int:
    from dsa_profiler import pipeline
    from dsa_profiler.cli import cost
    from dsa_profiler.cli.progress import SweepProgress

    cuda = found.settings.get("device") == "cuda"
    choice = choose.choose(found.tracer, cuda, wanted.nsys)
    retry = sweep.RETRYABLE if "all" in (args.retry or ()) else tuple(args.retry or ())
    costs = cost.of(found, sweep.todo(found, retry))
    stop = Stop()
    if not args.quiet:
        _banner(found, len(costs))
    try:
        with (
            SweepProgress(costs, cost.rounds_of(found), args.quiet) as progress,
            on_signals(stop, _tell_stop),
        ):
            found = sweep.record(
                folder,
                found,
                choice.tracer,
                pipeline.finish,
                limits=Limits(case_s=wanted.timeout),
                stop=stop,
                tell=progress,
                retry=retry,
                chunk_cases=wanted.chunk_cases,
                places=places,
                cost=costs.__getitem__,
                nvml=power.nvml() if cuda else None,
            )
    except DsaError as error:
        if error.slug == "worker-refused" and not session.load(folder).chunks:
            shutil.rmtree(folder)
        raise
    code = _exit_code(found, stop)
    if not any(outcome.status == "done" for outcome in found.outcomes.values()):
        raise _nothing_done(folder, found, code)
    if args.record_only:
        counts = Counter(outcome.status for outcome in found.outcomes.values())
        told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        print(f"recorded {folder}: {told}", file=sys.stderr)
    else:
        _conclude(folder, found, Path(wanted.output), args, code)
    return int(code)


def _banner(found: Session, cases: int) -> None:
    why = found.environment.get("tracer_choice", "as before")
    lines = [
        f"{found.model.name}: {cases} cases",
        f"workload {found.workload}: {found.environment.get('workload_choice', 'as before')}",
        f"tracer {found.tracer}: {why}",
    ]
    if found.settings.get("device") == "cpu":
        lines.append(
            f"no GPU: these rows describe this CPU ({found.environment.get('cpu')}), "
            "and the export for aiconfigurator refuses them"
        )
    print("\n".join(lines), file=sys.stderr)


def _tell_stop(level: int) -> None:
    text = "stopping after this case; Ctrl-C again stops now" if level == 1 else "stopping now"
    print(f"\n{text}", file=sys.stderr)


def _exit_code(found: Session, stop: Stop) -> Exit:
    if stop.level and sweep.todo(found):
        return Exit.INTERRUPTED
    done = all(o.status == "done" for o in found.outcomes.values())
    return Exit.OK if done and not found.pending() else Exit.PARTIAL


def _conclude(
    folder: Path, found: Session, output: Path, args: argparse.Namespace, code: Exit
) -> None:
    """Analyse, write the tables and the page, and say where they are."""
    from dsa_profiler import pipeline
    from dsa_profiler.cli import summary
    from dsa_profiler.export import perf_csv, store
    from dsa_profiler.report import render

    results = pipeline.analyze(folder)
    files = perf_csv.write(results, found, folder)
    files.append(store.write(results, found, folder / "analysis.sqlite"))
    page = render.write(results, found, output / "reports" / found.name / "index.html")
    if args.json:
        document = {
            "schema": 1,
            "session": str(folder),
            "outcomes": {slug.slug: outcome.status for slug, outcome in found.outcomes.items()},
            "files": [str(path) for path in (*files, page)],
            "results": results.as_json(),
        }
        print(json.dumps(document, indent=2))
        return
    summary.show(results, found)
    for path in (*files, page):
        print(path)


def _nothing_done(folder: Path, found: Session, code: Exit) -> DsaError:
    from dsa_profiler.errors import Interrupted, Partial

    if code is Exit.INTERRUPTED:
        return Interrupted(
            "interrupted", "stopped before a case was done", f"continue {found.name} with --resume"
        )
    first = next((o.detail for o in found.outcomes.values() if o.detail), "no case ran")
    return Partial("cases-none", f"no case was done: {first}", f"read the logs under {folder}")
