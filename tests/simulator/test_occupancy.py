"""What a rank holds: the order of its instructions decides, and the event engine finds the same peak."""

import numpy as np
import pytest

from sextant.simulator import occupancy, pipeline, schedule

RNG = np.random.default_rng(7)


def stage(kept, operands=0.0, forward=0.0, backward=0.0, weight=0.0):
    return occupancy.StageBytes(kept=kept, operands=operands, forward=forward, backward=backward, weight=weight)


def simulated(name, n_ranks, m, virtual, stages):
    """Peak of every rank's timeline, chunk times drawn at random."""
    n = n_ranks * virtual
    times = [RNG.uniform(0.5, 2.0, n).tolist() for _ in range(3)]
    pairs = {(f, b): float(RNG.uniform(2.0, 4.0)) for f in range(n) for b in range(n)}
    chunks = pipeline.ChunkSeconds(forward=times[0], backward_input=times[1], backward_weight=times[2], pair=pairs)
    run = pipeline.simulate(name, chunks, n_ranks, m, virtual_stages=virtual, send_s=0.1)
    held = schedule.stages_of_ranks(name, n_ranks, virtual)
    for rank in range(n_ranks):
        spans = [span for span in run.spans if span.track == f"rank {rank:02d}"]
        mine = [stages[s] for s in held[rank]]
        yield rank, mine, occupancy.timeline(name, rank, n_ranks, m, mine, spans, virtual)


@pytest.mark.parametrize(
    ("name", "virtual"), [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb1p", 1), ("dualpipe", 1)]
)
@pytest.mark.parametrize("m", [8, 12, 16, 40])
def test_the_peak_of_the_timeline_is_that_of_the_formula(name, virtual, m):
    """For stages of any size, at any length of the step."""
    stages = [stage(*RNG.uniform(1.0, 9.0, 5).tolist()) for _ in range(4 * virtual)]
    for rank, mine, rows in simulated(name, 4, m, virtual, stages):
        activations, working = occupancy.peak(name, rank, 4, m, mine, virtual)
        assert max(row[2] for row in rows) == pytest.approx(activations + working, rel=1e-12)
        assert all(start < end and size > 0 for start, end, size in rows)


@pytest.mark.parametrize("name", ["1f1b", "zb1p", "dualpipe", "gpipe"])
def test_equal_stages_hold_the_published_number_of_micro_batches(name):
    """PP of one stage under 1F1B, PP+1 chunks under DualPipe (DeepSeek-V3 report Table 2), all of them under GPipe."""
    n_ranks, m = 8, 32
    most = max(
        occupancy.peak(name, rank, n_ranks, m, [stage(1.0)] * len(held))[0]
        for rank, held in enumerate(schedule.stages_of_ranks(name, n_ranks))
    )
    assert most == {"1f1b": n_ranks, "zb1p": n_ranks, "dualpipe": n_ranks + 1, "gpipe": m}[name]


def test_micro_batches_may_be_an_array():
    """Each point is as it would be alone."""
    sizes = [stage(3.0, 1.0, 0.5, 0.7, 0.1)]
    many = np.array([1.0, 2.0, 5.0, 64.0])
    for name in ("1f1b", "gpipe", "zb1p"):
        both = occupancy.peak(name, 1, 4, many, sizes)
        for i, m in enumerate(many):
            alone = occupancy.peak(name, 1, 4, float(m), sizes)
            assert [float(x[i]) for x in both] == pytest.approx([float(x) for x in alone])


def test_bytes_may_be_arrays():
    """The fullest state is chosen point by point."""
    kept, working = np.array([1.0, 100.0]), np.array([50.0, 0.0])
    found = occupancy.peak("1f1b", 0, 4, 8.0, [stage(kept, backward=working)])
    np.testing.assert_allclose(found[0] + found[1], 4 * kept + working)


def test_what_a_weight_gradient_needs_stays_until_it_is_done():
    """ZB1P's last rank hands its input gradients back at once: later only operands of weight gradients are left."""
    light = occupancy.peak("zb1p", 7, 8, 32, [stage(1.0, operands=0.25)])[0]
    heavy = occupancy.peak("zb1p", 7, 8, 32, [stage(1.0, operands=1.0)])[0]
    assert light == pytest.approx(1.0 + 0.25 * 7)
    assert heavy == pytest.approx(8.0)
