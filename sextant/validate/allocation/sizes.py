"""Models of one budget at any share rho: equal parameters, equal FLOPs per token, whole experts, prime tables.

As published (Engram arXiv:2601.07372 s3.1): P_tot counts all parameters but the vocabulary's, P_sparse = P_tot - P_act;
rho P_sparse are experts that a token is not routed to, (1 - rho) P_sparse are rows that it does not read. P_tot is that
of the model at rho = 1, which has no Engram module. What a module's products or a larger router cost is taken from the
leading dense layer's width, so that FLOPs per token stay equal; table rows take what parameters are left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sextant.workloads.ops import engram
from sextant.workloads.parameters import activated_parameters, n_parameters, training_flops_per_token
from sextant.workloads.transformer import Transformer

#: Widths of products are multiples of this, as the tensor cores want.
_WIDTH_STEP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Sizes and training of all models of one curve. ``n_routed_experts`` and ``intermediate_size`` (of the leading
    dense layer) are those at rho = 1; ``learning_rate`` is the highest.

    P_tot is about ten times P_act, as in the paper. Budgets differ in depth and tokens: a layer has one shape, whatever
    the budget and rho, and is compiled once.
    """

    name: str
    num_hidden_layers: int
    engram_layers: tuple[float, ...]
    hidden_size: int = 128
    n_routed_experts: int = 80
    moe_intermediate_size: int = 64
    intermediate_size: int = 512
    engram_dim: int = 128
    engram_heads: int = 4
    num_experts_per_tok: int = 2
    head_dim: int = 32
    n_steps: int = 1000
    batch: int = 64
    seq: int = 512
    learning_rate: float = 3e-3

    @property
    def n_tokens(self) -> int:
        """Tokens that a model of this budget is trained on."""
        return self.n_steps * self.batch * self.seq


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(
            name="tiny", hidden_size=32, num_hidden_layers=2, n_routed_experts=8, moe_intermediate_size=32,
            intermediate_size=160, engram_dim=32, engram_layers=(2.0,), engram_heads=2, head_dim=16, n_steps=60,
            batch=8, seq=64, learning_rate=1e-2,
        ),
        Budget(name="small", num_hidden_layers=4, engram_layers=(2.0, 3.0), n_steps=1000),
        Budget(name="large", num_hidden_layers=8, engram_layers=(2.0, 5.0), n_steps=1500),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """One model: ``primes`` are rows of its tables by layer, order and head; counts leave the vocabulary out; ``rho``
    is what whole experts make of the share asked for; FLOPs are those of a trained token, with the head."""

    model: Transformer
    primes: tuple[int, ...]
    rho: float
    n_parameters: float
    n_activated_parameters: float
    n_table_parameters: float
    flops_per_token: float


def sizes(budget: Budget, rho: float, vocab_size: int) -> Sizes:
    """The model of ``budget`` at ``rho``, the share of sparse parameters that experts hold; ValueError where rho is
    outside 0 to 1, where no rows are left, or where the dense layer cannot pay for Engram's products."""
    if not 0.0 <= rho <= 1.0:
        raise ValueError(f"rho: expected 0 to 1, got {rho:g}")
    full = _model(budget, vocab_size)
    total, used = _n_parameters(full), budget.num_experts_per_tok
    n_experts = used + round(rho * (budget.n_routed_experts - used))
    if n_experts == budget.n_routed_experts:
        return _sized(full, full, (), budget)
    model = replace(full, n_routed_experts=float(n_experts), engram_layers=budget.engram_layers, engram_rows=0.0)
    excess = float(training_flops_per_token(model, budget.seq) - training_flops_per_token(full, budget.seq))
    width_flops = 6.0 * 3.0 * _WIDTH_STEP * budget.hidden_size
    width = budget.intermediate_size - _WIDTH_STEP * round(excess / width_flops)
    if width <= 0:
        raise ValueError(f"rho: Engram costs more than the leading dense layer of budget {budget.name} has; widen it")
    model = replace(model, intermediate_size=float(width))
    row_dim = int(model.engram_dim / engram.n_rows(model))
    model, primes = _tables(model, (total - _n_parameters(model)) / row_dim)
    return _sized(model, full, primes, budget)


def _model(budget: Budget, vocab_size: int) -> Transformer:
    """The model at rho = 1."""
    heads = float(budget.hidden_size // budget.head_dim)
    return Transformer(
        name=f"allocation-{budget.name}", system="Engram", attention="gqa", hidden_size=float(budget.hidden_size),
        num_hidden_layers=float(budget.num_hidden_layers), num_attention_heads=heads, num_key_value_heads=heads,
        head_dim=float(budget.head_dim), vocab_size=float(vocab_size),
        intermediate_size=float(budget.intermediate_size),
        first_k_dense_replace=1.0, moe_intermediate_size=float(budget.moe_intermediate_size), n_shared_experts=1.0,
        n_routed_experts=float(budget.n_routed_experts), num_experts_per_tok=float(budget.num_experts_per_tok),
        topk_method="noaux_tc", tie_word_embeddings=True, qk_norm=True, engram_dim=float(budget.engram_dim),
        engram_heads=float(budget.engram_heads),
    )  # fmt: skip


def _n_parameters(model: Transformer) -> float:
    """Parameters without the vocabulary's; tables of ``engram_rows`` rows."""
    return float(n_parameters(model) - model.vocab_size * model.hidden_size)


def _tables(model: Transformer, n_rows: float) -> tuple[Transformer, tuple[int, ...]]:
    """The model with the largest distinct prime tables that have no more than ``n_rows`` rows together."""
    per_table = n_rows / (len(model.engram_layers) * engram.n_rows(model))
    for rows in range(int(per_table), 1, -1):
        found = replace(model, engram_rows=float(rows))
        primes = engram.prime_rows(found)
        if sum(primes) <= n_rows:
            return found, primes
    raise ValueError(f"rho: {per_table:.1f} rows are left for each table; ask for fewer experts")


def _sized(model: Transformer, full: Transformer, primes: tuple[int, ...], budget: Budget) -> Sizes:
    tables = sum(primes) * model.engram_dim / engram.n_rows(model) if primes else 0.0
    round_tables = len(model.engram_layers) * engram.table_parameters(model)
    total = _n_parameters(model) - round_tables + tables
    activated = activated_parameters(model)
    expert = 3.0 * model.hidden_size * model.moe_intermediate_size
    moe_layers = model.num_hidden_layers - model.first_k_dense_replace
    idle = moe_layers * (model.n_routed_experts - model.num_experts_per_tok) * expert
    return Sizes(
        model=model, primes=primes, rho=float(idle / (total - activated)), n_parameters=float(total),
        n_activated_parameters=float(activated), n_table_parameters=float(tables),
        flops_per_token=float(training_flops_per_token(model, budget.seq)),
    )  # fmt: skip
