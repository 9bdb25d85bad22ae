"""Which rows of Engram's tables a batch moves, and from where: each lookup, or each different row once; what a cache in
HBM has; what one in the host's memory has of tables on drives.

Every order and head has a table of its own, and a token looks up one row of each: under one law of ``zipf_exponent``
all tables are alike, and all caches are shared evenly between them. Two n-grams in one row make it more popular, not
the law: the exponent is that of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sextant.simulator import cache, zipf
from sextant.simulator.kernels import BYTES
from sextant.simulator.types import Load, Num, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How rows are asked for; by default every lookup is a row of its own, and nothing is cached."""

    exponent: Num = 0.0
    deduplicate: bool = False
    cache_bytes: Num = 0.0
    host_cache_bytes: Num = 0.0
    policy: str = "lru"

    @property
    def plain(self) -> bool:
        """Whether every lookup is fetched from where the tables lie."""
        return not self.deduplicate and not np.any(np.asarray(self.cache_bytes) > 0)


EVERY = Access()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Of the rows that each table is asked for by a batch: ``hit_rate`` of lookups that the cache in HBM answers,
    ``host_hit_rate`` that the host's cache answers behind it, and ``fetched``, the rows fetched per lookup, by tier."""

    hit_rate: Num = 0.0
    host_hit_rate: Num = 0.0
    fetched: dict[str, Num] = field(default_factory=dict)


def access(plan: Plan, load: Load) -> Access:
    """What a plan, and a load's law, say about rows."""
    return Access(
        exponent=load.zipf_exponent, deduplicate=plan.deduplicate, cache_bytes=plan.cache_bytes,
        host_cache_bytes=plan.host_cache_bytes, policy=plan.cache_policy,
    )  # fmt: skip


def cached_rows(model, cache_bytes: Num) -> Num:
    """Rows per table that ``cache_bytes`` hold, of all tables of all Engram layers alike."""
    return cache_bytes / (len(model.engram_layers) * BYTES["bf16"] * model.engram_dim)


def moved_rows(model, given: Access, n_tokens: Num, tier: str) -> Moved:
    """The rows of one table that ``n_tokens`` lookups at once move, if the tables lie in ``tier``."""
    on_host = tier == "nvme" and bool(np.any(np.asarray(given.host_cache_bytes) > 0))
    if given.plain and not on_host:
        return Moved(fetched={tier: 1.0})
    law = zipf.rows(model.engram_rows, given.exponent)
    near = cached_rows(model, given.cache_bytes) if tier != "hbm" else 0.0
    below = cached_rows(model, given.host_cache_bytes) if on_host else 0.0
    near_hits, host_hits, _ = cache.tiers(law, [near, below], given.policy)

    def past(size: Num) -> Num:
        return cache.fetched(law, n_tokens, size, given.policy, deduplicated=given.deduplicate) / n_tokens

    fetched = {tier: past(near)}
    if on_host:
        far = past(np.maximum(near, below))
        fetched = {"host": fetched[tier] - far, tier: far}
    return Moved(hit_rate=near_hits, host_hit_rate=host_hits, fetched=fetched)


def distinct_share(model, exponent: Num, n_tokens: Num) -> Num:
    """Different rows of a table among ``n_tokens`` lookups, over their number."""
    return zipf.distinct_share(zipf.rows(model.engram_rows, exponent), n_tokens)


def touched_share(model, exponent: Num, n_tokens: Num) -> Num:
    """The share of a table's rows that ``n_tokens`` lookups touch."""
    return zipf.distinct(zipf.rows(model.engram_rows, exponent), n_tokens) / model.engram_rows
