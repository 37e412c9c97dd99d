"""Trajectories, and how they are collected from any Gymnasium environment.

One collector steps a scalar ``Env`` directly or a ``VectorEnv`` in each of Gymnasium's autoreset modes, and hands
out the same arrays: ``next_obs`` is always the true successor, never the first observation of the next episode,
and what is not a transition (a reset step, padding) is marked by ``valid`` and zero.
"""

# mypy: disable-error-code="no-any-return"

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from ._checks import at_least
from ._typing import Array, Inputs, Rng
from .features import rows

Env = gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]


def single_spaces(env: Env) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """Observation and action space of one environment, or of each one in a vector."""
    if isinstance(env, VectorEnv):
        return env.single_observation_space, env.single_action_space
    return env.observation_space, env.action_space


def normalizers(env: Env) -> dict[str, Any]:
    """Gymnasium's ``NormalizeObservation`` and ``NormalizeReward`` around ``env``, those that there are.

    Returns
    -------
    dict
        The wrappers by what they normalise, ``"observation"`` and ``"reward"``.

    Raises
    ------
    ValueError
        If there are two of a kind.
    """
    found: dict[str, Any] = {}
    while isinstance(env, gymnasium.Wrapper | VectorWrapper):
        for name, kinds in (
            ("observation", (wrappers.NormalizeObservation, wrappers.vector.NormalizeObservation)),
            ("reward", (wrappers.NormalizeReward, wrappers.vector.NormalizeReward)),
        ):
            if isinstance(env, kinds):
                if name in found:
                    raise ValueError(f"the {name}s of env must be normalised once, got two wrappers: {found[name]}")
                found[name] = env
        env = env.env
    return found


class DivergenceError(ArithmeticError):
    """θ, a critic or an action has become infinite or NaN."""


@dataclass(frozen=True)
class Steps:
    """Collect n steps of each column; episodes go on from one collection to the next."""

    n: int

    def __post_init__(self) -> None:
        at_least("Steps", self.n, 1)


ONE_STEP = Steps(1)
"""What an online method learns from, asked for so often that it is made once."""


@dataclass(frozen=True)
class Episodes:
    """Collect n whole episodes, the same number in each column (n rounded up to a multiple of N).

    Taking the first n to finish instead would favour short episodes.
    """

    n: int

    def __post_init__(self) -> None:
        at_least("Episodes", self.n, 1)


class Actor(Protocol):
    """What the collector needs of an agent."""

    def act(self, obs: Array, rng: Rng, explore: bool = True) -> tuple[Array, Inputs]:
        """Actions for a batch of observations, and the features they were chosen on: new arrays each time."""


@dataclass(slots=True)
class Trajectories:
    """Recorded transitions, time-major: row t of column n is one step of environment n.

    ``traj[columns]`` (an int, slice, or index array) is the ``Trajectories`` of some columns.

    Attributes
    ----------
    obs : (T, N, ...)
        S_t.
    x : (T, N, ...) or a pair of them
        Features of S_t that the action was chosen on.
    actions : (T, N) or (T, N, m)
        A_t as it was sampled, before it was clipped to the action space.
    rewards : (T, N)
        R_{t+1}, as the agent learns from it: normalised where the environment normalises it.
    next_obs : (T, N, ...)
        S_{t+1}, the true successor, also at the end of an episode.
    terminated, truncated : (T, N) boolean
        Whether S_{t+1} is terminal; whether the episode was cut at S_{t+1}.
    valid : (T, N) boolean
        False on autoreset steps and padding, whose rows are zero.
    t : (T, N) integers
        Time of S_t within its episode.
    """

    obs: Array
    x: Inputs
    actions: Array
    rewards: Array
    next_obs: Array
    terminated: Array
    truncated: Array
    valid: Array
    t: Array

    def __getitem__(self, columns: Any) -> "Trajectories":
        index = (slice(None), [columns] if isinstance(columns, int | np.integer) else columns)
        return Trajectories(**{name: rows(getattr(self, name), index) for name in self.__slots__})  # type: ignore[arg-type]

    def episodes(self) -> Array:
        """The number of the episode of each row, by the order in which columns began them: (T, N).

        Raises
        ------
        ValueError
            Unless these are whole episodes, as many in each column.
        """
        starts, ends = (self.valid & flags for flags in (self.t == 0, self.terminated | self.truncated))
        if not (starts[0].all() and np.ptp(starts.sum(axis=0)) == 0 and np.array_equal(starts.sum(0), ends.sum(0))):
            raise ValueError("the trajectories must be whole episodes, as many in each column: collect Episodes")
        number = np.cumsum(starts, axis=0) - 1
        return number * self.rewards.shape[1] + np.arange(self.rewards.shape[1])

    def episode_returns(self) -> Array:
        """Undiscounted return of each of the ``episodes``: (M,)."""
        return np.bincount(self.episodes()[self.valid], weights=self.rewards[self.valid])


