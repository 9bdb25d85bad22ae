"""Reading a profile: intervals, names of kernels, launches and ranges; and the published DualPipe trace, in full."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from profiles import BACKWARD, COMPUTE, MESSAGES, SECOND, Profile, chunk_pair

from sextant.simulator.errors import InputError
from sextant.validate import published, trace, trace_file
from sextant.validate.intervals import union
from sextant.validate.kernel_names import OTHER, classify

SHARED = Path(__file__).resolve().parents[3] / "shared"
US = 1e-6

spans = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 40)).map(lambda x: (x[0], x[0] + x[1])), max_size=20)


def of(found):
    starts, ends = (np.array([each[i] for each in found], dtype=float) for i in (0, 1))
    return union(starts, ends)


def ticks(found):
    return {t for a, b in found for t in range(a, b)}


@given(spans, spans)
def test_unions_and_overlaps_are_those_of_sets_of_ticks(a, b):
    """Against counting unit intervals one by one; gaps are what lies between the first start and the last end."""
    one, two = of(a), of(b)
    assert one.seconds == len(ticks(a))
    assert one.overlap_s(two) == pytest.approx(len(ticks(a) & ticks(b)), abs=1e-9)
    assert one.overlap_s(two) == pytest.approx(two.overlap_s(one), abs=1e-9)
    if a:
        whole = max(end for _, end in a) - min(start for start, _ in a)
        assert one.gaps().seconds == pytest.approx(whole - one.seconds)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("void deep_gemm::fp8_gemm_kernel<7168u, 4096u, 128u, 4u, (deep_gemm::GemmType)1>(...)", "grouped product"),
        ("void deep_gemm::fp8_gemm_kernel<7168u, 4096u, 128u, 1u, (deep_gemm::GemmType)0>(...)", "product"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "product"),
        ("sm90_xmma_gemm_bf16f32_bf16f32_f32_tn_n_tilesize128x128x64_cublas", "product"),
        ("void cutlass::device_kernel<x::grouped_gemm::cuda::fp8::GemmKernel>(Params)", "product"),
        ("void cutlass::device_kernel<x::grouped_gemm::cuda::m_grouped_fp8::GemmKernel>(Params)", "grouped product"),
        ("void deep_gemm::fp8_wgrad_gemm_kernel<128u>(float*)", "weight gradient product"),
        ("void flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128>>(Flash_fwd_params)", "attention"),
        ("void flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Traits>(Flash_bwd_params)", "attention backward"),
        ("void flash_bwd_dot_do_o_kernel<true>(Flash_bwd_params)", "attention backward, before and after"),
        ("void flash_bwd_convert_dq_kernel<true>(Flash_bwd_params)", "attention backward, before and after"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevComm*)", "collective"),
        ("void deep_ep::internode::notify_dispatch<false, 8>(int const*)", "notify"),
        ("void deep_ep::internode::cached_notify<false>(int)", "notify"),
        ("void deep_ep::internode_ll::dispatch<true, 3, 7168>(void*)", "dispatch"),
        ("void deep_ep::intranode::combine<__nv_bfloat16, 4>(void*)", "combine"),
        ("void deep_ep::internode::get_dispatch_layout<256>(long const*)", "layout"),
        ("Memcpy HtoD (Pinned -> Device)", "memcpy"),
        ("Memset (Device)", "memset"),
        ("void layer_norm::ln_bwd_kernel<Traits>(BwdParams)", "norm backward"),
        ("rms_norm_fwd_kernel", "norm"),
        ("void cuda::swiglu_and_per_channel_cast_and_transpose<256>(void const*)", "SwiGLU"),
        ("void cuda::swiglu_backward<__nv_bfloat16>(void const*)", "SwiGLU backward"),
        ("void cuda::per_token_cast_to_fp8_with_channels<__nv_bfloat16>(void const*)", "cast"),
        ("void cuda::per_channel_cast_and_transpose<256, 128>(void const*)", "cast and transpose"),
        ("void cuda::batched_transpose<512, 128>(unsigned char const*)", "transpose"),
        ("rotary_kernel", "RoPE"),
        ("void at::native::sbtopk::gatherTopK<float>(TensorInfo)", "routing"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", "elementwise"),
        ("a_kernel_of_somebody", OTHER),
    ],
)  # fmt: skip
def test_kernels_are_known_by_name(name, expected):
    """Of cuBLAS, CUTLASS, DeepGEMM, FlashAttention, NCCL, DeepEP, PyTorch; what nobody knows is no guess."""
    assert classify(name) == expected


def test_a_kernel_belongs_to_the_innermost_range_that_launched_it(tmp_path):
    """Of its own thread, else of any; when it ran does not matter; without its launch it belongs to none."""
    profile = Profile()
    profile.range("step", 0, 100).range("outer", 10, 50).range("inner", 20, 30).range("own", 0, 60, thread=BACKWARD)
    profile.kernel("a", 70, 80, launched=25).kernel("b", 80, 90, launched=40).kernel("c", 90, 95, launched=90)
    profile.kernel("d", 95, 96, launched=25, thread=BACKWARD).kernel("e", 96, 97, launched=80, thread=BACKWARD)
    profile.kernel("f", 97, 98)
    found = trace_file.read(profile.write(tmp_path / "t.json"))
    assert found.phases.tolist() == ["inner", "outer", "step", "own", "step", ""]
    assert found.kernels.names == tuple("abcdef")


def test_events_in_any_order_compressed_or_not_are_the_same(tmp_path):
    """Kineto sorts nothing."""
    profile = chunk_pair()
    first = trace_file.read(profile.write(tmp_path / "a.json"))
    profile.events.reverse()
    second = trace_file.read(profile.write(tmp_path / "b.json.gz"))
    assert trace.groups(first) == trace.groups(second)
    assert trace.times(first) == trace.times(second)


def test_the_span_divides_into_compute_messages_and_nothing(tmp_path):
    """Two compute streams at once count once as busy, twice as a sum; a message is exposed where no compute runs."""
    profile = Profile().kernel("gemm", 0, 30).kernel("gemm", 10, 40, stream=SECOND)
    profile.kernel("void ep::internode::dispatch<8>()", 35, 60, stream=MESSAGES).kernel("gemm", 65, 70)
    found = trace_file.read(profile.write(tmp_path / "t.json"))
    times = trace.times(found)
    assert times.span_s == pytest.approx(70 * US)
    assert times.compute_busy_s == pytest.approx(45 * US)
    assert times.overlap_s == pytest.approx(5 * US)
    assert times.exposed_s == pytest.approx(20 * US)
    assert times.idle_s == pytest.approx(5 * US)
    assert (times.n_launch_gaps, times.n_waits, times.waits_s) == (0, 1, pytest.approx(25 * US))
    assert times.span_s == pytest.approx(times.compute_busy_s + times.exposed_s + times.idle_s)
    (group,) = [each for each in trace.groups(found) if each.stream == str(SECOND)]
    assert (group.n_kernels, group.sum_s) == (1, pytest.approx(30 * US))
    assert {each.name: each.communicates for each in trace.streams(found)} == {"7": False, "23": False, "27": True}


def test_streams_of_several_devices_are_told_apart(tmp_path):
    """Stream 7 of two GPUs is two streams."""
    profile = Profile().kernel("gemm", 0, 10).kernel("gemm", 0, 10, device=1)
    found = trace_file.read(profile.write(tmp_path / "t.json"))
    assert [each.name for each in trace.streams(found)] == ["0:7", "1:7"]


def test_what_messages_cost_is_read_from_the_same_kernels_without_them(tmp_path):
    """The second kernel of every range, 100 us alone and 120 us beside a transfer; a grid that changes is no pair."""
    profile = Profile()
    for i, (long, beside) in enumerate([(100, False), (120, True), (100, False)]):
        start = 1000 * i
        profile.range("phase", start, start + 10)
        profile.kernel("gemm", start + 100, start + 150, launched=start + 1, grid=(i, 1, 1))
        profile.kernel("layer_norm", start + 200, start + 200 + long, launched=start + 2)
        if beside:
            profile.kernel("void ep::internode::combine<8>()", start + 190, start + 400, stream=MESSAGES)
    (found,) = trace.slowdowns(trace_file.read(profile.write(tmp_path / "t.json")))
    assert (found.kernel_class, found.beside, found.n_kernels) == ("norm", "transfer", 1)
    assert found.median == pytest.approx(1.2)


def test_unknown_kernels_are_listed_by_name_and_time(tmp_path):
    """Longest first."""
    profile = Profile().kernel("mine", 0, 5).kernel("yours", 5, 20).kernel("mine", 20, 22).kernel("gemm", 30, 40)
    found = trace.unknown(trace_file.read(profile.write(tmp_path / "t.json")))
    assert list(found) == ["yours", "mine"]
    assert found["mine"] == (2, pytest.approx(7 * US))


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "cannot be read"), (b"{", "not JSON"), (b"\x1f\x8bnot gzip", "not JSON"), (b"{}", "no traceEvents"),
        (b'{"traceEvents": []}', "no kernel"), (b"3", "no traceEvents"),
        (b'{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "gemm", "ts": 1}]}', "'dur'"),
        (b'{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "gemm", "ts": "x", "dur": 1}]}', "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_profile_is_said_with_a_remedy(tmp_path, content, said):
    """One message with the path, never a traceback."""
    path = tmp_path / "t.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said) as found:
        trace_file.read(path)
    assert str(path) in str(found.value)


@pytest.fixture(scope="module")
def dualpipe():
    """The published trace, where a copy of it lies in a shared folder beside the repository."""
    path = SHARED / "traces" / "deepseek_v3_train_h800.json.gz"
    if not path.exists():
        pytest.skip(f"no published trace: {path.name} is absent from a shared folder beside the repository")
    return trace_file.read(path)


def test_the_published_trace_divides_as_published(dualpipe):
    """Span, busy times, overlap, exposed and idle time, to the microsecond that the profiler's clock resolves."""
    times = trace.times(dualpipe)
    expected = {
        "chunk_pair_s": times.span_s, "compute_busy_s": times.compute_busy_s, "comm_busy_s": times.message_busy_s,
        "overlap_s": times.overlap_s, "exposed_comm_s": times.exposed_s, "idle_s": times.idle_s,
    }  # fmt: skip
    for metric, seconds in expected.items():
        assert seconds == pytest.approx(published.figure(f"dualpipe_trace.{metric}").value, abs=0.6 * US), metric


