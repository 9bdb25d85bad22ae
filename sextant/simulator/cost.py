"""Money and work rates that follow from a step time."""

from __future__ import annotations

from sextant.simulator.types import Cluster, Num

SECONDS_PER_HOUR = 3600.0
SECONDS_PER_DAY = 86400.0


def gpu_hours(seconds: Num, n_devices: Num) -> Num:
    """Device hours that ``n_devices`` spend in ``seconds``."""
    return seconds * n_devices / SECONDS_PER_HOUR


def usd(seconds: Num, n_devices: Num, cluster: Cluster) -> Num:
    """Rental of ``n_devices`` of the cluster for ``seconds`` at the device's price per hour."""
    return gpu_hours(seconds, n_devices) * cluster.device.price_usd_per_h


def mfu(flops_per_token: Num, tokens_per_s: Num, n_devices: Num, cluster: Cluster, peak: str = "bf16") -> Num:
    """Model FLOPs per second over the dense peak of ``n_devices`` in the format ``peak``."""
    return flops_per_token * tokens_per_s / (n_devices * cluster.device.peak_flops_per_s[peak])
