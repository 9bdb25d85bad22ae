"""GPUs of one kind are not equally fast: what a group that waits for its slowest member loses.

At its power limit every chip runs at a clock of its own. ``Device.clock_spread`` is the relative standard deviation of
that clock over the chips of a cluster. Devices that exchange tokens in every layer, or sum gradients at the end of
every step, go at the pace of the slowest of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import ndtri

from sextant.simulator.types import Device, Num


def slowest(n: Num) -> Num:
    """Expected largest of ``n`` standard normal variables, in standard deviations: 0 for one.

    Blom's approximation of the normal order statistics, within 2% from two upward.
    """
    n = np.maximum(n, 1.0)
    return ndtri((n - 0.375) / (n + 0.25))


def paced(device: Device, n_devices: Num) -> Device:
    """``device`` at the clock that the slowest of ``n_devices`` of its kind is expected to keep under lasting load.

    Itself where all chips are alike (``clock_spread`` 0). Only clocks differ: memory and links are as fast on all.
    """
    if not np.any(np.asarray(device.clock_spread) > 0.0):
        return device
    slower = 1.0 + device.clock_spread * slowest(n_devices)
    return replace(device, clock_under_load=device.clock_under_load / slower)
