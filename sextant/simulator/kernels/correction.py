"""What measurements say beyond a kernel's physical model: a smooth factor on its seconds.

    factor = exp(sum_j weight_j exp(-|(x - centre_j) / scale|^2 / 2))

over features x of the shape, logarithms of physical quantities (tiles per SM, bytes per SM ...) that the kernel's
module computes. A sum of Gaussians has no edges, and is 1 far from every measured shape: there the physical model
stands alone. Sources: Gaussian-process regression on a subset of points (Rasmussen and Williams 2006, section 8.3.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sextant.simulator.types import KernelFit, Num

Array = NDArray[np.float64]

#: Points evaluated at once: their distances to all centres stay in a core's cache.
_CHUNK = 512
#: Features are held within this many scales of zero, so that an absurd shape is far away and not an overflow.
_FAR = 1e6


def correction(fit: KernelFit, features: Mapping[str, Num]) -> Num:
    """The factor of ``fit`` at points with ``features`` (Nums that broadcast), in their shape; 1.0 if it has none."""
    c = fit.correction
    if c is None:
        return 1.0
    columns = np.broadcast_arrays(*(np.asarray(features[name], dtype=float) for name in c.features))
    points = np.stack([column.ravel() for column in columns], axis=-1)
    out = np.empty(len(points))
    for start in range(0, len(points), _CHUNK):
        part = slice(start, start + _CHUNK)
        terms = basis(points[part], c.centres, c.scales)
        terms *= c.weights
        terms.sum(axis=1, out=out[part])
    return np.exp(out).reshape(columns[0].shape)[()]


def basis(points: Array, centres: Array, scales: Array) -> Array:
    """Every centre's Gaussian at every point: (n_points, n_features), (n_centres, n_features) -> (n_points, n_centres).

    ``scales`` (n_features,) are the distances over which the correction changes.
    """
    x, y = np.clip(points / scales, -_FAR, _FAR), centres / scales
    # Not by a matrix product, whose sums depend on how many points there are: a sweep must equal its points one by one.
    half = np.einsum("pf,fc->pc", x, np.ascontiguousarray(y.T))
    half -= 0.5 * np.square(x).sum(axis=1)[:, None]
    half -= 0.5 * np.square(y).sum(axis=1)
    return np.exp(np.minimum(half, 0.0, out=half), out=half)
