"""The counterexample of ``npg.problems.imani`` with actions that are numbers (derivations, chapter 13)."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .._checks import has_shape
from .._typing import Array


class ContinuousImaniEnv(gymnasium.Env[Any, Any]):
    """From state 0 the action a leads to state 1 with probability ς(−a), otherwise to state 2, without reward.

    In state 1 it is worth 2ς(−a) and in state 2 ς(a), and the episode ends, in state 3; ς is the logistic function. The
    features ``npg.problems.IMANI_FEATURES`` do not tell states 1 and 2 apart. The behaviour log 3 goes to state 2
    three times as often as to state 1.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self) -> None:
        self.observation_space = spaces.Discrete(4)
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), dtype=np.float64)
        self._state = 3

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """State 0."""
        super().reset(seed=seed)
        self._state = 0
        return self._state, {}

    def step(self, action: Array) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """One transition."""
        if self._state == 3:
            raise RuntimeError("call reset before the first step, and after the end")
        a = np.asarray(action, dtype=float)
        has_shape("action", a, (1,))
        first = float(0.5 - 0.5 * np.tanh(a[0] / 2))  # ς(−a)
        if self._state == 0:
            self._state = 1 if self.np_random.random() < first else 2
            return self._state, 0.0, False, False, {}
        reward = 2 * first if self._state == 1 else 1 - first
        self._state = 3
        return self._state, reward, True, False, {}