def _all_finite(a: Array) -> bool:
    # One BLAS call finds nearly every finite array finite; the exact test is for squares that overflow.
    return a.dtype.kind != "f" or math.isfinite(np.vdot(a, a)) or bool(np.isfinite(a).all())


class Collector:
    """Steps one environment and records what happens.

    Parameters
    ----------
    env : gymnasium.Env or gymnasium.vector.VectorEnv
    seed : int
        The k-th reset of the environment is seeded from (``seed``, k), so that any collection can be repeated.

    Attributes
    ----------
    resets : int
        k, the number of seeded resets so far.
    finished : list of (return, length)
        Of each episode finished since the list was last cleared; returns are undiscounted and ``raw``.
    """

    def __init__(self, env: Env, seed: int) -> None:
        self.env = env
        self.seed = seed
        self.resets = 0
        self.finished: list[tuple[float, int]] = []
        self.mode: AutoresetMode | None = None
        if isinstance(env, VectorEnv):
            self.mode = env.metadata.get("autoreset_mode")
            if not isinstance(self.mode, AutoresetMode):
                raise ValueError(
                    f"the environment's metadata['autoreset_mode'] must be an AutoresetMode, got {self.mode!r}"
                )
        self.n_columns = env.num_envs if isinstance(env, VectorEnv) else 1
        self.observation_space, self.action_space = single_spaces(env)
        self._to_env = _env_action(self.action_space, vector=self.mode is not None)
        self._normalizer = normalizers(env).get("reward")
        self._obs: Any = None

    def reset(self) -> None:
        """Begin new episodes in all columns, seeded from (seed, k)."""
        sequence = np.random.SeedSequence(self.seed, spawn_key=(0, self.resets))
        seeds = [int(s) for s in sequence.generate_state(self.n_columns)]
        self.resets += 1
        per_column = isinstance(self.env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        self._obs = self._received(self.env.reset(seed=seeds if per_column else seeds[0])[0])  # type: ignore[arg-type]
        self._t = np.zeros(self.n_columns, dtype=np.int64)
        self._return = np.zeros(self.n_columns)
        self._scalar_t, self._scalar_return = 0, 0.0
        self._resetting = np.zeros(self.n_columns, dtype=bool)

    def raw(self, rewards: Any) -> Any:
        """Rewards of the last step as they were before ``NormalizeReward``, if there is one, divided them."""
        if self._normalizer is None:
            return rewards
        return rewards * np.sqrt(self._normalizer.return_rms.var + self._normalizer.epsilon)

    def collect(
        self, agent: Actor, request: Steps | Episodes, rng: Rng, explore: bool = True, cut: bool = False
    ) -> Trajectories:
        """Let ``agent`` act and record what happens: with ``Episodes``, samples of p_θ(τ), Eq. (1.2).

        Parameters
        ----------
        agent : Actor
        request : Steps or Episodes
            ``Episodes`` begin with a seeded reset; ``Steps`` go on where the last collection ended.
        rng : numpy.random.Generator
            For the agent's sampling.
        explore : bool
            False for the agent's deterministic action.
        cut : bool
            With ``Steps``: mark rows still open at the end as truncated, and begin the next collection with a
            seeded reset.

        Raises
        ------
        ValueError
            If the environment returns an observation or a reward that is not finite.
        DivergenceError
            If the agent's action is not finite.
        """
        episodic = isinstance(request, Episodes)
        if episodic or self._obs is None:
            self.reset()
        # Episodes still to come in each column; with Steps, more than can be finished.
        left = -(-request.n // self.n_columns) if episodic else request.n + 1
        self._left: Any = np.full(self.n_columns, left) if self.mode else [left]
        self._columns_open = self.n_columns
        step = self._step_vector if self.mode else self._step_scalar
        record: list[tuple[Any, ...]] = []
        while self._columns_open if episodic else len(record) < request.n:
            obs = self._obs
            action, x = agent.act(obs, rng, explore)
            record.append((obs, x, action, *step(action)))
        if self.mode is None and len(record) == 1:
            traj = _one_step(*record[0])
        else:
            traj = Trajectories(*map(_stack, zip(*record, strict=True)))
        valid = traj.valid
        if self.mode and not valid.all():
            for name in Trajectories.__slots__:
                column = getattr(traj, name)
                for part in column if isinstance(column, tuple) else (column,):
                    part[~valid] = 0
        if cut:
            traj.truncated[-1] |= traj.valid[-1] & ~traj.terminated[-1]
        if cut or episodic:
            self._obs = None
        return traj

    def _received(self, obs: Any, reward: Any = 0.0) -> Array:
        """A copy of what the environment returned, with the leading axis N; refused if it is not finite."""
        obs = np.array(obs, dtype=self.observation_space.dtype)
        if self.mode is None:
            obs = obs[None]
        obs_finite = _all_finite(obs)
        if not (obs_finite and (math.isfinite(reward) if self.mode is None else np.isfinite(reward).all())):
            kind, value = ("reward", reward) if obs_finite else ("observation", obs)
            raise ValueError(f"the environment returned a {kind} that is not finite: {value}")
        return obs

    def _finish(self, column: int) -> None:
        if self._left[column]:
            self.finished.append((float(self._return[column]), int(self._t[column])))
            self._left[column] -= 1
            self._columns_open -= not self._left[column]
        self._t[column] = self._return[column] = 0

    def _step_scalar(self, action: Array) -> tuple[Any, ...]:
        # Time and return are Python numbers here: an array element costs as much as the rest of the bookkeeping.
        t = self._scalar_t
        raw, reward, terminated, truncated, _ = self.env.step(self._to_env(action))
        reward, terminated, truncated = float(reward), bool(terminated), bool(truncated)
        next_obs = self._obs = self._received(raw, reward)
        self._scalar_t += 1
        self._scalar_return += reward if self._normalizer is None else self.raw(reward)
        if terminated or truncated:
            self._t[0], self._return[0] = self._scalar_t, self._scalar_return
            self._finish(0)
            self._scalar_t, self._scalar_return = 0, 0.0
            if self._columns_open:
                self._obs = self._received(self.env.reset()[0])
        return reward, next_obs, terminated, truncated, True, t

    def _step_vector(self, action: Array) -> tuple[Any, ...]:
        t = self._t.copy()
        raw, reward, terminated, truncated, info = self.env.step(self._to_env(action))
        reward, terminated, truncated = (
            np.array(reward, dtype=float),
            np.array(terminated, dtype=bool),
            np.array(truncated, dtype=bool),
        )
        self._obs = next_obs = self._received(raw, reward)
        running = ~self._resetting
        valid = running & (self._left > 0)
        self._t += running
        self._return += self.raw(reward) * running
        done = (terminated | truncated) & running
        if done.any():
            if self.mode is AutoresetMode.SAME_STEP:
                next_obs = next_obs.copy()
                for n in done.nonzero()[0]:
                    next_obs[n] = info["final_obs"][n]
                self._received(next_obs)
            elif self.mode is AutoresetMode.DISABLED:
                self._obs = self._received(self.env.reset(options={"reset_mask": done})[0])
            for n in done.nonzero()[0]:
                self._finish(int(n))
        if self.mode is AutoresetMode.NEXT_STEP:
            self._resetting = done
        return reward, next_obs, terminated, truncated, valid, t


def _stack(items: Any) -> Any:
    # The scalar path records plain numbers: (T,) -> (T, 1).
    first = items[0]
    if isinstance(first, tuple):
        if first[0] is first[1]:
            return (_stack([x for x, _ in items]),) * 2
        return tuple(map(_stack, zip(*items, strict=True)))
    stacked = np.array(items)
    return stacked if stacked.ndim > 1 else stacked[:, None]


def _one_step(
    obs: Array,
    x: Inputs,
    action: Array,
    reward: float,
    next_obs: Array,
    terminated: bool,
    truncated: bool,
    valid: bool,
    t: int,
) -> Trajectories:
    # What _stack makes of one row, without copies: the online methods' case, where stacking costs most of a step.
    if isinstance(x, tuple):
        first = x[0][None]
        x = first, first if x[1] is x[0] else x[1][None]
    else:
        x = x[None]
    flags = np.array([[terminated]]), np.array([[truncated]]), np.array([[valid]])
    return Trajectories(obs[None], x, action[None], np.array([[reward]]), next_obs[None], *flags, np.array([[t]]))


def _env_action(space: spaces.Space[Any], vector: bool) -> Callable[[Array], Any]:
    """From sampled actions (N, …) to what the environment takes: shifted by its start, or clipped to its Box."""
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return (lambda a: a + start) if vector else (lambda a: int(a[0]) + start)
    if not isinstance(space, spaces.Box):
        raise TypeError(f"action space must be Box or Discrete, got {space}")
    shape = (-1, *space.shape) if vector else space.shape
    low, high = space.low.astype(float), space.high.astype(float)
    dtype = space.dtype
    integers = dtype.kind in "iu"

    def clipped(a: Array) -> Array:
        if not _all_finite(a):
            raise DivergenceError(f"the policy chose the action {a}, which is not finite")
        a = a.reshape(shape).clip(low, high)
        return np.asarray(np.rint(a) if integers else a, dtype=dtype)

    return clipped
