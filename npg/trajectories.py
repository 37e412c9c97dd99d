"""Recorded trajectories, and how much of them a method asks for."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._checks import at_least, has_shape
from ._typing import Array, Inputs
from .features import rows


class DivergenceError(ArithmeticError):
    """θ, a critic or an action has become infinite or NaN."""


@dataclass(frozen=True)
class Steps:
    """Collect n steps of each column; episodes go on from one collection to the next."""

    n: int

    def __post_init__(self) -> None:
        at_least("Steps", self.n, 1)


LEAST_LOG_B = -100.0
"""A log b(a|s) below this is taken for a mistake: no action that has been drawn is so improbable."""

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
    log_b : (T, N), optional
        log b(A_t|S_t), the logarithm of the probability or density with which the behaviour took the action.
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
    log_b: Array | None = None

    def __getitem__(self, columns: Any) -> "Trajectories":
        index = (slice(None), [columns] if isinstance(columns, int | np.integer) else columns)
        return Trajectories(**{name: rows(value, index) for name, value in self.arrays().items()})  # type: ignore[arg-type]

    def arrays(self) -> dict[str, Inputs]:
        """What is recorded, by name; ``log_b`` where it is."""
        return {name: getattr(self, name) for name in self.__slots__ if getattr(self, name) is not None}

    def behaviour_log_prob(self) -> Array:
        """log b(A_t|S_t), for ratios: (T, N).

        Of recorded data this is all that is known of b. It does not say which actions b never takes, nor whether
        what was recorded is the probability of what was done, Eq. (12.24).

        Raises
        ------
        ValueError
            If it was not recorded, or in a valid row is not finite, below ``LEAST_LOG_B``, or, where actions are
            discrete, positive: then it is no logarithm.
        """
        if self.log_b is None:
            raise ValueError("log_b must be the log b(A|S) of each row for a method that divides by b, got None")
        has_shape("log_b", np.asarray(self.log_b), self.valid.shape, "the rewards")
        log_b = np.asarray(self.log_b)
        discrete = self.actions.dtype.kind in "iu"  # whose probabilities are at most 1, but for rounding
        good = (log_b >= LEAST_LOG_B) & (log_b <= (1e-9 if discrete else sys.float_info.max))
        if np.count_nonzero(good) < good.size and not (good | ~self.valid).all():
            t, n = np.argwhere(self.valid & ~good)[0]
            raise ValueError(
                f"log_b must be finite and at least {LEAST_LOG_B:g} for an action that was taken"
                f"{', and at most 0 for one of finitely many,' * discrete} "
                f"got {log_b[t, n]} in row {t} of column {n} for action {self.actions[t, n]}"
            )
        return log_b

    def rows(self, *arrays: Array) -> tuple[Any, ...]:
        """The valid rows of x, of the actions, and of each of ``arrays`` (T, N, …): B rows, (B, …) each."""
        return rows(self.x, self.valid), self.actions[self.valid], *(array[self.valid] for array in arrays)

    def step(self) -> tuple[Inputs, Array, Array, int]:
        """Of one step of each environment (T = 1): x, the actions, which are valid, and how many: (N, …).

        Raises
        ------
        ValueError
            If T is not 1, or none is valid.
        """
        if len(self.valid) != 1:
            raise ValueError(f"the trajectories must be one step of each environment, got {len(self.valid)}")
        valid = self.valid[0]
        n = int(np.count_nonzero(valid))
        if not n:
            raise ValueError("nothing is learned from reset steps alone: pass over trajectories without a valid row")
        return rows(self.x, 0), self.actions[0], valid, n

    def by_step(self) -> Iterator["Trajectories"]:
        """The times t = 0, 1, … with a valid row, each as trajectories of T = 1: what an online method learns from."""
        for t in np.flatnonzero(self.valid.any(axis=1)):
            yield Trajectories(**{name: rows(value, slice(t, t + 1)) for name, value in self.arrays().items()})  # type: ignore[arg-type]

    def observations(self) -> tuple[Array, Array]:
        """S and S' of one step of each environment (T = 1), of which at least one is valid: (N, …).

        Rows that are no transitions get those of one that is, because their zeros need not be an observation.
        """
        obs, next_obs, valid = self.obs[0], self.next_obs[0], self.valid[0]
        if np.count_nonzero(valid) < len(valid):
            index = np.where(valid, np.arange(len(valid)), valid.argmax())
            obs, next_obs = obs[index], next_obs[index]
        return obs, next_obs

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
