"""The command line's frame: help, errors in two lines, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import trace_factory
from results_factory import disk_session

from dsa_profiler.cli import main
from dsa_profiler.cli.verbs import VERBS


def test_help_is_quick_and_lists_every_verb() -> None:
    best = 9.0
    for _ in range(5):
        began = time.perf_counter()
        out = subprocess.run(
            [sys.executable, "-m", "dsa_profiler", "--help"], capture_output=True, text=True
        )
        best = min(best, time.perf_counter() - began)
    assert out.returncode == 0
    assert all(f"  {verb} " in out.stdout for verb in VERBS)
    assert best < 1.0  # wanted: 0.15 s on a quiet machine


@pytest.mark.parametrize("verb", VERBS)
def test_each_verbs_help_starts_with_an_example(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(f"dsa_profiler.cli.{VERBS[verb].module}")
    assert (module.__doc__ or "").startswith(f"Example:  dsa-profiler {verb}")
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    assert "Example:" in capsys.readouterr().out


def test_a_wrong_verb_or_flag_gets_two_lines_and_a_guess(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["modle"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown verb 'modle' [verb-unknown]\n cure: did you mean 'model'?\n"
    )
    assert main(["model", "glm-5", "--jsno"]) == 2
    assert "did you mean '--json'" in capsys.readouterr().err


def test_a_missing_package_is_no_bug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="plotly.express")

    monkeypatch.setattr("dsa_profiler.cli.model.load_model", missing)
    assert main(["model", "glm-5"]) == 3
    told = capsys.readouterr().err
    assert "the Python package plotly.express is not installed [dependency-missing]" in told


def test_a_bug_goes_to_a_log_and_not_to_the_user(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsa_profiler.cli.model.load_model", lambda name: 1 / 0)
    assert main(["model", "glm-5"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    log = Path(err.strip().rpartition(" ")[2])
    assert "ZeroDivisionError" in log.read_text()
    log.unlink()


def test_model_prints_the_map_and_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "deepseek-v3.2"]) == 0
    out = capsys.readouterr().out
    assert "Architecture: DeepseekV32ForCausalLM" in out
    assert "index_n_heads=64 index_head_dim=128 index_topk=2048" in out
    assert "Layers: 61 (MLA: 0, DSA: 61)" in out
    assert main(["model", "deepseek-v3.2", "--layer-rule", "first_k_dense", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == {"mla": 3, "dsa": 58}


def test_no_arguments_is_a_usage_error_that_shows_the_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    assert "usage: dsa-profiler VERB" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_can_be_quiet(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "--quiet" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_can_print_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "--json" in capsys.readouterr().out


def test_scripts_are_json_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    case = "generation-b1-s64-h128-bfloat16"
    for words in (["completion", "fish"], ["serve", "--print", "--model", "m", "--case", case]):
        assert main(words) == 0
        script = capsys.readouterr().out
        assert main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["script"] == script


def test_quiet_silences_results_and_not_json_or_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "glm-5", "-q"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["model", "glm-5", "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1
    assert main(["model", "nope", "-q"]) == 4
    assert capsys.readouterr().err.startswith("error: no such model")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["analyze", "x", "--top", "two"], 2, "'two' is no whole number"),
        (["serve", "--timeout", "soon"], 2, "'soon' is no number"),
        (["export", "x", "--to", "cvs"], 2, "did you mean 'csv'?"),
        (["sessions", "mysweeep"], 4, "did you mean 'mysweep'?"),
        (["align", "traces/mysweep", "traces/mysweep"], 4, "is a session of the layer"),
        (["verify", "nowhere"], 4, "nowhere is no root of tables"),
        (["analyze", "nowhere"], 4, "no such file or folder: nowhere"),
    ],
)
def test_wrong_words_are_answered_in_two_lines(
    words: list[str],
    code: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk_session(tmp_path / "traces" / "mysweep", trace_factory.CASES)
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    lines = capsys.readouterr().err.splitlines()
    assert [line[:6] for line in lines] == ["error:", " cure:"]
    assert told in "\n".join(lines)
