"""Any finite Markov decision process as a Gymnasium environment, one at a time or N at once.

Both draw one uniform number per step and column, also for a first state, and turn it into a successor by the
same inverse distribution function, so that equal numbers give equal trajectories. Observations are the states.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .._checks import at_least
from .._state import check_alike
from .._typing import Array
from ..exact import TabularMDP
from .state import read, write


class _Sampler:
    """Draws from the rows P[s, a] of an MDP, in row s·A + a, and from ρ_0, in the row ``start``.

    The possible successors of all rows lie end to end with their distribution functions, that of row i shifted
    by i, so that one binary search finds them all.
    """

    def __init__(self, mdp: TabularMDP) -> None:
        p = np.vstack([mdp.P.reshape(-1, mdp.n_states), mdp.rho0])
        self.start = len(p) - 1
        row, self.successor = np.nonzero(p)
        count = np.bincount(row)
        self.first = np.cumsum(count) - count
        self.cumulative = row + np.cumsum(p, axis=1)[row, self.successor]
        self.cumulative[self.first + count - 1] = np.arange(len(p)) + 1  # exactly 1, whatever rounding made of it
        R = np.broadcast_to(mdp.R if mdp.R.ndim == 3 else mdp.R[:, :, None], mdp.P.shape)
        self.reward = np.append(R[mdp.P > 0], np.zeros(count[-1]))
        self.terminal = mdp.terminal

    def draw(self, row: Any, u: Any) -> tuple[Any, Any]:
        """The successor of each row whose distribution function first reaches u in [0, 1), and its reward."""
        index = np.maximum(np.searchsorted(self.cumulative, row + u), self.first[row])  # u = 0 hits the row before
        return self.successor[index], self.reward[index]


class TabularEnv(gymnasium.Env[Any, Any]):
    """One environment that follows a ``TabularMDP``; terminated on entering a terminal state, never truncated.

    Parameters
    ----------
    mdp : npg.exact.TabularMDP
        Its discount plays no part here. Where episodes may never end, wrap the environment in
        ``gymnasium.wrappers.TimeLimit`` before anything collects whole episodes.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, mdp: TabularMDP) -> None:
        self.mdp = mdp
        self.observation_space = spaces.Discrete(mdp.n_states)
        self.action_space = spaces.Discrete(mdp.n_actions)
        self._sampler = _Sampler(mdp)
        self._state = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """A first state drawn from ρ_0."""
        super().reset(seed=seed)
        self._state = int(self._sampler.draw(self._sampler.start, self.np_random.random())[0])
        return self._state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """One transition.

        Raises
        ------
        ValueError
            If ``action`` is none of 0, …, A − 1.
        RuntimeError
            Before the first ``reset``.
        """
        if not self.action_space.contains(action):
            raise ValueError(f"action must be an integer from 0 to {self.mdp.n_actions - 1}, got {action!r}")
        if self._state < 0:
            raise RuntimeError("call reset before the first step")
        state, reward = self._sampler.draw(self._state * self.mdp.n_actions + int(action), self.np_random.random())
        self._state = int(state)
        return self._state, float(reward), bool(self._sampler.terminal[state]), False, {}


class TabularVectorEnv(VectorEnv[Array, Array, Array]):
    """N environments that follow one ``TabularMDP``, stepped together; resets in the step after the end.

    Parameters
    ----------
    mdp : npg.exact.TabularMDP
    num_envs : int
        N.
    max_episode_steps : int, optional
        Steps after which an episode is truncated; needed where episodes may never end.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, mdp: TabularMDP, num_envs: int = 1, max_episode_steps: int | None = None) -> None:
        at_least("num_envs", num_envs, 1)
        if max_episode_steps is not None:
            at_least("max_episode_steps", max_episode_steps, 1)
        self.mdp, self.num_envs, self.max_episode_steps = mdp, num_envs, max_episode_steps
        self.single_observation_space = spaces.Discrete(mdp.n_states)
        self.single_action_space = spaces.Discrete(mdp.n_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._sampler = _Sampler(mdp)
        self._state: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """First states drawn from ρ_0, in all columns."""
        super().reset(seed=seed)
        self._t = np.zeros(self.num_envs, dtype=np.int64)
        self._done = np.zeros(self.num_envs, dtype=bool)
        start = np.full(self.num_envs, self._sampler.start)
        self._state, _ = self._sampler.draw(start, self.np_random.random(self.num_envs))
        return self._state.copy(), {}

    def get_state(self) -> dict[str, Array]:
        """All that its future depends on: copies of arrays."""
        return read(self, ("_state", "_t", "_done"))

    def set_state(self, arrays: dict[str, Array]) -> None:
        """Go on from what ``get_state`` returned.

        Raises
        ------
        ValueError
            If it is no state of this environment.
        """
        check_alike("the state of the environment", self.get_state(), arrays)
        if not (arrays["_state"] < self.mdp.n_states).all():
            raise ValueError(f"states must lie in 0, …, {self.mdp.n_states - 1}, got {arrays['_state']}")
        write(self, ("_state", "_t", "_done"), arrays)

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One transition of each column, or its reset where the last one ended an episode.

        Raises
        ------
        ValueError
            If an action is none of 0, …, A − 1, or there are not N of them.
        RuntimeError
            Before the first ``reset``.
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(f"actions must be {self.num_envs} integers, got {actions.dtype} of shape {actions.shape}")
        if not 0 <= actions.min() <= actions.max() < self.mdp.n_actions:
            raise ValueError(f"actions must lie in 0, …, {self.mdp.n_actions - 1}, got {actions}")
        if self._state is None:
            raise RuntimeError("call reset before the first step")
        row = self._state * self.mdp.n_actions + actions.astype(np.int64, copy=False)
        row[self._done] = self._sampler.start
        self._state, reward = self._sampler.draw(row, self.np_random.random(self.num_envs))
        self._t += 1
        self._t[self._done] = 0
        terminated = self._sampler.terminal[self._state]
        truncated = self._t >= (self.max_episode_steps or np.inf)
        self._done = terminated | truncated
        return self._state.copy(), reward, terminated, truncated, {}
