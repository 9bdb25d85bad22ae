"""The language of Sextant: immutable records that every package speaks.

A quantity is a ``Num``: a float, or an array of shape ``(n_points,)``. A sweep is a record in which a scalar was
replaced by an array; nothing else changes. All quantities are SI: bytes, seconds, FLOP (one multiply-add is 2),
watts, USD. Bandwidths are per device and for one direction. Peaks are dense (no sparsity).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Num = float | NDArray[np.float64]

#: A yes or no, per point where it is an array.
Flag = bool | np.bool_ | NDArray[np.bool_]

#: What can bound an operator's time, in the order used for ties.
BOUNDS = ("math", "memory", "link", "rows", "launch")

#: Where a number can come from, the most to the least trusted.
PROVENANCES = ("measured", "fitted", "published", "datasheet", "assumed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One memory tier of a device (``hbm``), or of its host (``host``, ``nvme``)."""

    capacity_bytes: Num
    bandwidth_bytes_per_s: Num
    latency_s: Num = 0.0
    rows_per_s: Num = float("inf")
    energy_j_per_byte: Num = 0.0
    price_usd: Num = 0.0
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory(Memory):
    """A host's memory, of which ``bandwidth_bytes_per_s`` is what a device gets while all of its node read.

    To have them share more closely: ``node_bytes_per_s`` is what they read together, and ``remote_fraction`` of it lies
    at another socket than the device that reads, across links of ``between_sockets_bytes_per_s``, both ways together.
    """

    node_bytes_per_s: Num = float("inf")
    between_sockets_bytes_per_s: Num = float("inf")
    remote_fraction: Num = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Correction:
    """A learned factor on a kernel's seconds (``simulator.kernels.correction``).

    ``features`` names the columns of ``scales`` (n_features,) and ``centres`` (n_centres, n_features); ``weights``
    has shape (n_centres,).
    """

    features: tuple[str, ...]
    scales: NDArray[np.float64]
    centres: NDArray[np.float64]
    weights: NDArray[np.float64]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Correction):
            return NotImplemented
        arrays = ((self.scales, other.scales), (self.centres, other.centres), (self.weights, other.weights))
        return self.features == other.features and all(np.array_equal(a, b) for a, b in arrays)

    def __hash__(self) -> int:
        return hash((self.features, self.weights.tobytes()))


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFit:
    """Coefficients of one kernel's time model, and how far to trust them.

    ``low`` and ``high`` are factors on the predicted seconds that hold 90% of held-out measurements; ``correction`` is
    what was learned beyond the physical model; ``held_out`` the errors on measurements that the fit has not seen
    (``n_rows``, ``mape``, ``median``, ``p95``, ``bias``: shares of the measured time).
    """

    coefficients: Mapping[str, Num]
    low: float
    high: float
    provenance: str
    source: str = ""
    correction: Correction | None = None
    held_out: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU: datasheet rates, and the fitted kernel coefficients that say how much of them is reached.

    Coefficients are of kernels run for milliseconds. ``clock_under_load`` is the share of that speed which the power
    limit leaves to tensor-core work that lasts; 1 for single kernels. ``clock_spread`` is the relative standard
    deviation of that clock over devices of this kind (``simulator.spread``); 0: all alike. ``n_held_sms`` are SMs
    that communication kernels hold, besides the ``n_sms``.
    """

    name: str
    peak_flops_per_s: Mapping[str, Num]
    n_sms: Num
    memories: Mapping[str, Memory]
    l2_bytes: Num
    launch_s: Num
    power_w: Num
    price_usd_per_h: Num
    clock_under_load: Num = 1.0
    clock_spread: Num = 0.0
    n_held_sms: Num = 0.0
    kernels: Mapping[str, KernelFit] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link as one device sees it: one direction, and the share of the line rate that payload reaches."""

    bandwidth_bytes_per_s: Num
    latency_s: Num
    efficiency: Num = 1.0
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """``n_devices`` devices reach each other over ``link`` (counted from the innermost tier)."""

    n_devices: Num
    link: Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How often a device of a running job fails (0: failures are not considered), and what going on costs.

    ``checkpoint_bytes_per_s`` is the bandwidth of all devices together to storage that survives a failure;
    ``restart_s`` passes until a job that failed reads its checkpoint.
    """

    device_mtbf_s: Num = 0.0
    checkpoint_bytes_per_s: Num = 0.0
    restart_s: Num = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Equal devices joined by tiers of links, the innermost first (``nvlink``, then ``infiniband``).

    ``jitter`` is the relative standard deviation of a pipeline chunk's time from one execution to the next;
    ``stragglers`` devices take ``straggler_slowdown`` times as long for all they do (``simulator.jitter``).
    """

    name: str
    device: Device
    n_devices: Num
    tiers: Mapping[str, Tier]
    topology: str = ""
    jitter: Num = 0.0
    stragglers: Num = 0.0
    straggler_slowdown: Num = 1.1
    reliability: Reliability = field(default_factory=Reliability)
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def varies(self) -> bool:
        """Whether any point has jitter or stragglers."""
        return bool(np.any(np.asarray(self.jitter) > 0) or np.any(np.asarray(self.stragglers) > 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operator of a step, executed ``count`` times by one device.

    ``kind`` names the module of ``simulator.kernels`` that knows its work and its time; ``variant`` what that module
    may distinguish (``forward`` or ``backward``, ``all_reduce`` ...). ``shards`` says which shape dimensions each
    parallel degree divides (or multiplies, with a leading ``*``). ``flops``,
    ``traffic_bytes`` and ``message_bytes`` are for one execution.
    ``follows`` is ``experts`` where the work is that of the tokens which a device's experts receive.
    ``part`` is the layer kind it belongs to, ``block`` the piece of that layer (``attention``, ``mlp`` ...), ``phase``
    one of forward, backward_input, backward_weight, optimizer. A message ``beside`` an operator of the same part is
    sent while that one computes.
    """

    kind: str
    name: str
    format: str
    shape: Mapping[str, Num]
    flops: Num = 0.0
    traffic_bytes: Mapping[str, Num] = field(default_factory=dict)
    message_bytes: Num = 0.0
    group: str = ""
    variant: str = ""
    stream: str = "compute"
    after: tuple[str, ...] = ()
    count: Num = 1.0
    shards: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    part: str = ""
    block: str = ""
    phase: str = "forward"
    follows: str = ""
    beside: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The operators of one phase of one model under one load, as one device runs them.

    ``resident_bytes[tier][part]`` is what must lie in memory, ``layers`` how many layers of each part there are.
    """

    phase: str
    ops: tuple[Op, ...]
    n_tokens: Num
    layers: Mapping[str, Num] = field(default_factory=dict)
    resident_bytes: Mapping[str, Mapping[str, Num]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the model is laid over the cluster. Degrees multiply to the devices used: tensor x context x pipeline x data.

    ``expert`` divides the routed experts over that many devices of the ``data`` x ``tensor`` group.
    ``n_comm_sms`` SMs are set aside for communication kernels. ``checkpoint`` is where training saves its state
    (``file_system`` or ``host`` memory first), every ``checkpoint_interval_s`` of work (0: as often as is best).
    ``sequence_parallel`` splits norms, dropout and residuals over the tensor group too, which then gathers and scatters
    where it otherwise sums. ``attention`` is ``fused``, or ``unfused``: scores written out; ``hyper_connections``
    likewise, ``unfused``: every operator of mHC a kernel of its own, or ``tile_kernels``: in training the kernels that
    DeepSeek released, as measured. ``exchange`` are the kernels that exchange experts' tokens: ``deepep``, or
    ``deepep_2025_02``, its first version. With ``blocking_sends`` a stage computes nothing
    while it sends; with ``early_sends`` a message leaves once its tensor is there, not at the end of its chunk, and a
    stage that makes streams again does so before its gradient has come.
    ``prefetch`` is how rows come from where ``placement`` has them (``simulator.fetch``); ``deduplicate`` fetches every
    row of a batch once. ``cache_bytes`` of HBM hold rows that were fetched before, ``host_cache_bytes`` of the host's
    memory those of a table on its drives, by ``cache_policy``. With ``sparse_optimizer`` a step updates only the rows
    that it looked up.
    """

    tensor: Num = 1.0
    expert: Num = 1.0
    pipeline: Num = 1.0
    data: Num = 1.0
    context: Num = 1.0
    schedule: str = "1f1b"
    virtual_stages: Num = 1.0
    micro_batch: Num = 1.0
    recompute: tuple[str, ...] = ()
    overlap: str = "none"
    n_comm_sms: Num = 0.0
    zero_stage: float = 1.0
    formats: str = "bf16"
    redundant_experts: Num = 0.0
    layers_per_stage: tuple[float, ...] = ()
    placement: Mapping[str, str] = field(default_factory=dict)
    prefetch: str = "none"
    checkpoint: str = "file_system"
    checkpoint_interval_s: Num = 0.0
    sequence_parallel: bool = True
    attention: str = "fused"
    hyper_connections: str = "fused"
    exchange: str = "deepep"
    blocking_sends: bool = False
    early_sends: bool = False
    deduplicate: bool = False
    cache_bytes: Num = 0.0
    host_cache_bytes: Num = 0.0
    cache_policy: str = "lru"
    sparse_optimizer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of the model.

    phase: ``training`` (``batch`` = sequences of the whole cluster per optimizer step, ``context_tokens`` = their
    length), ``prefill`` (``batch`` = prompts per data-parallel rank), ``decode`` (``batch`` = requests per
    data-parallel rank, ``context_tokens`` = tokens already in the cache), ``image_understanding`` (``batch`` =
    questions per data-parallel rank, each with ``n_images`` images of ``image_height`` x ``image_width`` pixels and
    ``context_tokens`` of text) or ``image_generation`` (``batch`` = images per data-parallel rank, ``context_tokens`` =
    length of a prompt; ``guidance`` = with classifier-free guidance; ``n_steps`` = sampling steps, 0 = as published).
    ``routing_spread`` is the relative standard deviation, over devices, of the tokens that a device's experts receive
    in one layer of a training micro-batch.
    ``routing``: ``balanced``, ``power_law_A`` (loads of experts follow a power law of exponent A) or ``counts``
    (``expert_tokens``, one number per routed expert, in their order, of any scale).
    A model with an image encoder trains on ``n_images`` per sequence, whose tokens ``context_tokens`` includes.
    Rows of a table are looked up by Zipf's law of ``zipf_exponent`` (0: all alike). A pass copies ``copied_bytes`` from
    the host besides, such as keys and values that lie there.
    """

    phase: str
    batch: Num
    context_tokens: Num
    routing: str = "balanced"
    routing_spread: Num = 0.0
    expert_tokens: tuple[float, ...] = ()
    n_images: Num = 1.0
    image_height: Num = 384.0
    image_width: Num = 384.0
    guidance: bool = True
    n_steps: Num = 0.0
    zipf_exponent: Num = 0.0
    copied_bytes: Num = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Seconds of one execution, with a 90% interval.

    ``limits`` holds the seconds that each bound alone would take (keys of ``BOUNDS``).
    """

    seconds: Num
    low: Num
    high: Num
    limits: Mapping[str, Num]
    provenance: str

    @property
    def bound(self) -> NDArray[np.str_]:
        """The name of the largest limit, per point, shape () or (n_points,)."""
        names = [name for name in BOUNDS if name in self.limits]
        stack = np.stack(np.broadcast_arrays(*(self.limits[name] for name in names)))
        return np.asarray(names)[np.argmax(stack, axis=0)]

    def bound_at(self, point: int) -> str:
        """The name of the largest limit of one point."""
        names = [name for name in BOUNDS if name in self.limits]
        values = [np.asarray(self.limits[name]) for name in names]
        return names[int(np.argmax([v if v.ndim == 0 else v[point] for v in values]))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A validated question: records with arrays where an axis sweeps them. ``model`` is a record of the workloads.

    ``solve`` says, by dotted path, of which size a field follows: ``{size: target or "base", "multiple_of": number}``.
    ``search`` restricts a search over plans: the values that a field of ``plan`` may take, by its name.
    """

    name: str
    model: Any
    cluster: Cluster
    plan: Plan
    load: Load
    axes: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    objectives: Mapping[str, str] = field(default_factory=dict)
    constraints: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    solve: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)
    search: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    engine: str = "analytic"
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answer: one array of shape (n_points,) per metric, and what does not fit and why.

    ``limits[i]`` lists the reasons why point ``i`` is infeasible. ``breakdown`` has seconds per operator of a point.
    """

    columns: Mapping[str, NDArray[np.float64]]
    feasible: NDArray[np.bool_]
    limits: tuple[tuple[str, ...], ...]
    provenance: Mapping[str, float] = field(default_factory=dict)
    breakdown: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
