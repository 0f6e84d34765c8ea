"""Kernel names: nsys' and Kineto's spellings read the same, and nothing breaks the parser."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsa_profiler.analysis.names import parse

SAME = [  # nsys, Kineto or cu++filt
    (
        "void at::native::<unnamed>::f<(int)128, (bool)1, float *>(const float *, int)",
        "void at::native::(anonymous namespace)::f<128, true, float*>(float const*, int)",
    ),
    (
        "void at::native::vectorized_kernel<(int)4, at::native::CUDAFunctor_add<float>, "
        "std::array<char *, (unsigned long)3>>(int, T2, T3)",
        "void at::native::vectorized_kernel<4, at::native::CUDAFunctor_add<float>, "
        "std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul>)",
    ),
    (
        "void at::native::elementwise_kernel<(int)128, (int)2, void at::native::gpu_kernel_impl<"
        "at::native::copy(at::TensorIteratorBase &)::[lambda() (instance 3)]::operator ()() const::"
        "[lambda(float) (instance 1)]>(at::TensorIteratorBase &, const T1 &)::"
        "[lambda(int) (instance 1)]>(int, T3)",
        "void at::native::elementwise_kernel<128, 2, void at::native::gpu_kernel_impl<"
        "at::native::copy(at::TensorIteratorBase&)::{lambda()#3}::operator()() const::"
        "{lambda(float)#1}>(at::TensorIteratorBase&, T1 const&)::{lambda(int)#1}>(int, T3)",
    ),
    (
        "void tensorrt_llm::kernels::topKPerRowDecode<(int)512, (bool)0>(const float *, int *)",
        "void tensorrt_llm::kernels::topKPerRowDecode<512, false>(float const*, int*)",
    ),
    (
        "void sm90::fwd::sparse_attn_fwd_kernel<sm90::fwd::KernelTemplate<(int)576, (bool)0>>(P)",
        "void sm90::fwd::sparse_attn_fwd_kernel<sm90::fwd::KernelTemplate<576, false> >(P)",
    ),
    ("ns::g<(unsigned int)4, (long)-1>(int)", "ns::g<4u, -1l>(int)"),
    ("void k<(Kind)2, const Row *>(Row *)", "void k<(Kind)2, Row const*>(Row*)"),
]


@pytest.mark.parametrize(("nsys", "kineto"), SAME)
def test_two_profilers_spell_one_kernel(nsys: str, kineto: str) -> None:
    assert parse(nsys) == parse(kineto)


@pytest.mark.parametrize(
    ("text", "base", "namespace"),
    [
        ("add_one(const float *, float *, int)", "add_one", ()),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_bias_TNN",) * 2 + ((),),
        ("triton_poi_fused_cat_17", "triton_poi_fused_cat", ()),
        ("triton_per_fused__to_copy_native_layer_norm_0",
         "triton_per_fused__to_copy_native_layer_norm", ()),
        ("void (anonymous namespace)::topk_kernel(P)", "topk_kernel", ()),
        ("std::enable_if<(bool)1, void>::type ns::g<int>(int)", "g", ("ns",)),
        ("unsigned long ns::h<4>(int) [clone .constprop.0]", "h", ("ns",)),
        ("ns::operator<<(int)", "operator<<", ("ns",)),
        ("void ns::operator< <int>(int)", "operator<", ("ns",)),
        ("ns::Thing::operator()(int) const", "operator()", ("ns", "Thing")),
        ("void clover::par_ranged1d_kernel<build(vars &)::[lambda(int) (instance 1)]>(Range1d, T1)",
         "par_ranged1d_kernel", ("clover",)),
        ("auto f<(a->b), 3>(int)", "f", ()),
        ("[memcpy HtoD]", "[memcpy HtoD]", ()),
        ("Memcpy DtoD (Device -> Device)",) * 2 + ((),),
        ("", "", ()),
    ],
)  # fmt: skip
def test_base_and_namespace(text: str, base: str, namespace: tuple[str, ...]) -> None:
    assert (parse(text).base, parse(text).namespace) == (base, namespace)


@pytest.mark.parametrize(
    ("text", "arch"),
    [
        ("void sm90::fwd::sparse_attn_fwd_kernel<X>(P)", "sm90"),
        ("void sm100::fwd::head64::sparse_attn_fwd_kernel<X>(P)", "sm100"),
        ("void deep_gemm::sm90_fp8_mqa_logits<64u>(int)", "sm90"),
        ("fmhaSm103aKernel_QkvE4m3OBfloat16", "sm103"),
        ("nvjet_sm100_tst_128x256_64x4", "sm100"),
        ("void smxx::decode::get_mla_metadata_kernel(P)", ""),
        ("plasma90_kernel", ""),
    ],
)
def test_architecture(text: str, arch: str) -> None:
    assert parse(text).arch == arch


def test_different_instances_stay_apart() -> None:
    names = [f"void k<(int){n}, (bool){b}>(int)" for n in (64, 128) for b in (0, 1)]
    assert len({parse(n).canonical for n in names}) == 4
    assert {parse(n).template for n in names} == {"64,false", "64,true", "128,false", "128,true"}


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["void ", "ns", "::", "k", "<", ">", "(", ")", "[", "]", "{", "}", ",", "operator",
             "lambda", "(int)", "128u", "-", "->", "<<", "const ", " *", "<unnamed>", "#1", "\n"]
        ),
        max_size=40,
    ).map("".join)
)  # fmt: skip
def test_any_text_is_a_name(text: str) -> None:
    name = parse(text)
    assert isinstance(name.base, str)
    assert parse.__wrapped__(text) == name


@pytest.mark.parametrize("text", ["(" * 9000, "<" * 9000 + ">" * 9000, "a::" * 9000, "a<b," * 3000])
def test_no_name_exhausts_the_parser(text: str) -> None:
    assert parse(text).canonical