def test_every_phase_and_class_of_the_published_trace_sums_as_counted_elsewhere(dualpipe):
    """The counts and sums of an independent reading: phases by launch, classes by name."""
    path = SHARED / "facts" / "trace.yaml"
    if not path.exists():
        pytest.skip(f"no independent reading: {path.name} is absent from a shared folder beside the repository")
    facts = {each["quantity"]: each["value"] for each in yaml.safe_load(path.read_text(encoding="utf-8"))}
    phases = {each.name: each.sum_s / US for each in trace.phases(dualpipe)}
    sums: dict[tuple[str, str], tuple[int, float]] = {}
    for group in trace.groups(dualpipe):
        n, seconds = sums.get((group.kernel_class, group.stream), (0, 0.0))
        sums[group.kernel_class, group.stream] = (n + group.n_kernels, seconds + group.sum_s)
    for name in ("attn(F)", "mlp(F)", "attn(B)", "attn(W)", "mlp(B)"):
        assert phases[name] == pytest.approx(facts[f"kernel time by phase, 4 layers: {name}"], abs=0.6)
    weights = (facts[f"kernel time by phase, 4 layers: mlp(W) s{stream}"] for stream in (COMPUTE, SECOND))
    assert phases["mlp(W)"] == pytest.approx(sum(weights), abs=0.6)
    classes = {
        "EP combine BF16 stream 27": ("combine",), "EP notify/barrier stream 27": ("notify",),
        "EP dispatch FP8 stream 27": ("dispatch",), "EP layout stream 27": ("layout",),
        "quant/cast stream 27": ("cast",), "FP8 grouped GEMM fprop/dgrad stream 7": ("grouped product",),
        "FP8 wgrad GEMM stream 7": ("weight gradient product",),
        "FP8 wgrad GEMM stream 23": ("weight gradient product",),
        "attention fwd stream 7": ("attention",), "attention bwd main stream 7": ("attention backward",),
        "attention bwd pre/post stream 7": ("attention backward, before and after",),
        "quant/cast/transpose stream 7": ("cast", "cast and transpose", "transpose"),
        "MoE permute/unpermute stream 7": ("permutation",), "RMSNorm fwd+bwd stream 7": ("norm", "norm backward"),
        "SwiGLU (+cast) stream 7": ("SwiGLU", "SwiGLU backward"), "RoPE stream 7": ("RoPE",),
    }  # fmt: skip
    for quantity, names in classes.items():
        stream = quantity.rpartition(" ")[2]
        found = [sums[name, stream] for name in names]
        n, total = (int(facts[quantity].split(f"{word}=")[1].split()[0]) for word in ("n", "total"))
        assert (sum(each[0] for each in found), round(sum(each[1] for each in found) / US)) == (n, total), quantity
    assert not trace.unknown(dualpipe)


def test_kernels_of_the_published_trace_slow_down_beside_transfers_alone(dualpipe):
    """Memory-bound kernels by 5 to 30%, products by less; kernels beside an agreement on sizes do not."""
    found = {(each.kernel_class, each.beside): each.median for each in trace.slowdowns(dualpipe)}
    assert 1.05 < found["cast", "transfer"] < 1.3
    assert 1.0 < found["product", "transfer"] < found["cast", "transfer"]
    assert found["weight gradient product", "agreement on sizes"] == pytest.approx(1.0, abs=0.03)
