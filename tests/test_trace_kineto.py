"""Chrome traces of torch.profiler: exact times, launches joined, several ranks in one file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsa_profiler.columns import NULL, PROCESS_MASK, Gpu
from dsa_profiler.errors import InputError
from dsa_profiler.trace.kineto import nanoseconds
from dsa_profiler.trace.reader import read
from dsa_profiler.trace.writer import write

BASE = 1_720_000_000_000_000


def call(ts: str, correlation: int, pid: int = 100, tid: int = 200, name: str = "cudaLaunchKernel",
         cat: str = "cuda_runtime") -> dict[str, Any]:  # fmt: skip
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": Number(ts),
            "dur": Number("2.000"), "args": {"correlation": correlation}}  # fmt: skip


def kernel(ts: str, dur: str, correlation: int, name: str = "topKPerRowDecode<512>(float*)",
           device: int = 0, cat: str = "kernel", **args: Any) -> dict[str, Any]:  # fmt: skip
    args = {"device": device, "stream": 7, "correlation": correlation, **args}
    return {"ph": "X", "cat": cat, "name": name, "pid": device, "tid": 7, "ts": Number(ts),
            "dur": Number(dur), "args": args}  # fmt: skip


def mark(ts: str, dur: str, name: str, cat: str = "user_annotation", pid: int = 100,
         tid: int = 200) -> dict[str, Any]:  # fmt: skip
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": Number(ts),
            "dur": Number(dur)}  # fmt: skip


class Number(str):
    """A number that is written into the JSON digit by digit."""


def save(path: Path, events: list[dict[str, Any]], **top: Any) -> Path:
    quoted = json.dumps({"schemaVersion": 1, **top, "traceEvents": [_tag(e) for e in events]})
    text = quoted.replace('"#', "").replace('#"', "").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def _tag(event: dict[str, Any]) -> dict[str, Any]:
    return {k: f"#{v}#" if isinstance(v, Number) else v for k, v in event.items()}


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_epoch_times_keep_their_nanoseconds(tmp_path: Path, name: str) -> None:
    trace = read(
        save(
            tmp_path / name,
            [
                mark(f"{BASE}.001", "20.5", "dsa:iter 0"),
                call(f"{BASE + 1}.003", 5),
                kernel(f"{BASE + 9}.007", "3.141", 5),
            ],
        )
    )
    assert trace.ranges.start.tolist() == [0]
    assert trace.ranges.end.tolist() == [20_500]
    assert trace.launches.start.tolist() == [1_002]
    assert trace.kernels.start.tolist() == [9_006]
    assert trace.kernels.end.tolist() == [12_147]
    assert trace.info.duration_ns == 20_501


def test_a_kernel_belongs_to_the_process_that_launched_it(tmp_path: Path) -> None:
    trace = read(save(tmp_path / "t", [call("10", 5), kernel("20", "1", 5)]))
    assert trace.kernels.process.tolist() == (trace.launches.thread & PROCESS_MASK).tolist()
    assert trace.kernels.correlation.tolist() == trace.launches.correlation.tolist() == [5]
    assert trace.strings[int(trace.kernels.name[0])] == "topKPerRowDecode<512>(float*)"


def test_ranks_in_one_file_keep_to_themselves(tmp_path: Path) -> None:
    events = []
    for rank, pid in enumerate((100, 101)):
        for i in range(20):
            at = 1000 * i + 300 * rank
            events.append(call(f"{at}", i, pid=pid, tid=pid))
            events.append(kernel(f"{at + 50}", "10", i, device=rank))
    trace = read(save(tmp_path / "t", events))
    processes = trace.launches.thread & PROCESS_MASK
    assert len(set(processes.tolist())) == 2
    launched = dict(zip(zip(processes.tolist(), trace.launches.correlation.tolist(), strict=True),
                        trace.launches.start.tolist(), strict=True))  # fmt: skip
    lag = {
        int(start) - launched[int(process), int(correlation)]
        for start, process, correlation in zip(
            trace.kernels.start, trace.kernels.process, trace.kernels.correlation, strict=True
        )
    }
    assert lag == {50_000}


def test_what_is_a_range_and_what_is_not(tmp_path: Path) -> None:
    events = [
        mark("0", "100", "dsa:iter 0"),
        mark("1", "5", "aten::mm", cat="cpu_op"),
        mark("2", "5", "dsa:iter 0", cat="gpu_user_annotation"),
        mark("3", "5", "train.py(3): step", cat="python_function"),
        mark("4", "0", "an instant"),
        {**mark("5", "1", "dsa:stage topk"), "ph": "i"},
    ]
    trace = read(save(tmp_path / "t", events))
    assert list(trace.strings.values()) == ["an instant", "dsa:iter 0"]
    assert sorted(trace.ranges.nests.tolist()) == [False, True]


def test_copies_sets_driver_calls_and_graphs(tmp_path: Path) -> None:
    events = [
        call("0", 1, name="cuLaunchKernelEx", cat="cuda_driver"),
        call("3", 2, name="cudaGraphLaunch"),
        kernel("10", "1", 1),
        kernel("20", "1", 2, **{"graph node id": 41}),
        kernel("30", "1", 3, name="Memcpy HtoD (Pinned -> Device)", cat="gpu_memcpy"),
        kernel("40", "1", 4, name="Memset (Device)", cat="gpu_memset"),
    ]
    trace = read(save(tmp_path / "t", events))
    assert trace.kernels.kind.tolist() == [0, 0, 1, 2]
    assert trace.kernels.graph_node.tolist() == [NULL, 41, NULL, NULL]
    assert [trace.strings[i] for i in trace.kernels.name.tolist()][2:] == [
        "[memcpy HtoD]", "[memset]",
    ]  # fmt: skip
    assert trace.launches.correlation.tolist() == [1, 2]


def test_a_copy_between_devices_is_on_the_one_that_makes_it(tmp_path: Path) -> None:
    copy = kernel("0", "1", 1, name="Memcpy PtoP (Device -> Device)", cat="gpu_memcpy", device=3)
    copy["args"] = {"fromDevice": 1, "inDevice": 2, "toDevice": 1, "stream": 7, "correlation": 1}
    trace = read(save(tmp_path / "t", [copy]))
    assert trace.kernels.device.tolist() == [2]
    assert list(trace.strings.values()) == ["[memcpy PtoP]"]


def test_the_file_tells_its_gpus_and_its_rank(tmp_path: Path) -> None:
    path = save(
        tmp_path / "t",
        [mark("0", "1", "x")],
        deviceProperties=[
            {"id": 0, "name": "NVIDIA H200", "computeMajor": 9, "computeMinor": 0, "numSms": 132}
        ],
        distributedInfo={"backend": "nccl", "rank": 3, "world_size": 8},
        baseTimeNanoseconds=1_790_857_026_000_000_000,
    )
    info = read(path).info
    assert info.gpus == (Gpu("NVIDIA H200", 90, 132),)
    assert info.options == {"DISTRIBUTED_RANK": "3"}
    assert info.producer == "torch.profiler"


def test_it_becomes_an_nsys_file_that_reads_the_same(tmp_path: Path) -> None:
    events = [mark("0", "100", "dsa:iter 0"), call("1", 5), kernel("9.25", "3", 5)]
    trace = read(save(tmp_path / "t", events, distributedInfo={"rank": 3}))
    write(trace, tmp_path / "t.sqlite")
    back = read(tmp_path / "t.sqlite")
    assert back.info == trace.info
    assert back.strings == trace.strings
    assert back.kernels.start.tolist() == trace.kernels.start.tolist()
    assert back.launches.thread.tolist() == trace.launches.thread.tolist()


def test_rows_that_cannot_be_are_counted(tmp_path: Path) -> None:
    events = [
        mark("0", "1", "good"),
        mark("0", "-1", "backwards"),
        mark("1e30", "1", "far"),
        {**mark("0", "1", "no time"), "ts": "soon"},
        {**mark("0", "1", "null"), "ts": None},
    ]
    info = read(save(tmp_path / "t", events)).info
    assert dict(info.skipped_rows) == {
        "user_annotation: ends before it starts": 1,
        "user_annotation: not a time": 2,
        "user_annotation: time out of range": 1,
    }


def test_ids_of_any_size_become_ids_that_fit(tmp_path: Path) -> None:
    events = [
        mark("0", "1", "a", pid=1 << 40, tid=-5),
        mark("0", "1", "b", pid=1 << 40, tid=1 << 50),
        {**mark("0", "1", "c"), "pid": "Spans", "tid": "PyTorch Profiler"},
    ]
    trace = read(save(tmp_path / "t", events))
    threads = trace.ranges.thread.tolist()
    assert len(set(threads)) == 3
    assert len({t & PROCESS_MASK for t in threads}) == 2


@pytest.mark.parametrize(
    "text",
    [
        '{"traceEvents": [',
        "[" * 100_000,
        '{"traceEvents": [{"ph": "X", "ts": ' + "9" * 9000 + "}]}",
    ],
)
def test_a_file_cut_off_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(InputError):
        read(tmp_path / "t.json")


def test_a_gzip_cut_off_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "t.gz", [mark("0", "1", "x")] * 100)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError) as error:
        read(path)
    assert error.value.slug == "trace-broken"


@given(ns=st.integers(-(10**18), 2 * 10**18))
def test_microseconds_as_text_are_exact(ns: int) -> None:
    sign, digits = ("-" if ns < 0 else ""), f"{abs(ns):04d}"
    assert nanoseconds(f"{sign}{digits[:-3]}.{digits[-3:]}") == ns


@pytest.mark.parametrize(
    ("value", "ns"),
    [(5, 5000), ("1.5", 1500), ("1.2345", 1234), ("1.2346", 1235), ("1e3", 1_000_000),
     ("NaN", None), ("soon", None), (None, None), (True, None), ({}, None)],
)  # fmt: skip
def test_times_that_are_written_otherwise(value: object, ns: int | None) -> None:
    assert nanoseconds(value) == ns
