"""Measure the loss over the share of experts: ``python -m sextant.validate.allocation.run --out FILE.csv``.

Trains the models of each budget at every rho and seed and writes a row when one is done: the same command continues an
interrupted run. ``--lanes`` models take turns. Progress goes to stderr. Needs torch, numpy, scipy and, for the corpus
``python``, tokenizers; ``--budgets tiny --corpora synthetic`` is for a CPU.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from sextant.validate.allocation import synthetic
from sextant.validate.allocation.corpus import Corpus, entropies, python_source
from sextant.validate.allocation.sizes import BUDGETS, Budget, Sizes, sizes
from sextant.validate.allocation.train import Trained, training
from sextant.validate.measure import Settings, find_target, provenance
from sextant.validate.node.table import Table

CASE_COLUMNS = ("corpus", "budget", "learning_rate", "rho_asked", "seed")
RESULT_COLUMNS = (
    "rho", "n_routed_experts", "rows_per_table", "n_parameters", "n_activated_parameters", "n_table_parameters",
    "flops_per_token", "n_tokens", "loss", "loss_low", "loss_high", "train_loss", "unigram_loss", "bigram_loss",
    "busiest_expert", "seconds",
)  # fmt: skip
CORPORA = {"python": python_source, "synthetic": synthetic.synthetic}
#: The coarse ones first, so that a curve that is cut short is one of fewer points.
RHOS = (1.0, 0.7, 0.4, 0.0, 0.85, 0.55, 0.2, 0.93)


class Case(NamedTuple):
    """One model: what names its row."""

    corpus: str
    budget: str
    rho: float
    seed: int
    learning_rate: float

    def row(self) -> dict[str, str | int | float]:
        """The case as the columns of a table."""
        return {
            "corpus": self.corpus, "budget": self.budget, "learning_rate": f"{self.learning_rate:g}",
            "rho_asked": f"{self.rho:g}", "seed": self.seed,
        }  # fmt: skip


def table(path: Path) -> Table:
    """The file of rows at ``path``."""
    return Table(path=path, case_columns=CASE_COLUMNS, result_columns=RESULT_COLUMNS)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All models, one curve after the other, all seeds of a rho together."""
    for corpus in options.corpora:
        for budget in options.budgets:
            rate = options.learning_rate or BUDGETS[budget].learning_rate
            for rho in options.rhos:
                yield from (Case(corpus, budget, rho, seed, rate) for seed in options.seeds)


def result(of: Sizes, found: Trained, n_tokens: int, baselines: tuple[float, float]) -> dict[str, str]:
    """The result columns of one trained model."""
    return {
        "rho": f"{of.rho:.4f}", "n_routed_experts": f"{of.model.n_routed_experts:.0f}",
        "rows_per_table": f"{of.model.engram_rows:.0f}" if of.primes else "0", "n_parameters": f"{of.n_parameters:.0f}",
        "n_activated_parameters": f"{of.n_activated_parameters:.0f}",
        "n_table_parameters": f"{of.n_table_parameters:.0f}", "flops_per_token": f"{of.flops_per_token:.0f}",
        "n_tokens": str(n_tokens), "loss": f"{found.loss:.5f}", "loss_low": f"{min(found.losses):.5f}",
        "loss_high": f"{max(found.losses):.5f}", "train_loss": f"{found.train_loss:.5f}",
        "unigram_loss": f"{baselines[0]:.4f}", "bigram_loss": f"{baselines[1]:.4f}",
        "busiest_expert": f"{found.busiest:.2f}", "seconds": f"{found.seconds:.2f}",
    }  # fmt: skip


class Lane:
    """One model in training, on a stream of its own."""

    def __init__(
        self, case: Case, corpus: Corpus, baselines: tuple[float, float], steps: int, device: torch.device
    ) -> None:
        self.case = case
        budget = replace(BUDGETS[case.budget], learning_rate=case.learning_rate)
        budget = replace(budget, n_steps=steps) if steps else budget
        # A backward pass runs on its forward pass's stream, and only a side stream can be captured.
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        self.turns = self._turns(budget, corpus, baselines, device)

    def _turns(
        self, budget: Budget, corpus: Corpus, baselines: tuple[float, float], device: torch.device
    ) -> Iterator[dict[str, str] | None]:
        of = sizes(budget, self.case.rho, corpus.vocab_size)
        for found in training(of, budget, corpus, self.case.seed, device):
            yield None if found is None else result(of, found, budget.n_tokens, baselines)

    def turn(self) -> dict[str, str] | None:
        """Go one step further; the result columns when the model is done, an error when it failed, else None."""
        with torch.cuda.stream(self.stream):
            try:
                return next(self.turns)
            except Exception as error:  # whatever a kernel, a library or a compiler raises is this case's result
                return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}


