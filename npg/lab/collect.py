"""How trajectories are collected from any Gymnasium environment.

One collector steps a scalar ``Env`` directly or a ``VectorEnv`` in each of Gymnasium's autoreset modes, and hands
out the same arrays: ``next_obs`` is always the true successor, never the first observation of the next episode,
and what is not a transition (a reset step, padding) is marked by ``valid`` and zero.
"""

import math
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from .._typing import Array, Inputs, Rng
from ..envs.spaces import Env, all_finite, normalizers, single_spaces, to_env
from ..trajectories import Episodes, Steps, Trajectories


class Actor(Protocol):
    """What the collector needs of an agent."""

    def act(self, obs: Array, rng: Rng, explore: bool = True) -> tuple[Array, Inputs]:
        """Actions for a batch of observations, and the features they were chosen on: new arrays each time."""


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
        self._to_env = to_env(self.action_space, vector=self.mode is not None)
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
        obs_finite = all_finite(obs)
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
