"""What every method is: an object that acts and learns and never steps an environment."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from inspect import cleandoc
from typing import Any, ClassVar, TypeVar, dataclass_transform

import numpy as np

from .._checks import at_least, is_integer, is_number
from .._state import Stateful
from .._typing import Array, Inputs, Rng
from ..distributions import DiagonalGaussian
from ..features import Constant, Features, Pair, describe
from ..models import Linear
from ..optimizers import OPTIMIZERS, Ascent
from ..policies import Policy
from ..returns import gae
from ..trajectories import ONE_STEP, Episodes, Steps, Trajectories
from ..values import LinearValue

T = TypeVar("T", bound="type[Agent]")


# Settings: a value, what else it may be, and what it is


def _setting(default: Any, allowed: Callable[[Any], bool], expected: str, doc: str, **more: Any) -> Any:
    return field(default=default, kw_only=True, metadata={"allowed": allowed, "expected": expected, "doc": doc} | more)


def number(
    default: float | None, low: float = -np.inf, high: float = np.inf, *, doc: str, optional: bool = False
) -> Any:
    """A setting that is a finite number in [low, high], or, if ``optional``, None."""
    expected = f"a number in [{low:g}, {high:g}]" if high < np.inf else f"a number of at least {low:g}"
    expected += ", or None" if optional else ""
    return _setting(default, lambda value: (optional and value is None) or is_number(value, low, high), expected, doc)


def integer(default: int, low: int, *, doc: str) -> Any:
    """A setting that is an integer of at least ``low``."""
    return _setting(default, lambda value: is_integer(value, low), f"an integer of at least {low}", doc)


def choice(*options: Any, doc: str) -> Any:
    """A setting that is one of ``options``, the first by default."""

    def allowed(value: Any) -> bool:
        return any(type(value) is type(option) and value == option for option in options)

    return _setting(options[0], allowed, f"one of {', '.join(map(str, options))}", doc, options=options)


def features(kind: str, *, doc: str) -> Any:
    """A setting that is features of the observation: of this kind for a Box by default, one-hot for Discrete."""
    expected = f"features, {kind} (one-hot if Discrete) by default"

    def allowed(value: Any) -> bool:
        return callable(value) and hasattr(value, "n_features")

    return field(metadata={"features": kind, "allowed": allowed, "expected": expected, "doc": doc})


def gamma() -> Any:
    """The discount."""
    return number(0.99, 0, 1, doc="Discount γ.")


def optimizer(*options: str) -> Any:
    """Which of ``npg.optimizers`` takes the steps."""
    return choice(*options, doc="What takes the steps along gradients: ``npg.optimizers``.")


def normalization(*options: str | None) -> Any:
    """How advantages are normalised over a batch, Eq. (11.15)."""
    return choice(
        *options,
        doc="None leaves Â; scale divides it by its deviation over the rows; standardize shifts it to mean 0 too.",
    )


def radius() -> Any:
    """The length of a natural step, ½ΔᵀFΔ with F undamped, Eq. (9.7)."""
    doc = "δ, the divergence of a step in nats to second order; one of more than 2δ in truth is halved. None steps αu."
    return number(0.01, 1e-12, optional=True, doc=doc)


def held_ridge() -> Any:
    """The ridge of a critic that is fitted to one batch after another, Eq. (1.14)."""
    return number(1.0, 0, doc="κ_w, how much the critic's fit to a batch holds on to the w before it.")


@dataclass_transform()
def method(cls: T) -> T:
    """Make the class of a method a dataclass, and say in its docstring what its settings are."""
    dataclass(cls)
    parameters = ""
    for f in fields(cls):
        if "expected" in f.metadata:
            default = "" if f.default is MISSING else f"; {f.default!r} by default"
            parameters += f"\n{f.name} : {f.metadata['expected']}{default}\n    {f.metadata['doc']}"
    cls.__doc__ = f"{cleandoc(cls.__doc__ or '')}\n\nParameters\n----------\npolicy : npg.Policy{parameters}\n"
    return cls


@dataclass
class Agent(Stateful, ABC):
    """Base of the methods: a policy, its θ, and the settings, which are the fields of the class.

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
    off_policy: ClassVar[bool] = False
    """Whether another policy acts, so that returns during training are not those of what is learned."""

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy):
            raise TypeError(f"policy must be an npg.Policy, got {self.policy!r}")
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
        """Set all that is learned to its initial value, with traces for ``columns`` parallel environments."""
        at_least("columns", columns, 1)
        self.theta = self.policy.init(rng)

    def ascending(self, n: int, alpha: float) -> Ascent:
        """The optimiser that the setting names, for n parameters."""
        return OPTIMIZERS[self.optimizer](n, alpha)

    def act(self, obs: Array, rng: Rng, explore: bool = True) -> tuple[Array, Inputs]:
        """Actions for a batch of observations, sampled or (``explore=False``) the most probable, and x."""
        x = self.policy.features(obs)
        if explore:
            return self.policy.sample(self.theta, x, rng), x
        return self.policy.mode(self.theta, x), x

    def play(self, obs: Array, rng: Rng, explore: bool = True) -> tuple[Array, Inputs]:
        """As ``act``, of the policy that is learned, where another one acts: what ``npg.evaluate`` plays."""
        return self.act(obs, rng, explore)

    @abstractmethod
    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Learn from ``traj``, in which at least one row is valid; return diagnostics, the same keys every time."""

    def diagnostics(self, x: Inputs, theta_old: Array | None = None, /, **values: Any) -> dict[str, float]:
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

    value_features: Features = features("polynomial", doc="x of the critic v̂(s; w) = wᵀx(s).")
    gamma: float = gamma()
    n_steps: int = integer(128, 2, doc="T, steps of each environment per update.")
    lam: float = number(0.95, 0, 1, doc="λ of the advantages, Eq. (7.20).")

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
        x, a, v, A = traj.rows(v, self.estimate(traj, v, v_next))
        return x, a, x_v, v, A

    def estimate(self, traj: Trajectories, v: Array, v_next: Array) -> Array:
        """Â_t from the values of S_t and S_{t+1}: (T, N)."""
        return gae(traj.rewards, v, v_next, traj.terminated, traj.truncated, self.gamma, self.lam)  # (7.20)


@dataclass
class OnlineAgent(Agent):
    """Base of the methods that learn from one step of each environment at a time, with a linear critic."""

    value_features: Features = features("polynomial", doc="x of the critic v̂(s; w) = wᵀx(s).")
    alpha: float = number(0.01, 0, doc="Step size α of θ; to be divided by the number of tilings, Eq. (7.22).")
    alpha_w: float = number(0.05, 0, doc="Step size α_w of w, likewise.")

    @property
    def collect(self) -> Steps:
        """One step."""
        return ONE_STEP

    def restart(self, traj: Trajectories) -> None:
        """I ← 1 and z_θ ← 0 where an episode has ended, by termination or by a time limit, and in reset steps."""
        ends = traj.terminated[0] | traj.truncated[0] | ~traj.valid[0]
        if np.count_nonzero(ends):
            for name, start in (("I", 1), ("z", 0)):
                if name in self.learned:
                    getattr(self, name)[ends] = start  # (8.10)


@dataclass
class DeterministicAgent(OnlineAgent):
    """Base of the methods with a deterministic policy μ(s) = W x(s) and the compatible critic of it, Eq. (13.9).

    ``policy`` is what explores, the Gaussian of mean μ and one σ that is not learned: θ = [vec(W), log σ]. Its mode is
    μ. The critic is q̂(s, a) = w·φ(s, a) + v·φ(s), with φ(s, a) = J_sᵀ(a − μ(s)), which is never formed: J_s w is
    what the policy's own linear map makes of w.
    """

    gamma: float = gamma()
    alpha_w: float = number(0.05, 0, doc="Step size α_w of w, likewise; and to be divided by σ², too.")
    alpha_v: float = number(0.05, 0, doc="Step size α_v of v, as α of θ.")
    sigma: float = number(1.0, 1e-12, doc="σ, the deviation of actions from μ(s), in each component.")

    learned: ClassVar[tuple[str, ...]] = ("theta", "w", "v")
    off_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.policy.distribution, DiagonalGaussian):
            raise TypeError(f"{self.name()} needs continuous actions, got {self.policy.distribution}")
        features = self.policy.features
        if not (isinstance(features, Pair) and isinstance(features.scale, Constant)):
            raise TypeError(f"{self.name()} needs constant scale_features, because σ is a setting, got {features}")

    def play(self, obs: Array, rng: Rng, explore: bool = True) -> tuple[Array, Inputs]:
        """μ(S): the policy that is learned has no other action."""
        return self.act(obs, rng, False)

    def init(self, rng: Rng, columns: int = 1) -> None:
        """W as the policy begins it, log σ as the setting has it, w = v = 0."""
        super().init(rng, columns)
        self.mu: Linear = self.policy.model.first  # type: ignore[union-attr]
        self.theta[self.mu.n_params :] = np.log(self.sigma)
        self.value, self.columns = Linear(self.value_features.n_features, 1), columns
        self.w, self.v = np.zeros(self.mu.n_params), np.zeros(self.value.n_params)

    def step(self, traj: Trajectories) -> tuple[Array, Array, Array, Array, Array, Array]:
        """Of the valid rows of one step of each environment: x(S), A, φ(S), R, φ(S'), and where S' is not terminal."""
        if traj.valid.shape != (1, self.columns):
            raise ValueError(f"traj must be one step of columns = {self.columns} environments, got {traj.valid.shape}")
        traj.step()  # at least one is valid
        (x, _), a, r, nonterminal = traj.rows(traj.rewards, ~traj.terminated)
        phi, phi_next = (self.value_features(obs[traj.valid]) for obs in (traj.obs, traj.next_obs))
        return x, a, phi, r, phi_next, nonterminal

    def off_mean(self, x: Array, a: Array) -> Array:
        """A − μ(S) of each row, by which φ(S, A) = J_Sᵀ(A − μ(S)): (B, m)."""
        return a - self.mu.forward(self.theta[: self.mu.n_params], x)  # (13.9)

    def dot(self, f: tuple[Array, Array, Array], w: Array, v: Array) -> Array:
        """w·φ(S, A) + v·φ(S) of each row, with f = (x(S), A − μ(S), φ(S)): (B,)."""
        x, noise, phi = f
        return (noise * self.mu.jvp(w, x, w)).sum(axis=1) + self.value.forward(v, phi)[:, 0]

    def mean(self, f: tuple[Array, Array, Array], u: Array) -> tuple[Array, Array]:
        """The means of u φ(S, A) and of u φ(S) over rows with the weights u (B,)."""
        x, noise, phi = f
        u = u[:, None] / len(u)
        return self.mu.vjp(self.w, x, u * noise), self.value.vjp(self.v, phi, u)

    def direction(self, x: Array) -> Array:
        """The mean of J_SᵀJ_S w over the rows."""
        return self.mu.vjp(self.w, x, self.mu.jvp(self.w, x, self.w) / len(x))

    def ascend(self, step: Array) -> None:
        """W ← W + a step, and log σ stays."""
        self.theta = self.theta + np.append(step, np.zeros(len(self.theta) - len(step)))
