"""The linear-quadratic regulator as a Gymnasium environment."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .._checks import has_shape
from .._typing import Array
from ..lqr import LQR


def _root(covariance: Array) -> Array:
    """A matrix L with L Lᵀ = covariance, which may be singular."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(eigenvalues, 0))


class LQREnv(gymnasium.Env[Array, Array]):
    """An ``LQR`` to act in; it never ends by itself, so give it a time limit.

    Parameters
    ----------
    lqr : LQR
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, lqr: LQR) -> None:
        self.lqr = lqr
        d, m = np.shape(lqr.B)
        self.observation_space = spaces.Box(-np.inf, np.inf, (d,), dtype=np.float64)
        self.action_space = spaces.Box(-np.inf, np.inf, (m,), dtype=np.float64)
        self._root_S0, self._root_W = _root(lqr.S0), _root(lqr.W)
        self._state: Array | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """s_0 ~ N(0, S0)."""
        super().reset(seed=seed)
        self._state = self._root_S0 @ self.np_random.normal(size=len(self._root_S0))
        return self._state.copy(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """One transition."""
        s, a, lqr = self._state, np.asarray(action, dtype=float), self.lqr
        if s is None:
            raise RuntimeError("call reset before the first step")
        has_shape("action", a, lqr.B.shape[1:])
        reward = float(-(s @ lqr.Q @ s + a @ lqr.R @ a))
        self._state = lqr.A @ s + lqr.B @ a + self._root_W @ self.np_random.normal(size=len(s))
        return self._state.copy(), reward, False, False, {}
