"""Tiny models of an allocation curve: equal sizes, layers that compute what they say, training that goes on."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sextant.validate.allocation import corpus, run, synthetic, train  # noqa: E402
from sextant.validate.allocation.experts import Experts, grouped  # noqa: E402
from sextant.validate.allocation.layers import Attention  # noqa: E402
from sextant.validate.allocation.memory import Memory, row_numbers  # noqa: E402
from sextant.validate.allocation.network import Network  # noqa: E402
from sextant.validate.allocation.sizes import BUDGETS, sizes  # noqa: E402

CPU = torch.device("cpu")
PLAIN = train.compute(CPU)
RHOS = (1.0, 0.75, 0.5, 0.25, 0.0)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("budget", [BUDGETS["small"], BUDGETS["large"]], ids=lambda b: b.name)
def test_models_of_a_budget_are_equal(budget):
    """Parameters within 0.1%, FLOPs per token within 0.15%; rho within half an expert of the share asked for."""
    found = [sizes(budget, rho, 4096) for rho in RHOS]
    whole = found[0]
    assert 8.0 < whole.n_parameters / whole.n_activated_parameters < 12.0
    for rho, of in zip(RHOS, found, strict=True):
        assert 0.999 < of.n_parameters / whole.n_parameters <= 1.0
        assert of.flops_per_token == pytest.approx(whole.flops_per_token, rel=1.5e-3)
        assert abs(of.rho - rho) < 0.6 / (budget.n_routed_experts - budget.num_experts_per_tok)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_network_has_the_parameters_that_are_counted(name, rho):
    """torch's own count is the vocabulary and P_tot; what no token uses is split by rho, as published (s3.1, eq. 7)."""
    of = sizes(BUDGETS[name], rho, 512)
    net = Network(of, 16, PLAIN)
    m = of.model
    assert sum(p.numel() for p in net.parameters()) == of.n_parameters + m.vocab_size * m.hidden_size
    tables = sum(p.numel() for n, p in net.named_parameters() if n.endswith("table"))
    assert tables == of.n_table_parameters
    unread = tables - len(m.engram_layers) * m.engram_dim if tables else 0.0
    sparse = of.n_parameters - of.n_activated_parameters
    assert unread == pytest.approx((1.0 - of.rho) * sparse, abs=1.0)


def test_what_a_budget_cannot_hold_is_refused():
    """A share beyond one; tables without rows; a dense layer too narrow to pay for Engram's products."""
    tiny = BUDGETS["tiny"]
    for budget, rho, said in (
        (tiny, 1.5, "0 to 1"),
        (replace(tiny, moe_intermediate_size=1, n_routed_experts=3, engram_heads=16), 0.0, "rows are left"),
        (replace(tiny, intermediate_size=8), 0.5, "widen it"),
    ):
        with pytest.raises(ValueError, match=said):
            sizes(budget, rho, 512)


def test_rows_are_those_of_plain_integers():
    """Multiply, xor, modulo: one row per table, that of the last two or three tokens alone."""
    primes, factors = torch.tensor([7, 11, 13, 17]), torch.tensor([5, 2**43 + 1, 2**42 + 3])
    starts = primes.cumsum(0) - primes
    tokens = torch.randint(0, 4096, (2, 9), generator=torch.Generator().manual_seed(0))
    found = row_numbers(tokens, factors, primes, starts, (2, 3))
    for b, row in enumerate(tokens.tolist()):
        for t in range(9):
            last = [row[t - i] if t >= i else 0 for i in range(3)]
            pair = last[0] * int(factors[0]) ^ last[1] * int(factors[1])
            mixed = (pair, pair, pair ^ last[2] * int(factors[2]), pair ^ last[2] * int(factors[2]))
            expected = [m % p + s for m, p, s in zip(mixed, primes.tolist(), starts.tolist(), strict=True)]
            assert found[b, t].tolist() == expected


def test_no_layer_sees_later_tokens():
    """Another sixth token changes no output of the first five."""
    torch.manual_seed(0)
    memory = Memory(16, 8, (11, 13), (2, 3), 4, 2, PLAIN)
    attention = Attention(16, 2, 8, 2, PLAIN)
    torch.nn.init.normal_(memory.taps)
    x, tokens = torch.randn(1, 8, 16), torch.arange(8)[None]
    other_x, other = x.clone(), tokens.clone()
    other_x[:, 5], other[:, 5] = 9.0, 77
    angles = torch.rand(8, 4)
    for layer, args, others in ((memory, (x, tokens), (other_x, other)), (attention, (x, angles), (other_x, angles))):
        a, b = layer(*args), layer(*others)
        assert torch.equal(a[:, :5], b[:, :5]) and not torch.allclose(a[:, 5:], b[:, 5:])


