"""How fast networks are built and shared: rates, not limits."""

import numpy as np

from sextant.hwmodels import topologies
from sextant.hwmodels.topologies import demands
from sextant.hwmodels.topologies.routing import route
from sextant.simulator.contention import max_min_rates


def test_building_a_dragonfly(benchmark):
    """262,656 endpoints, 385,776 cables."""
    assert benchmark(topologies.build, "dragonfly").n_links == 385_776


def test_sharing_a_fat_tree(benchmark):
    """All of 256 endpoints to all, spread over every spine: 65,280 flows."""
    fabric = topologies.build("fat-tree-2", n_endpoints=256, radix=32)
    uses = route(fabric, demands.all_to_all(np.arange(256), 1e9))
    assert benchmark(max_min_rates, uses).min() > 0
