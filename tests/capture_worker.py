"""A stand-in for the worker: speaks its protocol, sleeps instead of computing, misbehaves on order.

`settings["script"]` maps slugs to a fate: crash, hang, stuck (hangs and is deaf, as in a kernel
that never returns), oom, fail, flaky (crashes the first time), mute (ends well without its marks).
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from dsa_profiler import marks
from dsa_profiler.model import Case


def main() -> int:
    path = Path(sys.argv[1])
    order = json.loads(path.read_text("utf-8"))
    script = order.get("script", {})
    if script.get("*") == "refuse":
        print("error: this machine has no torch\n cure: install it", file=sys.stderr)
        return 3
    mark = _nvtx() if order["tracer"] == "nsys" else None
    out = (path.parent / order["outcome"]).open("a")

    def tell(event: str, **rest: object) -> None:
        out.write(json.dumps({"event": event, **rest}) + "\n")
        out.flush()

    gpu = os.environ.get("STAND_IN_GPU")
    about = {"torch": "none", **({"device_name": gpu} if gpu else {})}
    tell("ready", pid=os.getpid(), device="cpu", environment=about)
    recorded = []
    for data in order["cases"]:
        if (path.parent / "stop").exists() or not _alive(order["parent"]):
            break
        case = Case(**data)
        fate = script.get(case.slug, "")
        tell("start", case=case.slug)
        if fate in ("oom", "fail"):
            status = {"oom": "oom", "fail": "failed"}[fate]
            tell("end", case=case.slug, status=status, detail="as ordered")
            continue
        _fate(fate, case.slug, path)
        with contextlib.ExitStack() as stack:
            if mark and fate != "mute":
                stack.enter_context(mark(marks.case(case.slug)))
            for n in range(order["iterations"]):
                tell("beat", case=case.slug, iteration=n)
                with mark(marks.iteration(n)) if mark and fate != "mute" else _nothing():
                    time.sleep(order.get("sleep_s", 0.002))
        if fate != "mute":
            recorded.append(case.slug)
        tell("end", case=case.slug, status="done", untraced_ns=2e6, iterations=order["iterations"])
    if order["tracer"] == "plain":
        (path.parent / order["raw_trace"]).write_text(json.dumps(recorded), "utf-8")
    tell("bye")
    return 0


def _fate(fate: str, slug: str, path: Path) -> None:
    if fate == "flaky":
        witness = path.parent.parent / f"tried-{slug}"
        if not witness.exists():
            witness.touch()
            fate = "crash"
    if fate == "crash":
        print(f"about to crash in {slug}", file=sys.stderr, flush=True)
        os._exit(17)
    if fate == "stuck":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    if fate in ("hang", "stuck"):
        time.sleep(600)


def _nvtx():
    import nvtx

    return nvtx.annotate


@contextlib.contextmanager
def _nothing():
    yield


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
