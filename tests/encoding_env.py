"""Environments whose observations say where they come from, and an agent that can be predicted as easily.

An observation is (column, episode, step): which environment of a vector this is, how many episodes it has begun (these
two count from 1, so that no observation is zero), and the time within the episode. The reward adds the action that
arrived. Episodes follow a script.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
KINDS = ["scalar", *MODES]

BOX = spaces.Box(np.float32([-1, -1.5]), np.float32([1.5, 0.5]))
DISCRETE = spaces.Discrete(3, start=-1)


class Episode(NamedTuple):
    """One line of a script: how long an episode is, and which flags its last step carries."""

    length: int
    terminated: bool = True
    truncated: bool = False


def encode(place: Sequence[int], discrete: bool) -> Any:
    """The observation at (column, episode, step), in the Discrete one two, four and two decimal digits."""
    if discrete:
        column, episode, step = place
        return (10**4 * column + episode) * 100 + step
    return np.array(place, dtype=np.float32)


def decode(obs: np.ndarray) -> np.ndarray:
    """(B, 3): the place that each observation of a batch encodes."""
    obs = np.asarray(obs)
    return obs[:, None] // [10**6, 10**2, 1] % [100, 10**4, 100] if obs.dtype.kind == "i" else obs.astype(int)


def reward_of(place: Sequence[int], action: Any) -> float:
    """Of the step that leads to ``place``: exact in float64, whatever the order of the sums."""
    column, episode, step = place
    weights = np.arange(1, np.size(action) + 1)
    return 10**5 * column + 100 * episode + 10 * step + float(weights @ np.ravel(action))


class EncodingEnv(gymnasium.Env):
    """Plays ``script`` again and again, one line after each reset.

    ``faults`` maps (episode, step) to ("observation", "reward", "terminated" or "truncated", value): what is returned
    there instead. With ``reuse`` every observation is the same array, written anew. ``seeds``, one of each episode, and
    ``received`` record what came in.
    """

    def __init__(
        self,
        script: Sequence[Episode],
        column: int = 1,
        *,
        action_space: spaces.Space = BOX,
        discrete: bool = False,
        reuse: bool = False,
        faults: dict[tuple[int, int], tuple[str, Any]] | None = None,
    ) -> None:
        self.script, self.column, self.discrete, self.reuse = script, column, discrete, reuse
        self.faults = faults or {}
        self.action_space = action_space
        self.observation_space = spaces.Discrete(10**8) if discrete else spaces.Box(0, np.inf, (3,))
        self.episode, self.time, self.over = 0, 0, True
        self.buffer = np.zeros(3, dtype=np.float32)
        self.seeds: list[Any] = []
        self.received: list[Any] = []

    @property
    def place(self) -> tuple[int, int, int]:
        return self.column, self.episode, self.time

    def observe(self) -> Any:
        obs = encode(self.place, self.discrete)
        kind, value = self.faults.get((self.episode, self.time), (None, 0.0))
        if kind == "observation":
            obs[-1] = value
        if self.reuse and not self.discrete:
            self.buffer[:] = obs
            return self.buffer
        return obs

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        assert seed is not None or self.seeds, "the first reset must be seeded"
        self.seeds.append(seed)
        self.episode += 1
        self.time, self.over = 0, False
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert not self.over, "stepped after the end of the episode"
        assert self.action_space.contains(np.asarray(action)), f"{action!r} is not in {self.action_space}"
        self.received.append(action)
        self.time += 1
        length, terminated, truncated = self.script[(self.episode - 1) % len(self.script)]
        self.over = self.time == length
        returned = {
            "reward": reward_of(self.place, action),
            "terminated": self.over and terminated,
            "truncated": self.over and truncated,
        }
        kind, value = self.faults.get((self.episode, self.time), (None, None))
        returned |= {kind: value} if kind in returned else {}
        return self.observe(), *returned.values(), {}


class ReusingVectorEnv(SyncVectorEnv):
    """Returns its own arrays, written anew at every step."""

    def step(self, actions: Any) -> Any:
        *_, infos = super().step(actions)
        return self._observations, self._rewards, self._terminations, self._truncations, infos


class CarelessResets(VectorWrapper):
    """A NEXT_STEP environment that leaves a reward and flags on its reset steps, which are no transitions."""

    def reset(self, **kwargs: Any) -> Any:
        self.done = np.zeros(self.num_envs, dtype=bool)
        return super().reset(**kwargs)

    def step(self, actions: Any) -> Any:
        obs, reward, terminated, truncated, infos = super().step(actions)
        before, self.done = self.done, terminated | truncated
        return obs, np.where(before, 1e6, reward), terminated | before, truncated | before, infos


def make(
    kind: Any, scripts: Sequence[Sequence[Episode]], *, vector: Callable[..., Any] = SyncVectorEnv, **settings: Any
) -> Any:
    """A scalar environment on the first script, or a vector environment with one column for each script.

    ``settings`` are those of ``EncodingEnv``; ``faults`` are those of the last column, ``copy`` is the vector's.
    """
    copy, faults = settings.pop("copy", True), settings.pop("faults", None)
    if kind == "scalar":
        return EncodingEnv(scripts[0], faults=faults, **settings)

    def constructor(n: int) -> Callable[[], EncodingEnv]:
        return lambda: EncodingEnv(scripts[n], n + 1, faults=faults if n + 1 == len(scripts) else None, **settings)

    return vector([constructor(n) for n in range(len(scripts))], copy=copy, autoreset_mode=kind)


def choose(place: Sequence[int], action_space: spaces.Space) -> Any:
    """The agent's action at ``place``, which has an index for Discrete and often lies outside the Box."""
    h = int(np.dot(place, (3, 5, 7)))
    if isinstance(action_space, spaces.Discrete):
        return h % int(action_space.n)
    size = int(np.prod(action_space.shape))
    return (h * np.arange(1, 2 * size, 2) % 17 - 8) / 4


def features(places: np.ndarray, x: str) -> Any:
    """Features of a batch: one array, a pair of a float and an integer array, or one array twice."""
    first = places + 0.5
    return {"array": first, "pair": (first, places[:, :1] * 7), "shared": (first, first)}[x]


class EncodingAgent:
    """Acts by ``choose`` and ``features``; ``explored`` records with which ``explore`` it was asked."""

    def __init__(self, action_space: spaces.Space = BOX, x: str = "array") -> None:
        self.action_space, self.x = action_space, x
        self.explored: list[bool] = []

    def act(self, obs: np.ndarray, rng: np.random.Generator, explore: bool = True) -> tuple[np.ndarray, Any]:
        self.explored.append(explore)
        places = decode(obs)
        return np.array([choose(place, self.action_space) for place in places]), features(places, self.x)