def test_experts_are_a_weighted_sum_and_so_is_their_gradient():
    """Against every expert computed for every token, the unchosen at weight zero."""
    torch.manual_seed(0)
    layer = Experts(16, 8, 5, 2, 2, PLAIN)
    x = torch.randn(12, 16, requires_grad=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    scores = torch.sigmoid(x @ layer.router.t())
    chosen = torch.topk(scores + layer.bias, 2).indices
    weights = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
    weights = weights / weights.sum(1, keepdim=True)
    gate, up = torch.einsum("th,ehf->etf", x, layer.up).chunk(2, dim=-1)
    every = torch.einsum("etf,efh->teh", torch.nn.functional.silu(gate) * up, layer.down)
    expected = (every * weights[..., None]).sum(1) + layer.shared(x)
    found = layer(x)
    assert torch.allclose(found, expected, atol=1e-5)
    wanted = torch.autograd.grad(expected.square().sum(), [x, layer.up, layer.router], retain_graph=True)
    for a, b in zip(torch.autograd.grad(found.square().sum(), [x, layer.up, layer.router]), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    counts = torch.bincount(chosen.flatten(), minlength=5)
    assert torch.equal(layer.load, counts.float())
    before = layer.bias.clone()
    layer.balance()
    assert torch.equal(torch.sign(layer.bias - before), torch.sign(counts.float().mean() - counts))


def test_grouped_rows_in_one_kernel_and_one_by_one():
    """The kernel that a GPU runs against a loop; empty groups give no rows."""
    x, w = torch.randn(10, 16).bfloat16(), torch.randn(4, 16, 24).bfloat16()
    ends = torch.tensor([3, 3, 8, 10], dtype=torch.int32)
    one, loop = (grouped(x, w, ends, one_kernel=kernel) for kernel in (True, False))
    assert torch.allclose(one.float(), loop.float(), rtol=0.02, atol=0.05)


def test_the_synthetic_language_keeps_its_word():
    """Sums are right, copies repeat what stood there, facts go on as before; a seed is one language."""
    made = synthetic.synthetic(n_train=40_000, n_held_out=2_000)
    assert torch.equal(made.train, synthetic.synthetic(n_train=40_000, n_held_out=2_000).train)
    tokens = made.train.numpy()
    digit = (tokens >= 2) & (tokens < 2 + synthetic.BASE)
    at = [i for i in np.flatnonzero(tokens[:-5] == 1) if digit[i + 1 : i + 5].all()]
    assert len(at) > 300
    assert all((tokens[i + 1 : i + 4] - 2).sum() % synthetic.BASE == tokens[i + 4] - 2 for i in at)
    n, reach = synthetic.COPIED, synthetic.REACH

    def repeats(i: int) -> bool:
        span = tokens[i + 1 : i + 1 + n]
        return any(np.array_equal(tokens[i - back : i - back + n], span) for back in range(n, reach))

    places = range(reach + n, len(tokens) - n - 1)
    marks = [repeats(i) for i in places if tokens[i] == 0]
    others = [repeats(i) for i in places[::37] if tokens[i] != 0]
    assert len(marks) > 300  # a mark that stands in a copy has its span cut off
    assert np.mean(marks) > 0.7 and np.mean(others) < 0.05


def test_text_is_split_by_files_and_copies_are_left_out(tmp_path: Path):
    """Held-out files are no part of training; a copy under another name is not read; the hash knows every byte."""
    pytest.importorskip("tokenizers")
    package = Path(corpus.__file__).parents[2] / "simulator"
    for path in package.glob("*.py"):
        (tmp_path / f"a_{path.name}").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    files = list(corpus.sources({"packages": tmp_path}))
    found = corpus.python_source({"packages": tmp_path}, vocab_size=300)
    (tmp_path / "z_copy.py").write_text((package / "types.py").read_text(encoding="utf-8"), encoding="utf-8")
    again = corpus.python_source({"packages": tmp_path}, vocab_size=300)
    assert again.about == found.about and torch.equal(again.train, found.train)
    n_held_out = sum(file.held_out for file in files)
    assert f"{len(files) - n_held_out} files to train on, {n_held_out} held out" in found.about["corpus_split"]
    assert int((found.train == 0).sum()) == len(files) - n_held_out
    assert int(found.train.min()) >= 0 and int(found.train.max()) < 300
    (tmp_path / "a_types.py").write_text("something_else = 'entirely'\n", encoding="utf-8")
    other = corpus.python_source({"packages": tmp_path}, vocab_size=300)
    assert other.about["corpus_sha256"] != found.about["corpus_sha256"]


def test_losses_of_counts():
    """Words drawn alike cost log n, and so do pairs; a sequence that repeats costs pairs almost nothing."""
    drawn = torch.randint(0, 16, (400_000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    for train_, held_out, expected in ((drawn[:-9999], drawn[-9999:], np.log(16)), (drawn % 1, drawn[:99] % 1, 0.0)):
        made = corpus.Corpus(name="x", train=train_, held_out=held_out, vocab_size=16, about={})
        assert corpus.entropies(made) == pytest.approx((expected, expected), abs=0.005)


@pytest.fixture(scope="module")
def small_language():
    """A corpus that tiny models can be trained on in seconds."""
    return synthetic.synthetic(n_train=60_000, n_held_out=2_000)


def _run(path: Path, *more: str) -> int:
    return run.main(
        ["--out", str(path), "--corpora", "synthetic", "--budgets", "tiny", "--rhos", "1,0.5", "--device", "cpu", *more]
    )


def _rows(path: Path) -> list[dict[str, str]]:
    rows = run.table(path).read()[1]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_a_small_run_learns_and_is_continued(tmp_path: Path, small_language, monkeypatch, capsys):
    """Both models end below the unigrams' loss; what is there is not trained again; a lost row comes back as it was,
    whether models take turns or not."""
    monkeypatch.setitem(run.CORPORA, "synthetic", lambda: small_language)
    path = tmp_path / "curve.csv"
    assert _run(path, "--seeds", "0", "--lanes", "2") == 0
    rows = _rows(path)
    assert [float(row["rho_asked"]) for row in rows] == [1.0, 0.5]
    for row in rows:
        assert row["error"] == "" and 0.0 < float(row["loss"]) < float(row["unigram_loss"])
        assert float(row["loss_low"]) <= float(row["loss"]) <= float(row["loss_high"])
        assert float(row["n_parameters"]) == pytest.approx(float(rows[0]["n_parameters"]), rel=5e-3)
        assert float(row["flops_per_token"]) == pytest.approx(float(rows[0]["flops_per_token"]), rel=3e-3)
    text = path.read_bytes()
    assert _run(path, "--seeds", "0") == 0
    assert path.read_bytes() == text
    path.write_bytes(b"".join(text.splitlines(keepends=True)[:-1]))
    assert _run(path, "--seeds", "0", "--lanes", "1") == 0
    assert _rows(path) == rows
    header = run.table(path).read()[0]
    assert header["device"] == "cpu" and "seed 1" in header["synthetic_corpus"]
    capsys.readouterr()


def test_a_corpus_that_is_too_short_is_a_row_that_says_so(tmp_path: Path, small_language, monkeypatch, capsys):
    """No text is read twice; the failed row can be tried again."""
    monkeypatch.setitem(run.CORPORA, "synthetic", lambda: small_language)
    path = tmp_path / "curve.csv"
    assert _run(path, "--seeds", "0", "--steps", "500") == 1
    assert all("none is read twice" in row["error"] for row in _rows(path))
    assert _run(path, "--seeds", "0", "--steps", "1", "--retry-failed") == 0
    assert not any(row["error"] for row in _rows(path))
    capsys.readouterr()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--corpora", "books"], "--corpora: one or more of python, synthetic, got books"),
        (["--budgets", ""], "--budgets: one or more of"),
        (["--rhos", "1.2"], "--rhos: shares of experts from 0 to 1"),
        (["--seeds", "a"], "--seeds: numbers separated by commas, got 'a'"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path: Path, capsys, more, said):
    """Exit 2, what is wrong, and nothing written."""
    assert _run(tmp_path / "curve.csv", *more) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_shipped_models_were_equal_and_learned():
    """One P_tot and one FLOP count per budget, losses below what pairs of tokens give, evaluations that agree."""
    path = Path(run.__file__).parents[1] / "data" / "measured" / "h200_allocation.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert len(rows) >= 24 and not any(row["error"] for row in rows)
    for budget in {row["budget"] for row in rows}:
        part = [row for row in rows if row["budget"] == budget]
        for key in ("n_parameters", "flops_per_token", "n_tokens"):
            values = [float(row[key]) for row in part]
            assert max(values) <= 1.002 * min(values), key
        models = {rho: sizes(BUDGETS[budget], rho, 4096) for rho in {float(row["rho_asked"]) for row in part}}
        for row in part:
            of = models[float(row["rho_asked"])]
            assert f"{of.rho:.4f}" == row["rho"] and of.n_parameters == float(row["n_parameters"])
            assert float(row["loss"]) < float(row["bigram_loss"]) < float(row["unigram_loss"])
            assert float(row["loss_high"]) - float(row["loss_low"]) < 1e-3
