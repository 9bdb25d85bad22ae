"""Devices of one kind are not equally fast, nor equally loaded: what a group that waits for its slowest member loses.

At its power limit every chip runs at a clock of its own: ``Device.clock_spread`` is the relative standard deviation of
that clock over the chips of a cluster. Routing gives a device's experts more tokens in one layer and fewer in another:
``Load.routing_spread``. Devices that exchange tokens in every layer, or sum gradients at the end of every step, go at
the pace of the slowest of them; what the others wait shows in a trace as communication.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import log_ndtr, ndtri

from sextant.simulator.points import distinct
from sextant.simulator.types import Device, Num

#: Where distributions are integrated, in standard deviations above the mean, and with what weights.
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(48)
_DEVIATIONS, _WEIGHTS = 1.5 + 6.5 * _NODES, 6.5 * _NODE_WEIGHTS
#: The logarithm of the distribution of a group that is not shorter than another, which most are not.
_LONGEST = log_ndtr(_DEVIATIONS)
#: A group so many deviations shorter is the slowest of all nowhere among these, to the last digit of a float.
_NEVER = 14.0


def slowest(n: Num) -> Num:
    """Expected largest of ``n`` standard normal variables, in standard deviations: 0 for one.

    Blom's approximation of the normal order statistics: 4% too large for two, within 2% from eight upward.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Varying:
    """Seconds of a layer's compute that differ from device to device: those that go with the clock, and those that go
    with the tokens its experts receive."""

    clock_s: Num = 0.0
    experts_s: Num = 0.0

    def __add__(self, other: Varying) -> Varying:
        return Varying(clock_s=self.clock_s + other.clock_s, experts_s=self.experts_s + other.experts_s)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How unequal the ``n_devices`` are that wait for one another, in groups of ``n_exchanging`` that exchange tokens.

    What routing draws anew in every pass is waited for inside a group alone: over many passes all groups draw alike.
    """

    n_devices: Num
    n_exchanging: Num
    clock_spread: Num
    routing_spread: Num

    def waits_s(self, layers: Iterable[tuple[Num, Varying]]) -> Num:
        """Seconds by which the slowest device is expected to take longer than the mean one over ``layers``, given with
        their numbers, which it goes through without meeting the others in between.

        A chip's clock is the same in all of them, so its deviations add; the tokens of its experts are drawn anew in
        each, so theirs add in squares. Exactly 0 where all devices are alike; within 7% of drawn groups where both
        spreads count.
        """
        clock, routing = self._variances(layers)
        of_all, of_group = self._slowest_squared
        return np.sqrt(of_all * clock + of_group * routing)

    def lasting_s(self, layers: Iterable[tuple[Num, Varying]]) -> Num:
        """Standard deviation of what a device takes longer in every pass of ``layers``, given with their numbers.

        What routing draws anew in each pass evens out over many. A chip's clock stays: of the deviation that makes a
        group slow, its share of the variance does.
        """
        clock, routing = self._variances(layers)
        deviation = np.sqrt(clock + routing)
        return np.divide(clock, deviation, out=np.zeros_like(deviation), where=deviation > 0.0)

    @cached_property
    def _slowest_squared(self) -> tuple[Num, Num]:
        return np.square(slowest(self.n_devices)), np.square(slowest(self.n_exchanging))

    def _variances(self, layers: Iterable[tuple[Num, Varying]]) -> tuple[Num, Num]:
        """Of the seconds of ``layers``, by the clock and by the routing."""
        clock: Num = 0.0
        experts: Num = 0.0
        for number, layer in layers:
            clock = clock + number * layer.clock_s
            experts = experts + number * np.square(layer.experts_s)
        return np.square(self.clock_spread * clock), np.square(self.routing_spread) * experts


def behind_s(seconds: Sequence[Num], lasting_s: Num, n_devices: Num) -> Num:
    """How much longer than its longest group a chain of groups is expected to take, where each goes at the pace of the
    slowest of its ``n_devices``, and the chain at that of its slowest group.

    ``seconds`` are those of the groups, each with the same wait for its own slowest device, whose standard deviation
    over devices is ``lasting_s``. Groups that are shorter by more than a few of them do not count. 0 for one group.
    """
    # Groups with the same to do, as the ranks of a pipeline mostly are, are looked at once.
    *rows, lasting_s, n_devices = np.broadcast_arrays(*seconds, lasting_s, n_devices)
    if np.ndim(lasting_s) == 1 and (equal := distinct([*rows, lasting_s, n_devices])) is not None:
        first, which = equal
        return np.asarray(behind_s([row[first] for row in rows], lasting_s[first], n_devices[first]))[which]
    alike = defaultdict[bytes, list[int]](list)
    for i, row in enumerate(rows):
        alike[row.tobytes()].append(i)
    groups = np.stack([rows[same[0]] for same in alike.values()])
    numbers = [float(len(same)) for same in alike.values()]
    slack = (groups.max(axis=0) - groups) / np.where(np.asarray(lasting_s) > 0.0, lasting_s, 1.0)
    slack, shape = slack.reshape(len(groups), -1), slack.shape[1:]
    # The distribution of the slowest of all is the product of those of the groups.
    below = np.zeros((len(_DEVIATIONS), slack.shape[1]))
    for number, behind in zip(numbers, slack, strict=True):
        below[:, behind == 0.0] += number * _LONGEST[:, None]
        near = np.flatnonzero((behind > 0.0) & (behind < _NEVER))
        below[:, near] += number * log_ndtr(_DEVIATIONS[:, None] + behind[near])
    of_all = n_devices * below.reshape(-1, *shape)
    of_one = n_devices * _LONGEST.reshape(-1, *(1,) * len(shape))
    apart = np.asarray(np.exp(of_one) - np.exp(of_all), dtype=float)
    return lasting_s * np.tensordot(_WEIGHTS, apart, axes=1)
