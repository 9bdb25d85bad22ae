"""A profile beside a prediction: each operator of the pair once, the same names on both sides, what is said of it."""

import json
import sys
from pathlib import Path

import pytest

from sextant.simulator.errors import InputError
from sextant.studies import answer, cli, trace_comparison, trace_table
from sextant.studies.trace_comparison import COMPUTE, RANGES

SHARED = Path(__file__).resolve().parents[3] / "shared"
US = 1e-6
#: One kernel per range: its name, stream, start and end in microseconds.
KERNELS = {
    "combine(B)": ("ep::internode::dispatch", 27, 0, 20), "attn(F)": ("flash_fwd", 7, 0, 10),
    "mlp(B)": ("m_grouped_gemm", 7, 20, 30), "dispatch(F)": ("ep::internode::dispatch", 27, 20, 40),
    "dispatch(B)": ("ep::internode::combine", 27, 40, 60), "mlp(W)": ("wgrad_gemm", 7, 30, 45),
    "mlp(F)": ("m_grouped_gemm", 7, 45, 60), "combine(F)": ("ep::internode::combine", 27, 60, 80),
    "attn(B)": ("flash_bwd", 7, 60, 90), "attn(W)": ("wgrad_gemm", 7, 90, 100),
}  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    return trace_comparison.chunk_pair(answer.question(trace_table.CHUNK_PAIR).scenario)


def profile(path, kernels):
    """A profile with a range of a microsecond around the launch of each kernel."""
    events = []
    for i, (name, (kernel, stream, start, end)) in enumerate(kernels.items()):
        launch = {"ph": "X", "tid": 1, "ts": 2 * i - 50, "dur": 1}
        events += [
            {**launch, "cat": "user_annotation", "name": name},
            {**launch, "cat": "cuda_runtime", "name": "cudaLaunchKernel", "args": {"correlation": i}},
            {"ph": "X", "cat": "kernel", "name": kernel, "tid": stream, "ts": start, "dur": end - start,
             "args": {"stream": stream, "correlation": i}},
        ]  # fmt: skip
    path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
    return path


