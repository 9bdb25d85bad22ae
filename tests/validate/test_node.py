"""Several processes that measure together: what they move is right, and nothing that fails or hangs stops the rest."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

from sextant.validate.node import collectives, experts, judged, layer, run, work  # noqa: E402
from sextant.validate.node.layer_cases import SMALL, products  # noqa: E402
from sextant.validate.node.table import Table  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform == "win32", reason="processes are started with POSIX sockets")
def test_two_processes_measure_every_family(tmp_path: Path):
    """gloo on the CPU: all results are checked by the processes themselves, and a second run measures nothing anew."""
    command = [sys.executable, "-W", "ignore", "-m", "sextant.validate.node.run", "--gpus", "2", "--out", str(tmp_path)]
    command += ["--device", "cpu", "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    texts = {}
    for name in work.FAMILIES:
        header, rows = work.table(name, tmp_path).read()
        assert header["device"] == "2 x cpu" and "--small" in header["command"]
        assert len(rows) == len(work.family(name).cases(2, True))
        for row in rows:
            assert row["error"] == "", row
            times = [float(value) for key, value in row.items() if key.endswith("us") and " " not in value]
            assert times and all(value > 0.0 for value in times)
        texts[name] = (tmp_path / f"{name}.csv").read_bytes()
    found = judged.judged(tmp_path, "h100")
    assert {row.family for row in found} == set(work.FAMILIES)
    for row in found:  # of NCCL's own choice of thread blocks nothing is known
        assert (row.errors is None) == row.kind.endswith("from its time alone"), row
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert texts == {name: (tmp_path / f"{name}.csv").read_bytes() for name in work.FAMILIES}


@pytest.mark.parametrize("name", work.FAMILIES)
@pytest.mark.parametrize("n_gpus", [2, 4, 8])
def test_cases_have_their_columns_and_are_distinct(name, n_gpus):
    """A row's key are its case columns: two cases with one key would be measured once."""
    module = work.family(name)
    cases = module.cases(n_gpus, False)
    table = Table(path=Path("x"), case_columns=module.CASE_COLUMNS, result_columns=module.RESULT_COLUMNS)
    assert len({table.key(case) for case in cases}) == len(cases) > 0
    assert all(set(case) <= set(module.CASE_COLUMNS) for case in cases)
    assert len(set(table.columns)) == len(table.columns)


def test_the_harness_needs_little():
    """On a machine with a GPU there are torch, triton, numpy, scipy and yaml, and nothing else of ours."""
    names = [f"sextant.validate.node.{name}" for name in ("run", *work.FAMILIES)]
    absent = ("simpy", "networkx", "pydantic", "typer", "rich", "matplotlib")
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; "
    code += f"print([m for m in {absent} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("size", [2, 3, 8])
def test_uneven_parts_add_up(size):
    """Parts of a power law cover the message, fall with the rank, and make rank 0 the busiest receiver."""
    n = 8 * size * 1000
    found = collectives.parts(n, size, "power_law_1.2")
    assert sum(found) == n and found == sorted(found, reverse=True) and min(found) > 0
    sent_away = [n - found[rank] for rank in range(size)]
    received = [(size - 1) * found[rank] for rank in range(size)]
    assert collectives.busiest("all_to_all", "power_law_1.2", n, size) == max(*sent_away, *received)
    assert collectives.busiest("all_to_all", "", n, size) == n * (size - 1) // size


