"""How fast answers come, in one process: ``make bench``. Rates, not limits: nothing here fails for being slow.

One round is one call; the design points per second are the benchmark's ``extra_info``.
"""

from dataclasses import replace

import numpy as np
import pytest

from sextant.simulator import paths, schedule
from sextant.simulator.jitter import Jitter, factors
from sextant.simulator.partition import balance
from sextant.simulator.pipeline import ChunkSeconds, finish, simulate
from sextant.studies import stages
from sextant.studies.answer import answer, evaluate, question
from sextant.studies.search import search

DECODE_POINTS, PLANS = 16_384, 2_000


def _rate(benchmark, n):
    if benchmark.stats is not None:
        benchmark.extra_info["points_per_s"] = round(n / benchmark.stats.stats.median)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_decode_sweep(benchmark, random):
    """DeepSeek-V3 decode steps over batch, context and HBM bandwidth, every point different."""
    scenario = question("deepseek_v3_h800_decode").scenario
    n = DECODE_POINTS
    bandwidth = random.uniform(1e12, 8e12, n)
    swept = replace(
        scenario,
        load=replace(
            scenario.load,
            batch=np.round(random.uniform(8, 256, n)),
            context_tokens=np.round(random.uniform(512, 32768, n)),
        ),
        cluster=paths.put(scenario.cluster, "device.memories.hbm.bandwidth_bytes_per_s", bandwidth),
    )
    result = benchmark(evaluate, swept, n)
    _rate(benchmark, n)
    assert len(result.feasible) == n


def test_decode_model_sweep(benchmark, random):
    """Decode steps over dimensions of the model itself: experts, their width, the latent's rank."""
    scenario = question("deepseek_v3_h800_decode").scenario
    n = DECODE_POINTS
    model = replace(
        scenario.model,
        moe_intermediate_size=128.0 * random.integers(4, 32, n),
        kv_lora_rank=128.0 * random.integers(1, 8, n),
        num_experts_per_tok=random.integers(2, 12, n).astype(float),
    )
    result = benchmark(evaluate, replace(scenario, model=model), n)
    _rate(benchmark, n)
    assert len(result.feasible) == n


@pytest.mark.parametrize("n", [PLANS, 16_384])
def test_training_plans(benchmark, random, n):
    """Full training plans of DeepSeek-V3: tensor, expert and data degrees, micro-batch; 16 stages, DualPipe."""
    scenario = question("deepseek_v3_h800_training", ["engine=analytic"]).scenario
    plan = replace(
        scenario.plan,
        data=random.choice([32.0, 64.0, 128.0], n), expert=random.choice([8.0, 16.0, 32.0, 64.0], n),
        tensor=random.choice([1.0, 2.0, 4.0], n), micro_batch=random.choice([1.0, 2.0], n),
    )  # fmt: skip
    result = benchmark(evaluate, replace(scenario, plan=plan), n)
    _rate(benchmark, n)
    assert len(result.feasible) == n


@pytest.mark.parametrize("n", [28, 112], ids=["2016", "8064"])
@pytest.mark.parametrize("swept", ["tiers.infiniband.link", "device.memories.hbm"])
def test_training_plans_that_all_differ(benchmark, swept, n):
    """The same for a grid without repetitions: every degree, micro-batches, and a bandwidth: between nodes, so that the
    operators that compute are shared by ``n`` plans, or of HBM, so that no two plans share one."""
    scenario = question("deepseek_v3_h800_training", ["engine=analytic"]).scenario
    degrees = ([1.0, 2.0, 4.0], [8.0, 16.0, 32.0, 64.0], [32.0, 64.0, 128.0], [1.0, 2.0])
    rate = float(paths.get(scenario.cluster, f"{swept}.bandwidth_bytes_per_s"))
    grids = np.meshgrid(*degrees, np.linspace(0.5 * rate, 2.0 * rate, n))
    tensor, expert, data, micro_batch, bandwidth = (each.ravel() for each in grids)
    plan = replace(scenario.plan, data=data, expert=expert, tensor=tensor, micro_batch=micro_batch)
    cluster = paths.put(scenario.cluster, f"{swept}.bandwidth_bytes_per_s", bandwidth)
    result = benchmark(evaluate, replace(scenario, plan=plan, cluster=cluster), len(tensor))
    _rate(benchmark, len(tensor))
    assert len(result.feasible) == len(tensor)


