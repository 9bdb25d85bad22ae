"""Max-min fair rates: no link above its capacity, no flow that could go faster, and times that follow from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sextant.simulator.contention import Uses, completion_s, link_rates, max_min_rates
from sextant.simulator.errors import InputError


def uses(paths: list[list[int]], bytes_per_s: list[float], shares: list[list[float]] | None = None) -> Uses:
    counts = [len(path) for path in paths]
    weights = [1.0] * sum(counts) if shares is None else [x for each in shares for x in each]
    return Uses(
        flow=np.repeat(np.arange(len(paths)), counts), link=np.array([x for path in paths for x in path], dtype=int),
        share=np.array(weights), bytes_per_s=np.array(bytes_per_s), n_flows=len(paths),
    )  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> Uses:
    n_links = draw(st.integers(1, 6))
    capacity = draw(st.lists(st.floats(0.1, 100.0), min_size=n_links, max_size=n_links))
    paths = draw(st.lists(
        st.lists(st.integers(0, n_links - 1), min_size=1, max_size=n_links, unique=True), min_size=1, max_size=8,
    ))  # fmt: skip
    return uses(paths, capacity, [[draw(st.floats(0.1, 1.0)) for _ in path] for path in paths])


@given(cases())
def test_no_link_carries_more_than_it_can_and_every_flow_has_a_bottleneck(case: Uses) -> None:
    """A bottleneck is a full link on which no flow is faster: that, for every flow, is what max-min fair means, and
    nothing that could carry a flow faster is left idle."""
    rates = max_min_rates(case)
    load = link_rates(case, rates)
    assert (load <= case.bytes_per_s * (1 + 1e-9)).all() and (rates > 0).all()
    full = load >= case.bytes_per_s * (1 - 1e-6)
    for flow in range(case.n_flows):
        mine = case.link[case.flow == flow]
        assert any(
            full[link] and rates[case.flow[case.link == link]].max() <= rates[flow] * (1 + 1e-6) for link in mine
        )


@given(cases(), st.integers(0, 2**31))
def test_completion_meets_what_every_link_has_to_carry(case: Uses, seed: int) -> None:
    """No flow ends before its own bytes could, no link's bytes before the link could, and the last ends no later than
    if all flows kept their first rates."""
    size = np.random.default_rng(seed).uniform(0.1, 10.0, case.n_flows)
    ended, first = completion_s(case, size), size / max_min_rates(case)
    carried = np.bincount(case.link, weights=case.share * size[case.flow], minlength=len(case.bytes_per_s))
    assert ended.max() >= (carried / case.bytes_per_s).max() * (1 - 1e-6)
    assert ended.min() == pytest.approx(first.min(), rel=1e-6)
    alone = [size[f] / (case.bytes_per_s[case.link[case.flow == f]] / case.share[case.flow == f]).min()
             for f in range(case.n_flows)]  # fmt: skip
    assert (ended >= np.array(alone) * (1 - 1e-6)).all()
    assert ended.max() <= sum(alone) * (1 + 1e-6)


def test_a_line_of_two_links_by_hand() -> None:
    """A flow over both links of 10 and 4 and one over each: 2, 8, 2. When the short ones end, the long one has 4."""
    case = uses([[0, 1], [0], [1]], [10.0, 4.0])
    assert max_min_rates(case).tolist() == [2.0, 8.0, 2.0]
    assert completion_s(case, np.array([8.0, 8.0, 2.0])).tolist() == [2.5, 1.0, 1.0]


def test_nothing_to_send_or_no_link_takes_no_time_and_a_dead_link_is_refused() -> None:
    case = uses([[0], [], [0]], [2.0])
    assert completion_s(case, np.array([0.0, 5.0, 4.0])).tolist() == [0.0, 0.0, 2.0]
    with pytest.raises(InputError, match="positive rate"):
        max_min_rates(uses([[0]], [0.0]))
