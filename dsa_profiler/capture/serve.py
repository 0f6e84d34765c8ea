"""Recording a server: nsys around each rank, a window of steps, a bounded load, a clean end.

The collection opens at the executor's own step (`TLLM_PROFILE_START_STOP` calls cudaProfilerStart,
`-c cudaProfilerApi` listens), not after a guessed delay. CPU sampling is off: its scope never
widens CUDA tracing. Ranks that MPI spawns are no children of nsys, so with several ranks the
launcher comes first and nsys wraps every one.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsa_profiler.capture import child
from dsa_profiler.capture.nsys import Nsys
from dsa_profiler.errors import EnvironmentFault, UsageError
from dsa_profiler.model import Case

SETTLE = 100
"""Steps between the end of prefill and the window: graphs, autotuner and JIT are warm by then."""
MARGIN = 20
"""Steps that the load goes on after the window, so that its last step is a full one."""
RANK_VARIABLE = {"srun": "SLURM_PROCID", "mpirun": "OMPI_COMM_WORLD_RANK"}
NSYS_SAYS = re.compile(
    r"Generat|Process|Collect|Captur|Saving|Export|Import|Total|Creating|The target app"
    r"|WARNING: |Warning: |\[[ \d/%=]+|/.*e2e_rank|\*+$|-+$|/.*report\d"
)
PROFILERS = ("nsys", "nsys-launcher", "nsys-agent", "mpirun", "srun", "orted", "prterun")


@dataclass(frozen=True, slots=True)
class Load:
    """What the server is asked: `batch` requests at once, `rounds` times over.

    prompt_tokens, output_tokens   of each request; outputs are never cut short by an end token.
    """

    batch: int
    prompt_tokens: int
    output_tokens: int
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class Window:
    """Steps of the executor to record, first and last."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Recording:
    """A server to record. `server` is its command line without profiler and launcher.

    whole   record from start to end: for a server that calls no cudaProfilerStart.
    trace   what nsys records.
    """

    server: tuple[str, ...]
    url: str
    window: Window
    ranks: int = 1
    launcher: str = ""
    whole: bool = False
    trace: str = "cuda,nvtx"


