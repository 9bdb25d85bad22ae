"""A training run on devices that fail: off unless asked for, bytes that are the model's, costs that follow."""

import numpy as np
import pytest

from sextant.simulator.errors import InputError
from sextant.simulator.failures import simulate
from sextant.studies.answer import answer, evaluate, question
from sextant.workloads.parameters import layer_counts, layer_parameters

FAILS = ["engine=analytic"]


def failing(*sets):
    """The shipped scenario's metrics."""
    return answer(question("deepseek_v3_h800_failures", [*FAILS, *sets])).columns


def test_off_unless_asked_for():
    """Without a time between failures nothing changes and nothing is said."""
    plain = answer(question("deepseek_v3_h800_training", FAILS)).columns
    assert not any("goodput" in name or "checkpoint" in name for name in plain)
    for name, values in plain.items():
        assert failing()[name][0] == values[0], name


@pytest.mark.parametrize("schedule", ["dualpipe", "1f1b"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_a_checkpoint_holds_every_parameter_once(schedule, tensor):
    """Master weights in FP32 and two moments in BF16: 8 bytes of each of the model's parameters, on any plan.

    Tensor parallelism leaves norms and routers whole on every rank, and their replicas are counted as they lie.
    """
    asked = question("deepseek_v3_h800_failures", FAILS)
    model = asked.scenario.model
    n = sum(sum(layer_parameters(model)[part].values()) * count for part, count in layer_counts(model).items())
    plan = [f"plan.schedule={schedule}", f"plan.tensor={tensor}", f"plan.data={128 // tensor}"]
    extra = ["plan.overlap=none"] if schedule == "1f1b" else []
    found = failing(*plan, *extra)["checkpoint_bytes"][0]
    assert found == pytest.approx(8.0 * n, rel=1e-9 if tensor == 1 else 1e-2)


def test_more_devices_fail_more_often():
    """The time between failures is a device's over the devices used."""
    found = failing()
    assert found["mtbf_s"][0] == pytest.approx(50_676 * 3600 / 2048)
    half = failing("plan.data=64")
    assert half["mtbf_s"][0] == pytest.approx(2 * found["mtbf_s"][0])


def test_effective_costs_are_those_of_lasting_work():
    """Over the goodput, and no less than without failures."""
    found = failing()
    for name in ("gpu_hours_per_trillion_tokens", "usd_per_trillion_tokens"):
        assert found[f"effective_{name}"][0] == pytest.approx(found[name][0] / found["goodput"][0])
    assert 0.9 < found["goodput"][0] < 1.0


def test_saving_to_host_memory_first_pays():
    """The job stands still for less, and more often saves; it waits until the last checkpoint has been written."""
    host, file = failing(), failing("plan.checkpoint=file_system")
    assert host["checkpoint_s"][0] < 0.01 * file["checkpoint_s"][0]
    assert host["goodput"][0] > file["goodput"][0]
    slow = failing("cluster.reliability.checkpoint_bytes_per_s=5 GB/s")
    assert slow["checkpoint_interval_s"][0] >= slow["checkpoint_bytes"][0] / 5e9 * (1 - 1e-12)


def test_the_answer_agrees_with_a_simulated_run():
    """With failures so often that it shows."""
    found = {name: values[0] for name, values in failing("cluster.reliability.device_mtbf_s=2,000 h").items()}
    write_s = found["checkpoint_bytes"] / 100e9
    run = simulate(found["checkpoint_interval_s"], found["checkpoint_s"], found["mtbf_s"], 600.0 + write_s, write_s,
                   n_failures=3000)  # fmt: skip
    assert abs(run.goodput - found["goodput"]) < 3.0 * run.standard_error


def test_the_best_interval_is_best():
    """Saving twice or half as often keeps less."""
    best = failing("plan.checkpoint=file_system")
    for factor in (0.5, 2.0):
        other = failing("plan.checkpoint=file_system",
                        f"plan.checkpoint_interval_s={factor * best['checkpoint_interval_s'][0]}")  # fmt: skip
        assert other["goodput"][0] < best["goodput"][0]


def test_a_sweep_equals_its_points():
    """Over the time between failures, never among them."""
    swept = answer(question("deepseek_v3_h800_failures",
                            [*FAILS, "axes.cluster.reliability.device_mtbf_s=[1000 h, 50000 h]"])).columns  # fmt: skip
    alone = [failing(f"cluster.reliability.device_mtbf_s={hours} h")["goodput"][0] for hours in ("1000", "50000")]
    assert swept["goodput"].tolist() == alone


def test_without_a_bandwidth_it_is_refused():
    """At its field, with what to write; in a sweep such points are infeasible."""
    with pytest.raises(InputError, match="checkpoints without a bandwidth"):
        question("deepseek_v3_h800_training", ["cluster.reliability.device_mtbf_s=50,000 h"])
    scenario = question("deepseek_v3_h800_failures", FAILS).scenario
    from sextant.simulator import paths

    found = evaluate(paths.put(scenario, "cluster.reliability.checkpoint_bytes_per_s", np.array([0.0, 1e11])), 2)
    assert found.feasible.tolist() == [False, True]
