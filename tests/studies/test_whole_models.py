"""Whole models and their pieces on one GPU: the prediction of `sextant run`, beside what was measured."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from sextant.simulator.errors import InputError
from sextant.studies import answer, cli, whole_data, whole_kernels, whole_models, whole_table
from sextant.studies.whole_kernels import Kernel
from sextant.studies.whole_models import Compared, Line, Predicted, predicted
from sextant.validate import prediction
from sextant.validate.whole import cases
from sextant.validate.whole.cases import Difference

SHIPPED = {case.name: case for case in cases.read()}


@pytest.mark.parametrize("name", SHIPPED)
def test_before_differences_a_pass_takes_what_run_says(name: str) -> None:
    case = replace(SHIPPED[name], differs=())
    found, scenario = predicted(case), whole_models.scenario_of(case, "h200")
    if case.phase == "vision":  # run has a language model behind the encoder, and text for it to read
        scenario = replace(scenario, load=replace(scenario.load, context_tokens=1.0))
    told = answer.evaluate(scenario)
    assert told.limits[0] == ()
    assert found.seconds == pytest.approx(
        told.columns["vision_s" if case.phase == "vision" else "step_time_s"][0], rel=1e-9
    )
    assert found.low_s < found.seconds < found.high_s


def test_rows_from_the_host_wait_unless_fetched_ahead() -> None:
    def wait(name: str, **changes) -> float:
        case = SHIPPED[name]
        case = replace(case, model=replace(case.model, **changes))
        return sum(line.seconds for line in predicted(case).lines if line.name == "engram_wait")

    ahead, in_line = (f"engram-prefill-b1-4096-prefetch-{text}" for text in ("on", "off"))
    one = wait(in_line)
    assert one > 1e-4
    # Nothing to hide behind: few programs or all SMs, the page walkers decide. Far behind, what compute loses is left.
    assert wait(ahead, engram_layers=(1.0,)) == pytest.approx(one, rel=0.02)
    assert 0.0 < wait(ahead, num_hidden_layers=8.0, engram_layers=(8.0,)) < 0.35 * one
    assert wait(in_line, engram_layers=(1.0, 2.0)) == pytest.approx(2 * one)


def test_kernels_that_run_instead_are_predicted_as_kernel_cases() -> None:
    case = replace(SHIPPED["coder-1.3b-decode-b64-2048"], differs=())
    plain = predicted(case)
    rope = sum(line.seconds for line in plain.lines if line.name == "rope")
    shape = {"op": "copy", "bytes": 2**26}
    copied = Difference(what="keys are copied", instead_of=("rope",), case=shape, count=24)
    one = prediction.predict({"op": ["copy"], "bytes": [str(2**26)]}, 1, prediction.single_kernel_cluster("h200"))
    found = predicted(replace(case, differs=(Difference(what="a note"), copied)))
    assert found.seconds == pytest.approx(plain.seconds - rope + 24e-6 * one.us[0], rel=1e-9)
    assert "rope" not in {line.name for line in found.lines}


@pytest.mark.parametrize(
    ("each", "said"),
    [
        (Difference(what="x", instead_of=("rotary",)), "no operator 'rotary' in this pass"),
        (Difference(what="x", case={"op": "copy"}, count=1), "differs.case: bytes: missing"),
    ],
)
def test_a_difference_that_means_nothing_is_refused(each: Difference, said: str) -> None:
    with pytest.raises(InputError, match=said):
        predicted(replace(SHIPPED["coder-1.3b-decode-b64-2048"], differs=(each,)))


@pytest.mark.parametrize(
    ("name", "computes"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64", "products"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x1_tn_align8>", "products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", "products"),
        ("void cutlass::device_kernel<GemmUniversal<cutlass::gemm::GroupProblemShape<cute::tuple<int>>>>",
         "expert products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x64x128", "attention"),
        ("void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128>>", "attention"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3", "norm"),
        ("triton_poi_fused_mul_silu_5", "activation"),
        ("triton_poi_fused_add_cat_mul_neg_slice_2", "rotary, cache, copies"),
        ("triton_red_fused__softmax_topk_sort_0", "routing"),
        ("triton_red_fused__log_softmax_nll_loss_forward_7", "loss"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("mhc_pre_big_fuse_kernel", "streams (mHC)"), ("Memcpy HtoD (Pinned -> Device)", "host copy"),
        ("Memcpy DtoD (Device -> Device)", "rotary, cache, copies"), ("something_unheard_of", "other"),
    ],
)  # fmt: skip
def test_a_kernels_name_says_what_it_computes(name: str, computes: str) -> None:
    assert whole_kernels.of_kernel(name) == computes


def test_operators_and_kernels_are_sorted_into_the_same_words() -> None:
    words = {name for name, _ in whole_kernels.KERNELS}
    for case in SHIPPED.values():
        lines = predicted(case).lines
        assert {line.what for line in lines} <= words
    products = [line for line in predicted(SHIPPED["v2-lite-6l-decode-b64-4096"]).lines if line.what == "products"]
    assert {"q_absorb", "router", "lm_head"} <= {line.name for line in products}


def test_errors_are_summed_up() -> None:
    interval = {"low_s": 0.9e-3, "high_s": 1.2e-3}
    found = whole_models.summary(
        [
            Compared(case="a", measured_s=1.0e-3, predicted_s=1.1e-3, **interval),
            Compared(case="b", measured_s=1.25e-3, predicted_s=1.0e-3, **interval),
        ]
    )
    assert (found.n_cases, found.n_inside, found.worst) == (2, 1, "b")
    assert (found.mean, found.largest, found.bias) == pytest.approx((0.15, -0.2, -0.05))


def test_kernels_stand_beside_operators_of_the_same_kind() -> None:
    guess = Predicted(
        case="a",
        lines=(
            Line(name="up", what="products", count=2.0, seconds=3e-6, low_s=2e-6, high_s=4e-6),
            Line(name="norm", what="norm", count=1.0, seconds=1e-6, low_s=1e-6, high_s=1e-6),
        ),
    )
    kernels = [Kernel(name="nvjet_a", count=2.0, us=4.0), Kernel(name="splitKreduce", count=1.0, us=2.0),
               Kernel(name="mystery", count=1.0, us=0.5)]  # fmt: skip
    products, norm, other, total = whole_table.by_class(guess, kernels)
    assert (products["predicted_us"], products["measured_us"], products["kernels"]) == pytest.approx((3.0, 6.0, 3.0))
    assert products["error"] == pytest.approx(-0.5)
    assert norm["error"] is None and other["computes"] == whole_kernels.OTHER
    assert (total["predicted_us"], total["measured_us"]) == pytest.approx((4.0, 6.5))


FIRST, SECOND = "coder-1.3b-prefill-b1-2048", "siglip-l-b32"
THIRD = "siglip-l-b1"
MODELS = f"# device: NVIDIA H200\ncase,us,lasting_us\n{FIRST},10000,11000\n{SECOND},25000,26000\n{THIRD},9,\n"
KERNELS = f"case,kernel,count,us\n{FIRST},nvjet_tst,97,6000\n{FIRST},flash_fwd,24,800\n"


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made-up measurements, as files of the committed shape."""
    for name, text in (("h200_models.csv", MODELS), ("h200_model_kernels.csv", KERNELS)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(whole_data, "MEASURED", tmp_path)
    return tmp_path


def run(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["sextant", "validate", "models", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_every_measured_case_is_one_line(measured: Path, monkeypatch, capsys) -> None:
    assert run("--out", str(measured / "errors.csv"), monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    assert FIRST in text and SECOND in text and THIRD not in text and "2 cases: mean error" in text
    with (measured / "errors.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [row["case"] for row in written] == [FIRST, SECOND]
    guess = predicted(SHIPPED[FIRST]).seconds
    assert float(written[0]["error"]) == pytest.approx(guess / 0.011 - 1)


def test_json_holds_cases_and_summary(measured: Path, monkeypatch, capsys) -> None:
    assert run("--json", monkeypatch=monkeypatch) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["cases"]) == 2 and found["summary"]["n_cases"] == 2


def test_one_case_is_shown_kernel_by_kernel(measured: Path, monkeypatch, capsys) -> None:
    assert run(FIRST, monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    assert "nvjet_tst" in text and "qkv_proj" in text and "differs: the first norm adds nothing" in text
    assert run(FIRST, "--json", monkeypatch=monkeypatch) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {row["computes"]: row for row in found["computes"]}
    assert by_name["products"]["measured_us"] == 6000 and by_name["all"]["measured_us"] == 6800


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--device", "h100"), "sextant.validate.whole.run"), ((FIRST + "0",), FIRST)],
)
def test_what_was_not_measured_is_one_clear_error(measured: Path, monkeypatch, capsys, words, said) -> None:
    assert run(*words, monkeypatch=monkeypatch) == 2
    assert said in capsys.readouterr().err


def test_shipped_models_are_predicted() -> None:
    """Mean error at most 5%, none above 10%, no case left out; no fit has seen any of them."""
    measured_s = whole_data.measured_s("h200")
    assert set(measured_s) == set(SHIPPED) and len(SHIPPED) >= 12
    found = whole_models.summary(whole_models.compared(list(SHIPPED.values()), measured_s))
    assert found.mean <= 0.05 and abs(found.largest) <= 0.10
    assert found.n_inside >= 0.88 * found.n_cases