@pytest.mark.parametrize("copies", ["gpu", "pair"])
@pytest.mark.parametrize("routing", ["balanced", "power_law_1.2"])
def test_every_token_reaches_its_experts(copies, routing):
    """Rows are sorted by rank; with one copy per GPU a token goes once to each rank that has one of its experts."""
    torch.manual_seed(1)
    n_experts, n_ranks, top_k = 32, 4, 3
    ids = experts.routed(50, n_experts, top_k, routing, CPU)
    assert all(len(set(row.tolist())) == top_k for row in ids)
    order = experts.ordered(ids, n_experts, n_ranks, copies)
    to = (ids // (n_experts // n_ranks)).tolist()
    wanted = [[rank for row in to for rank in (row if copies == "pair" else set(row))].count(r) for r in range(n_ranks)]
    assert order.counts.tolist() == wanted
    rank_of_row = torch.repeat_interleave(torch.arange(n_ranks), order.counts).tolist()
    for token, row in enumerate(to):
        mine = sorted(rank_of_row[i] for i in range(len(order.token)) if order.token[i] == token)
        assert mine == sorted(row if copies == "pair" else set(row))
    x = torch.randn(50, 8).to(torch.bfloat16)
    target = run.measure.find_target("cpu")
    summed = experts.added(x[order.token], order.place.to(torch.int32), order.weight, target)
    assert torch.allclose(summed.float(), x.float(), atol=2e-2, rtol=2e-2)
    assert order.place.is_contiguous() and order.token.is_contiguous() and order.weight.is_contiguous()


def test_popular_experts_lie_on_the_first_rank():
    """The power law is what makes parts uneven."""
    torch.manual_seed(1)
    shares = {}
    for routing in ("balanced", "power_law_1.2"):
        ids = experts.routed(2000, 256, 8, routing, CPU)
        shares[routing] = float((ids < 128).float().mean())
    assert abs(shares["balanced"] - 0.5) < 0.02 and shares["power_law_1.2"] > 0.7


def test_a_layer_adds_its_experts_in_the_order_of_the_tokens():
    """The permutation to experts and back is that of a loop over pairs."""
    torch.manual_seed(1)
    made = layer.Layer(SMALL, 12, CPU)
    y = torch.randn(12, SMALL.hidden).to(torch.bfloat16)
    expected = torch.zeros(12, SMALL.hidden)
    ends = [0, *made.ends.tolist()]
    for expert in range(SMALL.n_experts):
        for pair in made.order[ends[expert] : ends[expert + 1]].tolist():
            token = pair // SMALL.pairs
            gate, up = (made.experts_up[expert].float() @ y[token].float()).chunk(2)
            inner = torch.nn.functional.silu(gate) * up
            expected[token] += (made.experts_down[expert].float() @ inner).detach()
    found = made._experts(y).detach().float()
    assert float((found - expected).norm() / expected.norm()) < 2e-2


def test_a_layer_has_the_products_that_its_cases_say():
    """Every dense matrix of the layer is a product of the list, and nothing else is."""
    made = layer.Layer(SMALL, 12, CPU)
    matrices = sorted(tuple(p.shape) for p in made.parameters() if p.ndim == 2)
    assert matrices == sorted(products(SMALL))


def test_gradients_of_spread_rows_are_those_of_plain_indexing():
    """The two permutations are each other's transposes: autograd's own gradients of indexing agree."""
    torch.manual_seed(1)
    made = layer.Layer(SMALL, 12, CPU)
    y = torch.randn(12, SMALL.hidden).to(torch.bfloat16).requires_grad_(True)
    dy = torch.randn(12, SMALL.hidden).to(torch.bfloat16)
    (found,) = torch.autograd.grad(made._experts(y), y, dy)
    inner = layer._activated(made._product(y[made.order // SMALL.pairs], made.experts_up))
    out = made._product(inner, made.experts_down)[made.place].view(12, SMALL.pairs, -1).sum(1)
    (expected,) = torch.autograd.grad(out, y, dy)
    assert float((found.float() - expected.float()).norm() / expected.float().norm()) < 1e-2


def _options(tmp_path: Path, **changed) -> Namespace:
    plain = {"gpus": 2, "out": tmp_path, "families": ("beside", "pipeline"), "small": True, "no_graphs": False,
             "retry_failed": False, "max_seconds": 60.0, "case_seconds": 0.5}  # fmt: skip
    return Namespace(**plain | changed)


def _troubled(rank: int, job: work.Job) -> None:
    """Stands for a process: the first case of beside hangs, that of pipeline kills it, and everything else is fine.

    Rank 0 alone does anything: were another rank to end first, none would have said which case it was in."""
    if rank > 0:
        os._exit(0)
    for name in job.families:
        rows = work.table(name, job.folder)
        for i, case in enumerate(work.family(name).cases(job.n_gpus, True)):
            if rows.key(case) in job.done[name]:
                continue
            fresh = job.state.with_suffix(".new")
            fresh.write_text(json.dumps({"family": name, "case": case, "graphs": job.graphs}))
            fresh.replace(job.state)
            if i == 0 and name == "beside":
                time.sleep(60)
            if i == 0:
                time.sleep(0.2)
                os._exit(7)
            rows.append(case)
    os._exit(0)


def test_cases_that_hang_or_kill_are_rows_and_the_rest_is_measured(tmp_path: Path, monkeypatch, capsys):
    """The parent ends silent or dying processes, writes why, and new ones go on with the next case."""
    monkeypatch.setattr(work, "process", _troubled)
    header = {"device": "2 x cpu"}
    assert run.measure_all(_options(tmp_path), header, cuda=False) == 2
    errors = {name: [row["error"] for row in work.table(name, tmp_path).read()[1]] for name in ("beside", "pipeline")}
    assert errors["beside"] == ["TimeoutError: nothing heard for 0.5 s", ""]
    assert errors["pipeline"] == ["a process ended with exit status 7", ""]
    assert "going on in new processes" in capsys.readouterr().err


def test_a_file_of_another_device_or_version_is_refused(tmp_path: Path):
    """One file is one machine; failed rows can be tried again."""
    table = Table(path=tmp_path / "x.csv", case_columns=("a",), result_columns=("us",))
    assert table.start({"device": "one"}, retry=False) == set()
    table.append({"a": 1, "us": 2.0})
    table.append({"a": 2, "error": "no"})
    assert table.start({"device": "one"}, retry=False) == {("1",), ("2",)}
    assert table.start({"device": "one"}, retry=True) == {("1",)}
    with pytest.raises(ValueError, match="another folder"):
        table.start({"device": "two"}, retry=False)
    with pytest.raises(ValueError, match="columns are not those"):
        Table(path=table.path, case_columns=("b",), result_columns=("us",)).read()


def test_options_that_cannot_be_had(tmp_path: Path, capsys):
    """Bad input ends in one message with a remedy."""
    assert run.main(["--gpus", "1", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "--gpus: from 2" in capsys.readouterr().err
    assert run.main(["--gpus", "2", "--out", str(tmp_path), "--families", "weather"]) == 2
    assert "collectives, experts" in capsys.readouterr().err