@pytest.fixture
def run(capsys, monkeypatch):
    def ran(*words):
        monkeypatch.setattr(sys, "argv", ["sextant", "validate", "trace", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return ran


def test_the_shipped_pair_is_four_layers_in_each_direction(pair):
    """MoE layers alone: no embedding, no head; an operator of a direction runs once per layer of it."""
    assert {item.op.part for item, _ in pair.operators} == {"moe_layer"}
    assert {n for _, n in pair.operators} == {4.0}
    assert {item.op.phase for item, _ in pair.operators} == {"forward", "backward_input", "backward_weight"}


def test_phases_and_exchange_hold_every_operator_once(pair):
    """Nothing that the pair runs is left out of the comparison, nothing is in it twice."""
    ours = trace_comparison.predicted(pair)
    total = sum(n * float(item.seconds) for item, n in pair.operators)
    named = (*COMPUTE, "dispatch", "combine", "casts of messages")
    assert sum(ours[name] for name in named) == pytest.approx(total, rel=1e-9)


def test_the_whole_is_its_compute_and_what_is_exposed(pair):
    """And no shorter than the longest of its phases."""
    ours = trace_comparison.predicted(pair)
    assert ours["span"] == pytest.approx(ours["compute busy"] + ours["exposed communication"], rel=1e-9)
    assert ours["span"] > max(ours[name] for name in COMPUTE)


def test_classes_sum_to_the_phases(pair, tmp_path):
    """On the predicted side, phase by phase."""
    found = trace_comparison.class_lines(trace_table.trace_file.read(profile(tmp_path / "t.json", KERNELS)), pair)
    ours = trace_comparison.predicted(pair)
    for phase in COMPUTE:
        assert sum(line.predicted_s for name, line in found if name == phase) == pytest.approx(ours[phase], rel=1e-9)


def test_a_profile_has_the_names_of_the_prediction(pair, tmp_path):
    """Seconds of each, and the error where both sides have one."""
    found = trace_table.trace_file.read(profile(tmp_path / "t.json", KERNELS))
    seconds = trace_comparison.traced(found)
    assert seconds["attn(B)"] == pytest.approx(30 * US)
    assert seconds["dispatch"] == seconds["combine"] == pytest.approx(40 * US)
    assert seconds["exposed communication"] == pytest.approx(10 * US)
    assert seconds["span"] == pytest.approx(100 * US)
    assert set(seconds) - set(trace_comparison.predicted(pair)) == {"notify"}
    lines = {line.name: line for line in trace_comparison.lines(found, pair)}
    assert lines["notify"].error is None
    assert lines["span"].error == pytest.approx(pair.pair_s / (100 * US) - 1.0)


def test_the_traced_pieces_played_in_order_take_the_traced_span(tmp_path):
    """Where nothing else waits: the made-up layer, whose messages and compute follow the schedule."""
    found = trace_table.trace_file.read(profile(tmp_path / "t.json", KERNELS))
    assert trace_comparison.replayed_s(found) == pytest.approx(100 * US)


def test_a_layer_that_was_cut_off_is_no_layer(run, tmp_path):
    """One more range of one name: the pieces cannot be paired; the rest is still told."""
    more = json.loads(profile(tmp_path / "t.json", KERNELS).read_text(encoding="utf-8"))
    more["traceEvents"].append({"ph": "X", "cat": "user_annotation", "name": "mlp(F)", "tid": 1, "ts": 90, "dur": 1})
    (tmp_path / "t.json").write_text(json.dumps(more), encoding="utf-8")
    code, out, _ = run(tmp_path / "t.json")
    assert code == 0
    assert "predicted" not in out
    code, out, err = run(tmp_path / "t.json", "--scenario", trace_table.CHUNK_PAIR)
    assert (code, out) == (2, "")
    assert "mlp(F) 2" in err


def test_a_profile_of_something_else_is_read_but_not_compared(run, tmp_path):
    """No range of a chunk pair, no comparison; asked for one, it says which ranges there are."""
    path = profile(tmp_path / "t.json", {"decode": ("gemm", 7, 0, 10)})
    code, out, err = run(path)
    assert (code, err) == (0, "")
    assert "decode" in out
    assert "predicted" not in out
    code, out, err = run(path, "--scenario", trace_table.CHUNK_PAIR)
    assert (code, out) == (2, "")
    assert "attn(F) 0" in err


def test_the_command_prints_what_json_says(run, tmp_path):
    """The same numbers, and the same bytes every time."""
    path = profile(tmp_path / "t.json", KERNELS)
    code, out, _ = run(path)
    assert code == 0
    assert "attn(W)" in out
    first, second = run(path, "--json"), run(path, "--json")
    assert first == second
    found = json.loads(first[1])
    assert found["times"]["span_s"] == pytest.approx(100 * US)
    assert {line["name"] for line in found["compared"]} >= set(COMPUTE)
    assert {row["name"] for row in found["phases"]} == set(RANGES)


@pytest.mark.parametrize(
    "words, said",
    [
        (("no.json",), "cannot be read"),
        (("t.json", "--scenario", "deepseek_v3_h800_decod"), "deepseek_v3_h800_decode"),
        (("t.json", "--scenario", "deepseek_v3_h800_decode"), "no chunk pair"),
        (("t.json", "--scenario", "deepseek_coder_v2_h800_training"), "no chunk pair"),
    ],
)  # fmt: skip
def test_mistakes_end_in_a_message(run, tmp_path, monkeypatch, words, said):
    """Exit 2, with a remedy."""
    monkeypatch.chdir(tmp_path)
    profile(tmp_path / "t.json", KERNELS)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err


def test_a_pair_needs_the_schedule_that_overlaps(pair):
    """Another schedule has chunks but no pairs."""
    with pytest.raises(InputError, match="dualpipe"):
        trace_comparison.chunk_pair(answer.question("deepseek_v3_h800_training", ["plan.schedule=1f1b"]).scenario)


@pytest.fixture(scope="module")
def dualpipe():
    """The published trace, where a copy of it lies in a shared folder beside the repository."""
    path = SHARED / "traces" / "deepseek_v3_train_h800.json.gz"
    if not path.exists():
        pytest.skip(f"no published trace: {path.name} is absent from a shared folder beside the repository")
    return trace_table.trace_file.read(path)


def test_the_published_trace_beside_the_shipped_scenario(dualpipe, pair):
    """Phases of compute within 15%, the whole within 10%; no fit has seen the trace."""
    lines = {line.name: line for line in trace_comparison.lines(dualpipe, pair)}
    for name in COMPUTE:
        assert abs(lines[name].error) < 0.15, name
    assert abs(lines["span"].error) < 0.10
    assert trace_comparison.replayed_s(dualpipe) == pytest.approx(lines["span"].traced_s, rel=0.03)


def test_operators_are_as_many_as_kernels_of_the_published_trace(dualpipe, pair):
    """In every phase: casts, with and without a transpose, SwiGLU, products; weight gradients of attention.

    The one product more in attn(B) is the router's weight gradient, which the trace runs there.
    """
    found = {(phase, line.name): line for phase, line in trace_comparison.class_lines(dualpipe, pair)}
    exact = ("cast", "cast and transpose", "SwiGLU", "SwiGLU backward", "product", "attention")
    for (phase, name), line in found.items():
        if name in exact and phase != "attn(W)":
            more = 4 if (phase, name) == ("attn(B)", "product") else 0
            assert line.n_operators + more == line.n_kernels, (phase, name)
    assert found["attn(W)", "weight gradient product"].n_operators == 20