def plan(case: Case, steps: int, max_num_tokens: int) -> tuple[Load, Window]:
    """Load and window under which the recorded steps run the case.

    In generation a sequence grows by one key a step, so the prompt is shorter than the case by the
    steps up to the middle of the window: the case's length is met there, within steps / 2 keys.
    In context every round is one step at least. A case with a prefix is refused: random prompts
    share none.
    """
    if case.prefix:
        raise UsageError(
            "serve-prefix",
            f"the load cannot give {case.slug} its cached prefix",
            "record a case without a prefix",
        )
    if case.phase == "context":
        window = Window(SETTLE, SETTLE + steps)
        return Load(case.batch_size, case.seq_len, 1, SETTLE + steps + MARGIN), window
    prefill = -(-case.batch_size * case.seq_len // max_num_tokens)
    first = prefill + SETTLE
    prompt = max(1, case.seq_len - SETTLE - steps // 2)
    output = first + steps + MARGIN
    return Load(case.batch_size, prompt, output), Window(first, first + steps)


def server_command(
    model: str, url: str, tp: int, case: Case, load: Load, max_num_tokens: int, more: Sequence[str]
) -> tuple[str, ...]:
    """`trtllm-serve` for a model: the cache as long as the load needs, and room in one step for
    all the tokens of a context case, which would be chunked otherwise.
    """
    host, _, port = url.removeprefix("http://").partition(":")
    return (
        "trtllm-serve", model, "--host", host, "--port", port or "8000", "--backend", "pytorch",
        "--tp_size", str(tp), "--max_batch_size", str(case.batch_size),
        "--max_seq_len", str(load.prompt_tokens + load.output_tokens),
        "--max_num_tokens", str(max(max_num_tokens, case.tokens)), *more,
    )  # fmt: skip


def environment(recording: Recording) -> dict[str, str]:
    """Variables of the server: the window, and ranges worth having."""
    if recording.whole:
        return {}
    return {
        "TLLM_PROFILE_START_STOP": str(recording.window),
        "TLLM_PROFILE_RECORD_GC": "1",
        "TLLM_LLMAPI_ENABLE_NVTX": "1",
    }


def command(
    recording: Recording, folder: str, nsys: str, knows: Callable[[str], bool]
) -> list[str]:
    """The whole command line: launcher, nsys around each rank, server.

    knows  whether this nsys has an option; those that not every version has are asked for.
    """
    output = f"{folder}/e2e_rank0"
    launch: list[str] = []
    serve = list(recording.server)
    if recording.ranks > 1:
        variable = RANK_VARIABLE[recording.launcher]
        output = f"{folder}/e2e_rank%q{{{variable}}}"
        launch = {
            "srun": ["srun", f"--ntasks={recording.ranks}", "--mpi=pmix"],
            "mpirun": ["mpirun", "-n", str(recording.ranks)],
        }[recording.launcher]
        serve = ["trtllm-llmapi-launch", *serve]
    profile = [nsys, "profile", f"--trace={recording.trace}", "--sample=none", "--cpuctxsw=none"]
    if "cuda" in recording.trace:
        profile.append("--cuda-graph-trace=node")
        if knows("--cuda-event-trace"):
            profile.append("--cuda-event-trace=false")
    if not recording.whole:
        profile += ["--capture-range=cudaProfilerApi", "--capture-range-end=stop"]
    profile += ["--trace-fork-before-exec=true", "--kill=none", "--force-overwrite=true"]
    if knows("--discard-environment"):
        profile.append("--discard-environment=true")
    return [*launch, *profile, f"--output={output}", *serve]


def script(recording: Recording, load: Load, case: Case, folder: str, model: str = "") -> str:
    """A Slurm job that records the server: the very steps of `record`, as shell. Runs nothing."""
    run = shlex.join(command(recording, folder, "nsys", lambda _: False))
    exports = "\n".join(f"export {k}={shlex.quote(v)}" for k, v in environment(recording).items())
    request = {
        "--attach": recording.url,
        "--model": model,
        "--batch": load.batch,
        "--prompt-tokens": load.prompt_tokens,
        "--output-tokens": load.output_tokens,
        "--rounds": load.rounds,
    }
    options = [word for name, value in request.items() for word in (name, str(value))]
    attach = shlex.join(["dsa-profiler", "serve", *options])
    out = shlex.quote(folder)
    return f"""#!/bin/bash
#SBATCH --job-name=dsa-serve
#SBATCH --ntasks={recording.ranks}
#SBATCH --gpus-per-task=1
#SBATCH --exclusive
# Records {case.slug} in steps {recording.window} of the executor.
set -euo pipefail
mkdir -p {out}
{exports}
{run} > {out}/log.txt 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
until curl --silent --fail --max-time 2 {shlex.quote(recording.url + "/health")} > /dev/null; do
  kill -0 "$server" || {{ tail -n 20 {out}/log.txt >&2; exit 1; }}
  sleep 5
done
{attach}
# nsys writes a report when the window closes; wait for one a rank before the server is stopped.
for _ in $(seq 120); do
  [ "$(find {out} -name 'e2e_rank*.nsys-rep' | wc -l)" -ge {recording.ranks} ] && break
  sleep 5
done
kill -TERM "$server"
wait "$server" || true
for report in {out}/e2e_rank*.nsys-rep; do
  name="${{report%.nsys-rep}}"
  nsys export --type=sqlite --force-overwrite=true --output="$name.raw.sqlite" "$report"
  dsa-profiler scrub "$name.raw.sqlite" "$name.sqlite"
  rm -f "$name.raw.sqlite" "$report"
done
"""


def record(
    recording: Recording,
    folder: Path,
    nsys: Nsys,
    send: Callable[[], None],
    health_timeout_s: float,
    say: Callable[[str], None],
) -> list[Path]:
    """Start the server under nsys, wait for its health, send the load, stop; the raw reports.

    Nothing that was started outlives this call, whatever happens in it.
    """
    if answers(recording.url):
        raise UsageError(
            "serve-port",
            f"something already answers at {recording.url}",
            "stop it, or give another --port",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for old in reports(folder):
        old.unlink()
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    line = command(recording, str(folder), str(nsys.path), nsys.knows)
    started = child.launch(line, folder, {**environment(recording), "TMPDIR": str(temporary)})
    try:
        say(f"waiting for {recording.url}/health")
        _wait_for_health(recording.url, started, folder, health_timeout_s)
        say("sending the load")
        send()
        say("stopping the server")
        _stop(started, folder)
    finally:
        child.end(folder)
    found = reports(folder)
    if not found:
        raise EnvironmentFault(
            "serve-no-report",
            f"nsys left no report: {child.log_tail(folder) or 'its log is empty'}",
            "the window may not have been reached: see log.txt, or give --steps",
        )
    return found


def reports(folder: Path) -> list[Path]:
    """Raw recordings, one a rank; a lone stream counts where its report was not made."""
    made = sorted(folder.glob("e2e_rank*.nsys-rep"))
    stems = {p.stem for p in made}
    streams = [p for p in sorted(folder.glob("e2e_rank*.qdstrm")) if p.stem not in stems]
    return [*made, *streams] or sorted((folder / "tmp").rglob("*.qdstrm"))


def answers(url: str) -> bool:
    """Whether the server says that it is well."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _wait_for_health(
    url: str, started: subprocess.Popen[bytes], folder: Path, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while not answers(url):
        if started.poll() is not None:
            raise EnvironmentFault(
                "serve-died",
                f"the server ended with {started.returncode} before it was ready: "
                f"{_last_word(folder) or 'it said nothing'}",
                f"see {folder / child.LOG}",
            )
        if time.monotonic() > deadline:
            raise EnvironmentFault(
                "serve-unhealthy",
                f"the server did not answer within {timeout_s:g} s",
                f"see {folder / child.LOG}, or give a longer --timeout",
            )
        time.sleep(0.2)


def _last_word(folder: Path) -> str:
    """The server's last line in the log, past what nsys says when it ends."""
    lines = child.log_tail(folder, 40).splitlines()
    return next((line for line in reversed(lines) if not NSYS_SAYS.match(line)), "")


def _stop(started: subprocess.Popen[bytes], folder: Path, grace_s: float = 120.0) -> None:
    """End the server and let nsys finish: its own processes are left alone until they are done."""
    for pid in child.members(folder):
        if _name(pid) not in PROFILERS:
            child.send(pid, folder, signal.SIGINT)
    try:
        started.wait(grace_s)
    except subprocess.TimeoutExpired:
        for pid in child.members(folder):
            if _name(pid) not in PROFILERS:
                child.send(pid, folder, signal.SIGTERM)
        try:
            started.wait(grace_s)
        except subprocess.TimeoutExpired:
            return


def _name(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return PROFILERS[0]
