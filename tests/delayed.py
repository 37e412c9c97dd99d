"""``delayed:Delayed-v0``: long episodes with all of their reward at the end, as a module that registers a task."""

from typing import Any

import gymnasium


class Delayed(gymnasium.Env):
    """Each step shows a cue, 0 or 1, and the good action is the same number.

    The reward at the end, which is a termination, is the share of good actions less that of bad ones: 1 if all were
    good, −1 if none was, 0 ± 1/√length if they are random. Without the ``signal`` it is that of coin flips instead.
    """

    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int = 2500, signal: bool = True) -> None:
        self.length, self.signal = length, signal

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.cues = self.np_random.integers(2, size=self.length + 1).tolist()
        self.coins = self.np_random.integers(2, size=self.length).tolist()
        self.t = self.good = 0
        return self.cues[0], {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.good += (action if self.signal else self.coins[self.t]) == self.cues[self.t]
        self.t += 1
        over = self.t == self.length
        return self.cues[self.t], (2 * self.good / self.length - 1) * over, over, False, {}


gymnasium.register(
    "Delayed-v0",
    entry_point=Delayed,
    max_episode_steps=1_000_000,
    order_enforce=False,
    disable_env_checker=True,
)
