"""How trajectories are collected from any Gymnasium environment.

One collector steps a scalar ``Env`` directly or a ``VectorEnv`` in each of Gymnasium's autoreset modes, and hands
out the same arrays: ``next_obs`` is always the true successor, never the first observation of the next episode,
and what is not a transition (a reset step, padding) is marked by ``valid`` and zero.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from .._state import check_alike
from .._typing import Array, Inputs, Rng
from ..envs.spaces import Env, all_finite, normalizers, single_spaces, to_env
from ..trajectories import Episodes, Steps, Trajectories
from .snapshots import Snapshots
from .statistics import frozen_statistics, load_statistics, statistics

_PLACE = ("obs", "t", "return", "resetting", "sent")
"""Where a collector is within episodes, but for its environment."""


Act = Callable[[Array, Rng, bool], tuple[Array, Inputs]]
"""``act`` of an ``Actor``, or what else acts as it does."""


class Actor(Protocol):
    """What the collector needs of an agent."""

    def act(self, obs: Array, rng: Rng, explore: bool = True) -> tuple[Array, Inputs]:
        """Actions for a batch of observations, and the features they were chosen on: new arrays each time.

        An agent that divides by log b has a method ``behaviour_log_prob(x, a)`` too, for the actions just drawn.
        """


class Collector:
    """Steps one environment and records what happens; ``with`` gives the environment back as it was.

    Parameters
    ----------
    env : gymnasium.Env or gymnasium.vector.VectorEnv
    seed : int
        Of a scalar environment, and of each one in a ``SyncVectorEnv``, the k-th episode is seeded from it; of another
        vector environment, the k-th reset by ``reset``. So any collection can be repeated.

    Attributes
    ----------
    resets : int
        The number of resets of the whole environment so far.
    finished : list of (return, length)
        Of each episode finished since the list was last cleared, with ``Episodes`` in the order in which they began;
        returns are undiscounted and ``raw``.
    restorable : bool
        Whether there is a way back into the episodes of the environment: ``npg.lab.snapshots``.
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
        self._discrete = isinstance(self.observation_space, spaces.Discrete)
        self._normalizer = normalizers(env).get("reward")
        self._obs: Any = None
        self._snapshots = Snapshots(env, seed)
        self.restorable = self._snapshots.possible

    def __enter__(self) -> "Collector":
        return self

    def __exit__(self, *exception: object) -> None:
        self._snapshots.release()

    def reset(self) -> None:
        """Begin new episodes in all columns."""
        sequence = np.random.SeedSequence(self.seed, spawn_key=(0, self.resets))
        seeds: Any = [int(s) for s in sequence.generate_state(self.n_columns)]
        self.resets += 1
        if not isinstance(self.env.unwrapped, AsyncVectorEnv):
            seeds = None if self._snapshots.recorders else seeds[0]
        self._begin(self._received(self.env.reset(seed=seeds)[0]))

    def _begin(self, obs: Array) -> None:
        self._obs = obs
        self._t = np.zeros(self.n_columns, dtype=np.int64)
        self._return = np.zeros(self.n_columns)
        self._scalar_t, self._scalar_return = 0, 0.0
        self._resetting = np.zeros(self.n_columns, dtype=bool)
        space: Any = self.env.action_space
        self._sent: Any = np.zeros(space.shape, space.dtype)

    def raw(self, rewards: Any) -> Any:
        """Rewards of the last step as they were before ``NormalizeReward``, if there is one, divided them."""
        if self._normalizer is None:
            return rewards
        return rewards * np.sqrt(self._normalizer.return_rms.var + self._normalizer.epsilon)

    def state(self) -> dict[str, Array]:
        """Copies of all that the next collection goes on from, but for what ``env`` normalises by, by name.

        Within episodes, that needs a way back there: ``restorable``.
        """
        arrays = {"resets": np.array(self.resets), "finished": np.array(self.finished, dtype=float).reshape(-1, 2)}
        within = self._obs is not None
        if within:
            if self.mode is None:
                self._t[0], self._return[0] = self._scalar_t, self._scalar_return
            arrays |= {name: np.array(getattr(self, f"_{name}")) for name in _PLACE}
        return arrays | self._snapshots.save(within)

    def load_state(self, arrays: dict[str, Array]) -> None:
        """Take back what ``state`` returned, after the statistics by which ``env`` normalises.

        Raises
        ------
        ValueError
            If it is not the state of such a collector, or if its environment does not come back to where it was.
        """
        within = "obs" in arrays
        if within and not self.restorable:
            raise ValueError(f"the state must be between episodes, because {self.env} has no way back into one")
        with frozen_statistics(self.env):
            self._obs = None
            if within and not self._snapshots.recorders:
                self.reset()
            elif within:
                space = self.observation_space
                self._begin(np.zeros((self.n_columns, *(space.shape or ())), space.dtype))
            own = self.state()
            for name in own.keys() & {"finished", "actions", "last.actions"}:  # as many as there are
                count = arrays[name].shape[:1] if name in arrays else ()
                own[name] = np.zeros((*count, *own[name].shape[1:]), own[name].dtype)
            check_alike("the state of the collection", own, arrays)
            self._check_counts(arrays)
            self._snapshots.restore(
                arrays if within else {name: a for name, a in arrays.items() if name in self._snapshots.save(False)},
                lambda obs: self._received(obs).tobytes() == arrays["obs"].tobytes(),
            )
        if within:
            for name in _PLACE:
                setattr(self, f"_{name}", arrays[name].copy())
            self._scalar_t, self._scalar_return = int(self._t[0]), float(self._return[0])
        self.resets = int(arrays["resets"])
        self.finished = [(float(total), int(length)) for total, length in arrays["finished"]]

    def _check_counts(self, arrays: dict[str, Array]) -> None:
        lengths = arrays["finished"][:, 1]
        agree = [arrays["resets"] >= 0, (lengths >= 0).all(), np.array_equal(lengths, lengths.round())]
        if "obs" in arrays:
            t, resetting = arrays["t"], arrays["resetting"]
            agree.append((t >= 0).all() and not t[resetting].any())
            agree.append(not resetting.any() or self.mode is AutoresetMode.NEXT_STEP)
            for name, space in (("obs", self.observation_space), ("sent", self.action_space)):
                if isinstance(space, spaces.Discrete):  # or zeros, before the first step
                    inside = (arrays[name] >= space.start) & (arrays[name] < space.start + space.n)
                    agree.append((inside | (arrays[name] == 0)).all())
            if "lengths" in arrays:
                agree.append(np.array_equal(t, np.where(resetting, 0, arrays["lengths"])))
        if not all(agree):
            shown = {name: array for name, array in arrays.items() if array.size <= self.n_columns}
            raise ValueError(f"the state of the collection must have counts that agree, got {shown}")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever the ``with`` does to the environment, the collection goes on from where it was.

        Where there is no way back, the environment refuses.
        """
        before: dict[str, Array] = {}
        gathered = statistics(self.env)

        def use() -> None:
            if not (self.restorable or self._obs is None):
                raise ValueError(f"{self.env} is being trained on, and has no way back: evaluate on another one")
            if not before:
                before.update(self.state())

        with self._snapshots.watched(use):
            yield
        if before:
            load_statistics(self.env, gathered)
            self.load_state(before)

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
        log_prob = getattr(agent, "behaviour_log_prob", None) if explore else None
        record = list(self._steps(agent.act, log_prob, request, rng, explore))
        if self.mode is None and len(record) == 1:
            traj = _one_step(*record[0])
        else:
            traj = Trajectories(*map(_stack, zip(*record, strict=True)))
        valid = traj.valid
        if self.mode and not valid.all():
            for column in traj.arrays().values():
                for part in column if isinstance(column, tuple) else (column,):
                    part[~valid] = 0
        if cut:
            traj.truncated[-1] |= traj.valid[-1] & ~traj.terminated[-1]
            self._obs = None
        return traj

    def play(self, act: Act, episodes: int, rng: Rng, explore: bool = True) -> None:
        """``collect`` of ``Episodes``, of which nothing is kept but ``finished``, however long they are."""
        deque(self._steps(act, None, Episodes(episodes), rng, explore), maxlen=0)

    def _steps(
        self, act: Act, log_prob: Any, request: Steps | Episodes, rng: Rng, explore: bool
    ) -> Iterator[tuple[Any, ...]]:
        episodic = isinstance(request, Episodes)
        if episodic or self._obs is None:
            self.reset()
        self._order: list[tuple[int, int]] = []
        before, n = len(self.finished), 0
        # Episodes still to come in each column; with Steps, more than can be finished.
        left = -(-request.n // self.n_columns) if episodic else request.n + 1
        self._left: Any = np.full(self.n_columns, left) if self.mode else [left]
        self._columns_open = self.n_columns
        step = self._step_vector if self.mode else self._step_scalar
        while self._columns_open if episodic else n < request.n:
            obs = self._obs
            action, x = act(obs, rng, explore)
            log_b = log_prob and log_prob(x, action)
            yield obs, x, action, *step(action), log_b
            n += 1
        if episodic:  # as they began: the last ones to end are the long ones
            self._obs = None
            self.finished[before:] = [
                episode for _, episode in sorted(zip(self._order, self.finished[before:], strict=True))
            ]

    def _received(self, obs: Any, reward: Any = 0.0) -> Array:
        """A copy of what the environment returned, with the leading axis N; refused if it is not finite."""
        if self._discrete and np.asarray(obs).dtype.kind not in "iu":
            raise ValueError(f"the environment returned an observation that is no integer: {obs}")
        obs = np.array(obs, dtype=self.observation_space.dtype, order="C")  # sums of other orders round otherwise
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
            self._order.append((-int(self._left[column]), column))
            self._left[column] -= 1
            self._columns_open -= not self._left[column]
        self._t[column] = self._return[column] = 0

    def _step_scalar(self, action: Array) -> tuple[Any, ...]:
        # Time and return are Python numbers here: an array element costs as much as the rest of the bookkeeping.
        t = self._scalar_t
        raw, reward, terminated, truncated, _ = self.env.step(self._to_env(action))
        try:
            reward = float(reward)
        except (TypeError, ValueError):
            raise ValueError(f"the environment returned a reward that is no number: {reward!r}") from None
        terminated, truncated = bool(terminated), bool(truncated)
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
        sent = self._to_env(action)
        self._sent = sent.astype(self._sent.dtype)  # wrappers may write into what they get
        raw, reward, terminated, truncated, info = self.env.step(sent)
        reward, terminated, truncated = np.array(reward, dtype=float), np.array(terminated), np.array(truncated)
        for name, array in (("rewards", reward), ("flags", terminated), ("flags", truncated)):
            if array.shape != t.shape or array.dtype.kind not in "fbui"[name == "flags" :]:
                raise ValueError(f"the environment must return {len(t)} {name}, got {array!r}")
        terminated, truncated = terminated.astype(bool, copy=False), truncated.astype(bool, copy=False)
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
    if first is None:
        return None
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
    log_b: Array | None,
) -> Trajectories:
    # What _stack makes of one row, without copies: the online methods' case, where stacking costs most of a step.
    if isinstance(x, tuple):
        first = x[0][None]
        x = first, first if x[1] is x[0] else x[1][None]
    else:
        x = x[None]
    flags = np.array([[terminated]]), np.array([[truncated]]), np.array([[valid]])
    last = np.array([[t]]), None if log_b is None else log_b[None]
    return Trajectories(obs[None], x, action[None], np.array([[reward]]), next_obs[None], *flags, *last)
