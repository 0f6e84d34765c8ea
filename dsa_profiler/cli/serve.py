"""Example:  dsa-profiler serve --model /models/V3.2 --case generation-b64-s4095-h128-bfloat16

Record a server for `align`: starts trtllm-serve under nsys (one nsys a rank), waits for its health,
sends a bounded load that makes it run the case, stops it, and leaves one scrubbed trace a rank.
--print shows a Slurm job that does the same, and runs nothing. --attach sends the load alone.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dsa_profiler.errors import EnvironmentFault, Exit, UsageError

if TYPE_CHECKING:
    from dsa_profiler.capture.serve import Load, Recording, Window
    from dsa_profiler.model import Case


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="", metavar="PATH", help="the model's checkpoint")
    parser.add_argument("--case", metavar="SLUG", help="what the server shall run")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the traces")
    parser.add_argument("--tp", type=_whole, default=1, metavar="N", help="tensor parallel ranks")
    parser.add_argument(
        "--launcher", choices=("mpirun", "srun"), help="of several ranks (mpirun; srun in --print)"
    )
    parser.add_argument("--steps", type=_whole, default=50, metavar="N", help="steps to record")
    parser.add_argument("--window", metavar="A-B", help="these steps of the executor instead")
    parser.add_argument(
        "--max-num-tokens", type=_whole, default=8192, metavar="N", help="of the server, a step"
    )
    parser.add_argument("--port", type=_whole, default=8000, metavar="N")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="S", help="to be ready")
    parser.add_argument("--nsys", metavar="PATH")
    parser.add_argument("--server", metavar="COMMAND", help="another server, as one string")
    parser.add_argument(
        "--whole", action="store_true", help="record from start to end, not a window of steps"
    )
    parser.add_argument("--trace", default="cuda,nvtx", metavar="LIST", help="what nsys records")
    parser.add_argument("--print", action="store_true", help="print a Slurm job, run nothing")
    parser.add_argument("--attach", metavar="URL", help="send the load to a running server")
    parser.add_argument("--batch", type=_whole, metavar="N", help="with --attach")
    parser.add_argument("--prompt-tokens", type=_whole, metavar="N", help="with --attach")
    parser.add_argument("--output-tokens", type=_whole, metavar="N", help="of a request")
    parser.add_argument("--rounds", type=_whole, metavar="N", help="of the load")
    parser.add_argument("--keep-raw", action="store_true", help="keep nsys' own reports: secrets")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("more", nargs="*", metavar="-- OPTION", help="more options of the server")


def run(args: argparse.Namespace) -> int:
    if args.attach:
        return _attach(args)
    from dsa_profiler.capture import load as loading
    from dsa_profiler.capture import nsys, serve

    case, load, recording = _planned(args)
    folder = args.output or Path("traces") / f"server-{case.slug}"
    if args.print:
        job = serve.script(recording, load, case, str(folder), args.model)
        told = json.dumps({"schema": 1, "case": case.slug, "script": job}) + "\n"
        print(told if args.json else job, end="")
        return int(Exit.OK)
    _check(recording)
    found = nsys.find(args.nsys)
    refused = nsys.no_reports(found)
    if refused is not None:
        raise refused

    def send() -> None:
        loading.send(recording.url, args.model, load, args.timeout)

    def say(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr)

    raw = serve.record(recording, folder, found, send, args.timeout, say)
    traces = [str(path) for path in _finish(raw, folder, args.keep_raw)]
    if args.json:
        print(json.dumps({"schema": 1, "case": case.slug, "traces": traces}))
        return int(Exit.OK)
    say(f"now: dsa-profiler align STANDALONE {folder} --case {case.slug}")
    print("\n".join(traces))
    return int(Exit.OK)


def _planned(args: argparse.Namespace) -> tuple[Case, Load, Recording]:
    """What to record, from the case and the flags."""
    from dataclasses import replace

    from dsa_profiler.capture import serve
    from dsa_profiler.model import Case

    if not args.case:
        raise UsageError(
            "serve-case",
            "no case to record",
            "give --case, e.g. generation-b64-s4095-h128-bfloat16",
        )
    if not args.model and not args.server:
        raise UsageError(
            "serve-model", "no model to serve", "give --model PATH or --server COMMAND"
        )
    case = Case.from_slug(args.case)
    load, window = serve.plan(case, args.steps, args.max_num_tokens)
    if args.window:
        window = _window(args.window)
    if args.output_tokens:
        load = replace(load, output_tokens=args.output_tokens)
    if args.rounds:
        load = replace(load, rounds=args.rounds)
    url = f"http://127.0.0.1:{args.port}"
    command = (
        tuple(shlex.split(args.server))
        if args.server
        else serve.server_command(
            args.model, url, args.tp, case, load, args.max_num_tokens, args.more
        )
    )
    launcher = args.launcher or ("srun" if args.print else "mpirun")
    return case, load, serve.Recording(
        command, url, window, args.tp, launcher, args.whole, args.trace
    )  # fmt: skip


def _window(text: str) -> Window:
    from dsa_profiler.capture.serve import Window

    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UsageError("serve-window", f"--window {text} is no range", "give A-B, e.g. 100-150")
    return Window(int(first), int(last))


def _check(recording: Recording) -> None:
    """What is missing, told before anything is started."""
    needed = [recording.server[0]]
    if recording.ranks > 1:
        needed += [recording.launcher, "trtllm-llmapi-launch"]
    for program in needed:
        if shutil.which(program) is None:
            raise EnvironmentFault(
                "serve-program",
                f"{program} is not on the PATH",
                "run inside NVIDIA's TensorRT-LLM container, or give --server COMMAND",
            )


def _finish(raw: list[Path], folder: Path, keep: bool) -> list[Path]:
    """Export and scrub each rank's report; the raw ones hold secrets and go, unless kept."""
    from dsa_profiler.capture import nsys
    from dsa_profiler.trace import scrub

    out = []
    for number, report in enumerate(raw):
        name = report.stem if report.stem.startswith("e2e_rank") else f"e2e_rank{number}"
        exported = folder / f".{name}.raw.sqlite"
        try:
            nsys.to_sqlite(report, exported)
            scrub.scrub(exported, folder / f"{name}.sqlite")
        finally:
            exported.unlink(missing_ok=True)
        out.append(folder / f"{name}.sqlite")
    if not keep:
        for report in raw:
            report.unlink(missing_ok=True)
        shutil.rmtree(folder / "tmp", ignore_errors=True)
    return out


def _attach(args: argparse.Namespace) -> int:
    from dsa_profiler.capture import load as loading
    from dsa_profiler.capture import serve

    if not args.batch or not args.prompt_tokens or not args.output_tokens:
        raise UsageError(
            "serve-attach",
            "--attach needs the load in full",
            "give --batch, --prompt-tokens and --output-tokens",
        )
    load = serve.Load(args.batch, args.prompt_tokens, args.output_tokens, args.rounds or 1)
    loading.send(args.attach.rstrip("/"), args.model, load, args.timeout)
    if args.json:
        print(json.dumps({"schema": 1, "load": asdict(load)}))
    return int(Exit.OK)


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("a whole number from 1 up is needed")
    return value