def measure(options: argparse.Namespace, header: Mapping[str, str], device: torch.device) -> int:
    """Train what is not in the file yet, ``lanes`` models at a time; how many failed."""
    rows, begun_s, failed = table(options.out), time.monotonic(), 0
    texts = {name: CORPORA[name]().to(device) for name in options.corpora}
    about = {f"{name}_{key}": value for name, text in texts.items() for key, value in text.about.items()}
    done = rows.start({**header, **about}, retry=options.retry_failed)
    baselines = {name: entropies(text) for name, text in texts.items()}
    for name, text in texts.items():
        _say(f"{name}: {len(text.train)} tokens, {len(text.held_out)} held out; losses of unigrams and bigrams "
             f"{baselines[name][0]:.3f}, {baselines[name][1]:.3f}")  # fmt: skip
    left = [case for case in cases(options) if rows.key(case.row()) not in done]
    lanes: list[Lane] = []
    while left or lanes:
        if left and time.monotonic() - begun_s > options.max_seconds:
            _say(f"no time is left for {len(left)} models; the same command goes on")
            left = []
        while left and len(lanes) < options.lanes:
            case = left.pop(0)
            lanes.append(Lane(case, texts[case.corpus], baselines[case.corpus], options.steps, device))
        for lane in list(lanes):
            found = lane.turn()
            if found is not None:
                lanes.remove(lane)
                failed += "error" in found
                rows.append({**lane.case.row(), **found})
                said = found.get("error") or f"loss {found['loss']}, {found['seconds']} s"
                _say(f"[{time.monotonic() - begun_s:.0f} s] {' '.join(str(x) for x in lane.case)}: {said}")
                del lane
                gc.collect()
    return failed


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _names(text: str, known: Mapping[str, object], option: str) -> tuple[str, ...]:
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in found if name not in known]
    if unknown or not found:
        raise ValueError(f"{option}: one or more of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
    return found


def _numbers(text: str, kind: type, option: str) -> tuple:
    try:
        return tuple(kind(x) for x in text.split(","))
    except ValueError:
        raise ValueError(f"{option}: numbers separated by commas, got {text!r}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sextant measure allocation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="CSV to write or to continue")
    parser.add_argument("--corpora", default="python", help=f"of {', '.join(CORPORA)}, comma-separated")
    parser.add_argument("--budgets", default="small", help=f"of {', '.join(BUDGETS)}, comma-separated")
    parser.add_argument("--rhos", default=",".join(f"{rho:g}" for rho in RHOS), help="shares of experts, 0 to 1")
    parser.add_argument("--steps", type=int, default=0, help="of every model, in place of its budget's")
    parser.add_argument("--learning-rate", type=float, default=0.0, help="the highest, in place of the budget's")
    parser.add_argument("--lanes", type=int, default=1, help="models that are trained at the same time")
    parser.add_argument("--seeds", default="0,1", help="integers, comma-separated")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--max-seconds", type=float, default=float("inf"), help="start no model after this long")
    parser.add_argument("--retry-failed", action="store_true", help="train the file's failed models again")
    parser.add_argument("--note", default="", help="a line for the header")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit 0 when every model was trained or is left for later, 1 when one failed, 2 for bad input."""
    options = _parser().parse_args(list(sys.argv[1:] if arguments is None else arguments))
    try:
        options.corpora = _names(options.corpora, CORPORA, "--corpora")
        options.budgets = _names(options.budgets, BUDGETS, "--budgets")
        options.rhos, options.seeds = _numbers(options.rhos, float, "--rhos"), _numbers(options.seeds, int, "--seeds")
        if not all(0.0 <= rho <= 1.0 for rho in options.rhos):
            raise ValueError(f"--rhos: shares of experts from 0 to 1, got {', '.join(f'{r:g}' for r in options.rhos)}")
        target = find_target(options.device)
        header = provenance(target, cases="", settings=Settings(), note=options.note)
        del header["timing"], header["traffic"]
        header["command"] = (
            f"python -m sextant.validate.allocation.run --corpora {','.join(options.corpora)} --budgets "
            f"{','.join(options.budgets)} --rhos {','.join(f'{rho:g}' for rho in options.rhos)} --seeds "
            f"{','.join(map(str, options.seeds))}"
            + (f" --steps {options.steps}" if options.steps else "")
            + f" --lanes {options.lanes}"
            + (f" --learning-rate {options.learning_rate:g}" if options.learning_rate else "")
        )
        header["losses"] = "nats per held-out token; mean, lowest and highest of three evaluations at the end"
        return 1 if measure(options, header, target.device) else 0
    except (ValueError, OSError) as error:
        _say(f"error: {error}")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