def test_search_over_2048_devices(benchmark):
    """All plans of DeepSeek-V3, from nothing: the partitions and schedules found before are forgotten."""
    scenario = question("deepseek_v3_h800_training").scenario

    def forget():
        schedule.clear()
        for known in (balance, stages._partition):
            known.cache_clear()

    found = benchmark.pedantic(search, (scenario,), setup=forget, rounds=1 if benchmark.stats is None else 3)
    if benchmark.stats is not None:
        benchmark.extra_info["plans_per_s"] = round(found.n_plans / benchmark.stats.stats.median)
        benchmark.extra_info["evaluated_per_s"] = round(found.n_evaluated / benchmark.stats.stats.median)
    assert found.feasible.any()


def test_search_over_2048_devices_by_two_processes(benchmark):
    """The same, shared by two processes, whose start counts."""
    few = ["search.pipeline=[16]", "search.recompute=[[]]"] if benchmark.disabled else []
    scenario = question("deepseek_v3_h800_training", few).scenario
    found = benchmark.pedantic(search, (scenario,), {"n_workers": 2}, rounds=1 if benchmark.disabled else 3)
    assert found.n_plans > 0


def test_one_training_answer_on_the_event_engine(benchmark):
    """The shipped scenario, from validated records to metrics: 16 ranks, 120 micro-batches."""
    scenario = question("deepseek_v3_h800_training").scenario
    assert evaluate(scenario).feasible.all()
    benchmark(evaluate, scenario)


def test_event_engine_alone(benchmark):
    """DualPipe over 16 ranks and 120 micro-batches: about 4,000 chunks."""
    chunks = ChunkSeconds(
        forward=[1.0] * 16, backward_input=[1.1] * 16, backward_weight=[0.8] * 16,
        pair={(i, j): 2.7 for i in range(16) for j in range(16)},
    )  # fmt: skip
    schedule.clear()
    run = benchmark(simulate, "dualpipe", chunks, 16, 120)
    assert run.step_s > 0


@pytest.mark.parametrize("schedule_name", ["dualpipe", "zbv"])
def test_recurrence_over_design_points(benchmark, random, schedule_name):
    """The same steps as a recurrence, 1,000 design points at once; of ZB-V also the search for its order."""
    n = 1_000
    chunks = ChunkSeconds(
        forward=[1.0] * 32, backward_input=[1.1] * 32, backward_weight=[0.8] * 32,
        pair={(i, 15 - i): random.uniform(2.6, 2.8, n) for i in range(16)},
    )  # fmt: skip
    send_s = random.uniform(0.0, 0.01, n)

    def run():
        schedule.clear()
        return finish(schedule_name, chunks, 16, 120, send_s=send_s)

    assert np.shape(benchmark(run).step_s) == (n,)
    _rate(benchmark, n)


def _noisy(n_replicas, **coupled):
    chunks = ChunkSeconds(
        forward=[1.0] * 16, backward_input=[1.1] * 16, backward_weight=[0.8] * 16,
        pair={(i, 15 - i): 2.7 for i in range(16)},
    )  # fmt: skip
    programs = schedule.programs("dualpipe", 16, 120)
    return chunks, factors(programs, n_replicas, Jitter(variation=0.05, seed=1, **coupled))


def test_event_engine_with_jitter_on_1024_ranks(benchmark):
    """16 stages x 64 replicas, every chunk of another length, messages that queue."""

    def run():
        chunks, noise = _noisy(64)
        each = [[rank[:, i] for rank in noise] for i in range(64)]
        return max(simulate("dualpipe", chunks, 16, 120, send_s=0.01, factors=noise_of).step_s for noise_of in each)

    assert benchmark.pedantic(run, rounds=2) > 0


def test_recurrence_with_jitter_on_2048_ranks(benchmark):
    """16 stages x 128 replicas in two groups of 64 that exchange 8 times per chunk."""

    def run():
        chunks, noise = _noisy(128, group=64, n_exchanges=8)
        return np.max(finish("dualpipe", chunks, 16, 120, factors=noise, group=64).step_s)

    assert benchmark(run) > 0


def test_reading_a_scenario(benchmark):
    """From the file to a validated question."""
    benchmark(question, "deepseek_v3_h800_training")


def test_allocation_study(benchmark):
    """61 shares of tables, three host bandwidths, three GPUs, each trained, decoding and in prefill; loss and all."""
    asked = question("engram_allocation_9_9b")
    result = benchmark(answer, asked)
    _rate(benchmark, 61 * 3 * 3)
    assert len(result.feasible) == 61 * 3 * 3
