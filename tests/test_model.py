"""Model shapes, cases and their slugs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsa_profiler.errors import InputError, UsageError
from dsa_profiler.model import Case, ModelShape, layer_map, load_model


def config(**changes: object) -> dict[str, object]:
    from importlib import resources

    text = resources.files("dsa_profiler.presets").joinpath("deepseek-v3.2.json").read_text()
    return {**json.loads(text), **changes}


def write(folder: Path, data: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(data))
    return path


def test_v32_has_61_dsa_layers_unless_the_seed_rule_is_asked_for() -> None:
    shape = load_model("deepseek-v3.2")
    assert str(layer_map(shape)) == "Layers: 61 (MLA: 0, DSA: 61)"
    assert str(layer_map(shape, "first_k_dense")) == "Layers: 61 (MLA: 3, DSA: 58)"


def test_glm5_differs_where_it_differs() -> None:
    shape = load_model("zai-org/GLM-5")
    assert (shape.q_lora_rank, shape.qk_nope_head_dim, shape.v_head_dim) == (2048, 192, 256)
    assert (shape.index_n_heads, shape.num_attention_heads, shape.rope.factor) == (32, 64, 1.0)
    assert shape.indexer_rope_interleave


def test_a_config_is_read_from_its_file_or_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path, config())
    assert load_model(str(path)) == load_model(str(tmp_path))
    assert load_model(str(path)).index_topk == 2048


def test_the_softmax_scale_takes_yarn_in_only_beyond_the_original_length() -> None:
    shape = load_model("deepseek-v3.2")
    m = 0.1 * 3.6888794541139363 + 1  # ln 40
    assert shape.softmax_scale(4096) == pytest.approx(192**-0.5)
    assert shape.softmax_scale(4097) == pytest.approx(192**-0.5 * m * m)
    assert load_model("glm-5").softmax_scale(100_000) == pytest.approx(256**-0.5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"index_topk": None}, "index_topk"),
        ({"index_n_heads": 0}, "index_n_heads"),
        ({"index_head_dim": "128"}, "index_head_dim"),
        ({"hidden_size": True}, "hidden_size"),
        ({"kv_lora_rank": 1 << 40}, "kv_lora_rank"),
        ({"first_k_dense_replace": 62}, "first_k_dense_replace"),
        ({"qk_rope_head_dim": 256}, "qk_rope_head_dim"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"architectures": []}, "architectures"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ],
)
def test_a_missing_or_absurd_field_is_named(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        load_model(str(write(tmp_path, config(**changes))))


def test_a_config_without_index_fields_is_no_dsa_model(tmp_path: Path) -> None:
    data = {k: v for k, v in config().items() if not k.startswith("index_")}
    with pytest.raises(InputError, match="index_") as caught:
        load_model(str(write(tmp_path, data)))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_what_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError):
        load_model(str(path))
    with pytest.raises(InputError, match="no such model"):
        load_model(str(tmp_path / "nowhere"))


def test_a_shape_survives_json() -> None:
    shape = load_model("deepseek-v3.2")
    assert ModelShape.from_json(json.loads(json.dumps(shape.as_json()))) == shape


sizes = st.integers(1, 1 << 20)
cases = st.builds(
    Case,
    st.sampled_from(["context", "generation"]),
    sizes,
    sizes,
    sizes,
    st.sampled_from(["bfloat16", "fp8", "float32"]),
    st.integers(0, 1 << 20),
)


@given(cases)
def test_a_slug_parses_back_to_its_case(case: Case) -> None:
    assert Case.from_slug(case.slug) == case


@given(st.text())
def test_no_text_breaks_the_slug_parser(text: str) -> None:
    try:
        case = Case.from_slug(text)
    except UsageError:
        return
    assert case.slug == text


def test_the_designs_slug() -> None:
    assert Case("generation", 64, 4095).slug == "generation-b64-s4095-h128-bfloat16"


@pytest.mark.parametrize(
    "values", [("decode", 1, 1), ("context", 0, 1), ("context", 1, 0), ("context", 1, 1, 0)]
)
def test_an_impossible_case_is_refused(values: tuple[object, ...]) -> None:
    with pytest.raises(UsageError):
        Case(*values)  # type: ignore[arg-type]


def test_kv_length_counts_the_new_token_and_the_prefix() -> None:
    assert Case("generation", 4, 2047).kv_len == 2048
    assert Case("context", 4, 100, prefix=28).kv_len == 128
    assert (Case("generation", 4, 2047).tokens, Case("context", 4, 100).tokens) == (4, 400)
