"""The loop of an inference engine that is measured, and the rates fitted to it."""

import random

import numpy as np
import pytest

from sextant.hwmodels import device, own_fits
from sextant.simulator.errors import InputError
from sextant.simulator.serving import host_work_s
from sextant.validate import fit
from sextant.validate.fit_engine import fit_engine

ROWS = [{"work": "decode_loop", "n": f"{n}", "us": f"{300 + 4 * n}"} for n in (1, 8, 64, 512)]


def test_an_iteration_appends_a_token_to_every_request():
    torch = pytest.importorskip("torch")
    from sextant.validate import engine_loop

    random.seed(1)
    engine = engine_loop.Engine(torch.device("cpu"))
    engine.admit(5)
    before = [len(request) for request in engine.running]
    last = [request.tokens[-1] for request in engine.running]
    engine.iterate()
    assert [len(request) for request in engine.running] == [n + 1 for n in before]
    # The model adds a token's position to its number.
    assert [request.tokens[-1] for request in engine.running] == [t + n - 1 for t, n in zip(last, before, strict=True)]
    assert all(len(request.blocks) == -(-n // 256) for request, n in zip(engine.running, before, strict=True))
    engine.prefill(512)


def test_rows_are_hashed_per_order_and_head_and_samples_follow_the_logits():
    torch = pytest.importorskip("torch")
    from sextant.validate import engine_loop

    engine = engine_loop.Engine(torch.device("cpu"))
    engine.admit(3)
    rows = engine_loop.hashed(engine, [3, 5, 7], 1000)
    assert rows.shape == (3, 16) and int(rows.min()) >= 0 and int(rows.max()) < 1016
    logits = torch.full((4, 50), -30.0)
    logits[torch.arange(4), torch.arange(4)] = 30.0
    assert engine_loop.sample(logits, torch.ones(4)).tolist() == [0, 1, 2, 3]
    assert engine_loop.layer(torch.device("cpu"), 4)().shape == (4, 320)


def test_a_line_is_found_and_the_second_run_is_held_out():
    found = {each.name: each for each in fit_engine([*ROWS, *ROWS], device("h100"))}["engine_decode"]
    assert found.fit.coefficients == pytest.approx({"step_s": 3e-4, "unit_s": 4e-6}, rel=1e-3)
    assert found.held_out.n_rows == 4 and found.held_out.mape < 1e-3
    assert np.allclose(host_work_s(found.fit, np.array([0.0, 100.0])), [3e-4, 7e-4], rtol=1e-3)
    with pytest.raises(InputError, match="held out"):
        fit_engine(ROWS, device("h100"))
    with pytest.raises(InputError, match="no rows of an engine"):
        fit_engine([], device("h100"))


def test_the_shipped_rates_are_those_of_the_shipped_rows():
    from pathlib import Path

    folder = Path(fit.__file__).parent / "data" / "measured"
    rows = [row for i in (0, 1) for row in fit.read_rows(folder / f"h100_engine_loop_{i}.csv")]
    rows += [row for i in (0, 1) for row in fit.read_rows(folder / f"h100_engine_text_{i}.csv")]
    for block in fit_engine(rows, device("h100")):
        assert block.fit.coefficients == pytest.approx(own_fits("h100")[block.name].coefficients, rel=1e-3)


def test_text_is_that_of_the_tokens_and_takes_longer_for_more():
    pytest.importorskip("transformers")
    from sextant.validate import engine_text

    made = engine_text.tokenizer(2_000)
    assert len(made) == 2_000
    vocabulary = made.get_vocab()
    assert made.decode([vocabulary["a"], vocabulary["\u0120"], vocabulary["b"]]) == "a b"
    rows = engine_text.measured(made, 0.05, (16, 1024))
    assert [(row["work"], row["n"]) for row in rows] == [("detokenise", 16), ("detokenise", 1024)]
    assert float(str(rows[0]["us_p10"])) < float(str(rows[1]["us_p10"]))
