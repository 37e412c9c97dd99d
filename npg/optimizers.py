"""What to do with a gradient: plain ascent, Adam, RMSProp, and the length of a step. All of them maximise."""

from typing import ClassVar

import numpy as np

from ._checks import EPS
from ._state import Stateful
from ._typing import Array


class Ascent(Stateful):
    """θ ← θ + α g, the step of Eq. (1.16).

    Parameters
    ----------
    n : int
        Length of θ.
    alpha : float
        Step size α.
    """

    def __init__(self, n: int, alpha: float) -> None:
        self.alpha = alpha

    def step(self, theta: Array, g: Array) -> Array:
        """The new θ: (n,)."""
        return theta + self.alpha * g


class Adam(Ascent):
    """Adam (Kingma & Ba 2015, Algorithm 1), upwards: each component steps by about α.

    Parameters
    ----------
    n : int
        Length of θ.
    alpha : float
        Step size α.
    beta1, beta2, epsilon : float
        The paper's β₁, β₂ and ε.
    """

    learned: ClassVar[tuple[str, ...]] = ("m", "v", "t")

    def __init__(self, n: int, alpha: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> None:
        super().__init__(n, alpha)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.m, self.v, self.t = np.zeros(n), np.zeros(n), np.array(0)

    def step(self, theta: Array, g: Array) -> Array:
        """The new θ: (n,)."""
        self.t = self.t + 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        m_hat = self.m / (1 - self.beta1**self.t)
        v_hat = self.v / (1 - self.beta2**self.t)
        return theta + self.alpha * m_hat / (np.sqrt(v_hat) + self.epsilon)


class RMSProp(Ascent):
    """RMSProp (Tieleman & Hinton 2012) as in A3C, upwards: each component is divided by its running RMS, Eq. (8.14).

    Parameters
    ----------
    n : int
        Length of θ.
    alpha : float
        Step size α.
    beta2, epsilon : float
        Decay of the mean square, and what is added to it under the root.
    """

    learned: ClassVar[tuple[str, ...]] = ("v",)

    def __init__(self, n: int, alpha: float, beta2: float = 0.99, epsilon: float = 1e-5) -> None:
        super().__init__(n, alpha)
        self.beta2, self.epsilon = beta2, epsilon
        self.v = np.zeros(n)

    def step(self, theta: Array, g: Array) -> Array:
        """The new θ: (n,)."""
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        return theta + self.alpha * g / np.sqrt(self.v + self.epsilon)  # (8.14)


def clip_norm(g: Array, c: float | None) -> Array:
    """g · min(1, c/‖g‖) for c > 0, Eq. (8.13), or g where c is None: (n,)."""
    scale = np.abs(g).max()
    if c is None or not np.isfinite(scale) or scale == 0:
        return g
    norm = scale * np.linalg.norm(g / scale)  # the squares of a large g would overflow
    return g if norm <= c else g / scale * (c * scale / norm)  # (8.13)


def kl_step(u: Array, Fu: Array, delta: float) -> Array:
    """Δ = √(2δ / uᵀFu) u, so that ½ΔᵀFΔ = δ, Eqs. (9.1), (9.2), (9.7), (11.4): (n,).

    Along the natural gradient u = F^{-1}g it is the step √(2δ / gᵀF^{-1}g) F^{-1}g. It is 0 where uᵀFu ≤ nε uᵀu, ε the
    rounding unit: as a policy becomes deterministic F vanishes, and the step would have no bound.
    """
    scale = np.abs(u).max(initial=0.0) or 1.0  # the squares of a tiny or huge u would not be numbers
    u, Fu = u / scale, Fu / scale
    curvature = u @ Fu
    if curvature <= len(u) * EPS * (u @ u):
        return np.zeros_like(u)
    return np.sqrt(2 * delta / curvature) * u  # (9.1), (9.2), (9.7), (11.4)


OPTIMIZERS: dict[str, type[Ascent]] = {"ascent": Ascent, "adam": Adam, "rmsprop": RMSProp}
