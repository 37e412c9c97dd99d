"""What every method is: an object that acts and learns and never steps an environment."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from .._checks import is_integer, is_number
from .._state import Stateful
from .._typing import Array, Inputs, Rng
from ..features import Features, Pair, describe
from ..policies import Policy
from ..returns import gae
from ..trajectories import Episodes, Steps, Trajectories
from ..values import LinearValue


def _setting(default: Any, allowed: Callable[[Any], bool], expected: str, **more: Any) -> Any:
    return field(default=default, kw_only=True, metadata={"allowed": allowed, "expected": expected} | more)


def number(default: float | None, low: float = -np.inf, high: float = np.inf, optional: bool = False) -> Any:
    """A setting that is a finite number in [low, high], or, if ``optional``, None."""

    expected = f"a number in [{low:g}, {high:g}]" if high < np.inf else f"a number of at least {low:g}"
    expected += ", or None" if optional else ""
    return _setting(default, lambda value: (optional and value is None) or is_number(value, low, high), expected)


def integer(default: int, low: int) -> Any:
    """A setting that is an integer of at least ``low``."""

    return _setting(default, lambda value: is_integer(value, low), f"an integer of at least {low}")


def features(kind: str) -> Any:
    """A setting that is features of the observation: of this kind for a Box by default, one-hot for Discrete."""
    return field(metadata={"features": kind, "expected": f"features, {kind} (one-hot if Discrete) by default"})


def choice(*options: Any) -> Any:
    """A setting that is one of ``options``, the first by default."""

    def allowed(value: Any) -> bool:
        return any(type(value) is type(option) and value == option for option in options)

    return _setting(options[0], allowed, f"one of {', '.join(map(str, options))}", options=options)


@dataclass
class Agent(Stateful, ABC):
    """Base of the methods: a policy, its θ, and the settings, which are the fields of the dataclass.

    A method defines ``collect`` (what one update learns from), ``update``, ``learned`` (the names of what it
    learns), and ``init`` if it learns more than θ.

    Raises
    ------
    ValueError
        If a setting is not what its field allows.
    """

    policy: Policy
    learned: ClassVar[tuple[str, ...]] = ("theta",)
    num_envs: ClassVar[int] = 0
    """Parallel environments that suit the method; 0 is one that is not in a vector."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if "allowed" in f.metadata and not f.metadata["allowed"](value):
                raise ValueError(f"{f.name} must be {f.metadata['expected']}, got {value!r}")

    def __getattr__(self, name: str) -> Any:
        hint = " yet: train the agent, or call agent.init(rng)" if name in type(self).learned else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")

    @property
    @abstractmethod
    def collect(self) -> Steps | Episodes:
        """What one update learns from."""

    @classmethod
    def name(cls) -> str:
        """The name of the method, which is that of its module."""
        return cls.__module__.rpartition(".")[2]

    def init(self, rng: Rng, columns: int = 1) -> None:
        """Set all that is learned to its initial value, traces for ``columns`` environments, averaged by Eq. (8.9)."""
        self.theta = self.policy.init(rng)

    def act(self, obs: Array, rng: Rng, explore: bool = True) -> tuple[Array, Inputs]:
        """Actions for a batch of observations, sampled or (``explore=False``) the most probable, and x."""
        x = self.policy.features(obs)
        if explore:
            return self.policy.sample(self.theta, x, rng), x
        return self.policy.mode(self.theta, x), x

    @abstractmethod
    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Learn from ``traj``; return diagnostics, the same keys every time."""

    def diagnostics(self, x: Inputs, theta_old: Array | None = None, **values: Any) -> dict[str, float]:
        """``values`` as numbers, with means over the rows x, in nats: the entropy, and the divergence from θ_old."""
        if theta_old is not None:
            values["kl"] = self.policy.kl(theta_old, self.theta, x).mean()
        values["entropy"] = self.policy.entropy(self.theta, x).mean()
        return {name: float(value) for name, value in values.items()}

    @property
    def config(self) -> dict[str, Any]:
        """JSON-able: the method, which is the name of its module, and all settings for ``npg.make_agent``."""
        config: dict[str, Any] = {"algorithm": self.name()}
        features = self.policy.features
        if isinstance(features, Pair):
            config |= {"features": describe(features.mean), "scale_features": describe(features.scale)}
        else:
            config |= {"features": describe(features)}  # type: ignore[arg-type]
        for f in fields(self):
            if f.name != "policy":
                value = getattr(self, f.name)
                config[f.name] = describe(value) if "features" in f.metadata else value
        return config


@dataclass
class AdvantageAgent(Agent):
    """Base of the methods that learn from T steps of N environments by advantages with a linear critic v̂(s; w)."""

    value_features: Features = features("polynomial")
    gamma: float = number(0.99, 0, 1)
    n_steps: int = integer(128, 2)
    lam: float = number(0.95, 0, 1)

    learned: ClassVar[tuple[str, ...]] = ("theta", "w")
    num_envs: ClassVar[int] = 16

    @property
    def collect(self) -> Steps:
        """T steps of each environment."""
        return Steps(self.n_steps)

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, w = 0."""
        super().init(rng, columns)
        self.v = LinearValue(self.value_features)
        self.w = np.zeros(self.v.n_params)

    def advantages(self, traj: Trajectories) -> tuple[Inputs, Array, Array, Array, Array]:
        """Of the valid rows: x, the actions, the critic's features, v̂(S_t, w), and Â_t, Eq. (7.20)."""
        x_v, v, v_next = self.v.on(self.w, traj)
        A = gae(traj.rewards, v, v_next, traj.terminated, traj.truncated, self.gamma, self.lam)
        x, a, v, A = traj.rows(v, A)
        return x, a, x_v, v, A
