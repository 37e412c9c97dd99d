"""The linear-quadratic regulator as a Gymnasium environment, and as a task of which N copies are stepped at once."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .._checks import has_shape
from .._typing import Array, Rng
from ..lqr import LQR


def _root(covariance: Array) -> Array:
    """A matrix L with L Lᵀ = covariance, which may be singular."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(eigenvalues, 0))


def _spaces(lqr: LQR) -> tuple[spaces.Box, spaces.Box]:
    d, m = np.shape(lqr.B)
    state, action = (spaces.Box(-np.inf, np.inf, (k,), dtype=np.float64) for k in (d, m))
    return state, action


class LQREnv(gymnasium.Env[Array, Array]):
    """An ``LQR`` to act in; it never ends by itself, so give it a time limit.

    Parameters
    ----------
    lqr : LQR
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, lqr: LQR) -> None:
        self.lqr = lqr
        self.observation_space, self.action_space = _spaces(lqr)
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


class LQRTask:
    """``LQREnv`` as a ``Task`` for ``TaskVectorEnv``.

    Parameters
    ----------
    lqr : LQR
    """

    def __init__(self, lqr: LQR) -> None:
        self.lqr = lqr
        self.observation_space, self.action_space = _spaces(lqr)
        self._root_S0, self._root_W = _root(lqr.S0), _root(lqr.W)

    def first(self, rng: Rng, n: int, options: dict[str, Any]) -> Array:
        """s_0 ~ N(0, S0)."""
        return self._root_S0 @ rng.normal(size=(len(self._root_S0), n))

    def step(self, s: Array, a: Array, t: Array, rng: Rng) -> tuple[Array, Array]:
        """One transition."""
        lqr, u = self.lqr, a.T
        rewards: Array = -(np.sum(s * (lqr.Q @ s), axis=0) + np.sum(u * (lqr.R @ u), axis=0))
        s[:] = lqr.A @ s + lqr.B @ u + self._root_W @ rng.normal(size=s.shape)
        return rewards, np.zeros(len(a), dtype=bool)

    def observe(self, s: Array) -> Array:
        """The state."""
        return s.T.copy()
