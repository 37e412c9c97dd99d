"""N copies of a task, stepped together by NumPy, as a Gymnasium vector environment.

A ``Task`` is dynamics alone, on states (k, N), a column for each copy. ``TaskVectorEnv`` does the rest: spaces, checks,
seeds, time limits, resets, and its state to go on from.
"""

from copy import deepcopy
from typing import Any, Protocol, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .._checks import at_least
from .._state import check_alike
from .._typing import Array, Rng
from .spaces import all_finite
from .state import read, write

_STATE = ("_state", "_t", "_done")


class Task(Protocol):
    """What is asked of a task: the spaces of one copy, and how N of them begin, go on and are seen."""

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """A Box of vectors (d,)."""

    @property
    def action_space(self) -> spaces.Space[Any]:
        """The integers from 0, or a Box of vectors (m,)."""

    def first(self, rng: Rng, n: int, options: dict[str, Any]) -> Array:
        """First states of n copies, in float64: (k, n); ``options`` are those of ``reset``, or none.

        Raises
        ------
        ValueError
            If an option is of no use.
        """

    def step(self, s: Array, a: Array, t: Array, rng: Rng) -> tuple[Array, Array]:
        """Move the states ``s`` (k, N) in place.

        Parameters
        ----------
        s : (k, N)
        a : (N,) integers or (N, m)
            Actions; those of a Box may lie outside of it.
        t : (N,)
            Steps that each episode has had.
        rng : numpy.random.Generator

        Returns
        -------
        rewards, terminated : (N,) float64, (N,) bool
            New arrays.
        """

    def observe(self, s: Array) -> Array:
        """Observations of states, (N, d): a new array, whose columns may be contiguous."""


class TaskVectorEnv(VectorEnv[Array, Array, Array]):
    """N copies of a ``Task``, stepped together.

    One generator, seeded by one integer, draws for all columns: they are not N scalar environments with seeds of their
    own, and a column depends on how many others there are.

    Parameters
    ----------
    task : Task
    num_envs : int
        N.
    max_episode_steps : int, optional
        Steps after which an episode is truncated; never by default.
    autoreset_mode : gymnasium.vector.AutoresetMode or str
        NEXT_STEP: a column whose episode has ended is reset in the next step, which ignores its action and returns
        reward 0 and no flags. SAME_STEP: it is reset at once, and ``info`` has the last observation, as that of
        Gymnasium's ``SyncVectorEnv``: ``final_obs`` (N,) of objects, None where ``_final_obs`` (N,) is False.

    Raises
    ------
    ValueError
        For another mode, or a number that is no positive integer.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        at_least("num_envs", num_envs, 1)
        if max_episode_steps is not None:
            at_least("max_episode_steps", max_episode_steps, 1)
        self.mode = AutoresetMode(autoreset_mode)
        if self.mode is AutoresetMode.DISABLED:
            raise ValueError(f"autoreset_mode must be NEXT_STEP or SAME_STEP, got {autoreset_mode!r}")
        self.metadata = {"render_modes": [], "autoreset_mode": self.mode}
        self.task, self.num_envs, self.max_episode_steps = task, num_envs, max_episode_steps
        self.single_observation_space, self.single_action_space = deepcopy((task.observation_space, task.action_space))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._limit = max_episode_steps or np.iinfo(np.int64).max
        self._state: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """First states in all columns.

        Parameters
        ----------
        seed : int, optional
            Of all columns together.
        options : dict, optional
            What the scalar environment takes, for these first states alone: later episodes begin without.

        Raises
        ------
        ValueError
            If an option is of no use.
        """
        super().reset(seed=seed)
        self._state = self.task.first(self.np_random, self.num_envs, options or {})
        self._t = np.zeros(self.num_envs, dtype=np.int64)
        self._done = np.zeros(self.num_envs, dtype=bool)
        return self.task.observe(self._state), {}

    def get_state(self) -> dict[str, Array]:
        """All that its future depends on: copies of arrays."""
        return read(self, _STATE)

    def set_state(self, arrays: dict[str, Array]) -> None:
        """Go on from what ``get_state`` returned; the environment has been reset.

        Raises
        ------
        ValueError
            If it is no state of this environment.
        """
        check_alike("the state of the environment", self.get_state(), arrays)
        if self.mode is AutoresetMode.SAME_STEP and arrays["_done"].any():
            raise ValueError(f"no column may be still to be reset in mode SAME_STEP, got {arrays['_done']}")
        write(self, _STATE, arrays)

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One transition of each column, or its reset: see ``autoreset_mode``.

        Parameters
        ----------
        actions : (N,) integers or (N, m) floats
            A Box bounds what they do, not what they are.

        Returns
        -------
        observations, rewards, terminated, truncated, info
            (N, d), (N,), (N,), (N,); new arrays.

        Raises
        ------
        ValueError
            If the actions have another shape or dtype, or are not finite or not in 0, …, A − 1.
        RuntimeError
            Before the first ``reset``.
        """
        actions = self._checked(actions)
        if self._state is None:
            raise RuntimeError("call reset before the first step")
        rewards, terminated = self.task.step(self._state, actions, self._t, self.np_random)
        self._t += 1
        truncated = self._t >= self._limit
        info: dict[str, Any] = {}
        if self.mode is AutoresetMode.NEXT_STEP:
            columns = self._done.nonzero()[0]
            if len(columns):
                for array in (rewards, terminated, truncated):
                    array[columns] = 0
                self._restart(columns)
            self._done = terminated | truncated
        else:
            done = terminated | truncated
            columns = done.nonzero()[0]
            if len(columns):
                info = self._final(done, columns)
                self._restart(columns)
        return self.task.observe(self._state), rewards, terminated, truncated, info

    def _restart(self, columns: Array) -> None:
        self._state[:, columns] = self.task.first(self.np_random, len(columns), {})
        self._t[columns] = 0

    def _final(self, done: Array, columns: Array) -> dict[str, Any]:
        obs, final = self.task.observe(self._state), np.full(self.num_envs, None, dtype=object)
        for column in columns:  # one by one, as an array of objects takes rows of another
            final[column] = obs[column]
        return {"final_obs": final, "_final_obs": done, "final_info": {}, "_final_info": done.copy()}

    def _checked(self, actions: Array) -> Array:
        actions, space = np.asarray(actions), cast(Any, self.single_action_space)
        discrete = isinstance(space, spaces.Discrete)
        if actions.shape != self.action_space.shape or actions.dtype.kind not in ("iu" if discrete else "f"):
            kind = "integers" if discrete else "floats"
            expected = f"actions must be {kind} of shape {self.action_space.shape}"
            raise ValueError(f"{expected}, got {actions.dtype} of shape {actions.shape}")
        if not discrete:
            if not all_finite(actions):
                raise ValueError(f"actions must be finite, got {actions}")
            return actions
        integers = actions.astype(np.int64, copy=False)
        if np.maximum.reduce(integers.view(np.uint64)) >= space.n:  # where negative ones are large
            raise ValueError(f"actions must lie in 0, …, {space.n - 1}, got {actions}")
        return integers
