"""Off-PAC: off-policy actor–critic with GTD(λ) (Degris, White & Sutton 2012; derivations, chapter 12)."""

from dataclasses import field
from typing import Any, ClassVar

import numpy as np

from .._typing import Array, Inputs, Rng
from ..distributions import Categorical
from ..features import Features
from ..policies import Policy
from ..traces import add_traces, gradient_critic
from ..trajectories import ONE_STEP, Steps, Trajectories
from ..values import LinearValue
from .base import Agent, choice, features, gamma, method, number


@method
class OffPAC(Agent):
    """Online actor–critic for π_θ from the actions of another policy b, with emphatic weights, Eqs. (12.6), (12.11).

    With η = 1 and the exact values the mean direction is the gradient of the excursion objective, Eq. (12.3); with
    η = 0 it is that of Degris et al., Eq. (12.4). A time limit cuts the traces and is bootstrapped through. Data that
    another behaviour recorded are learned from by ``update``, if they have its ``log_b``.
    """

    value_features: Features = features("polynomial", doc="x of the critic v̂(s) = v₀ + vᵀx(s).")
    gamma: float = gamma()
    lam: float = number(
        0.0, 0, 1, doc="λ, the decay of both traces; with ρ the factor of a step is ργλ, which may exceed 1."
    )
    eta: float = number(0.0, 0, 1, doc="η of M = (1 − η)i + ηF: 0 is Off-PAC, 1 the excursion gradient, Eq. (12.6).")
    interest: str = choice(
        "everywhere",
        "starts",
        doc="i: 1 in every row, or in the first of an episode alone: with η = 1 this is ∇J / E_b[T], and with η = 0 no "
        "other state is learned in.",
    )
    epsilon: float = number(1.0, 0, 1, doc="ε of the behaviour b = (1 − ε)π + εb₀; then ρ ≤ 1 / (1 − ε).")
    behaviour: tuple[Policy, Array] | None = field(
        default=None,
        kw_only=True,
        metadata={
            "expected": "a pair of an npg.Policy and its θ, or None",
            "doc": "b₀. None is the policy as it begins: uniform over discrete actions, or N(0, 1).",
        },
    )
    v0: float = number(
        0.0, -1e6, 1e6, doc="v₀, what every state is worth at first; optimism explores, and hides what is learned."
    )
    alpha_u: float = number(0.01, 0, doc="Step size α_u of θ; to be divided by the number of tilings, Eq. (7.22).")
    alpha_v: float = number(0.05, 0, doc="Step size α_v of v, likewise.")
    alpha_w: float = number(0.0001, 0, doc="Step size α_w of the critic's second weights w, likewise.")

    learned: ClassVar[tuple[str, ...]] = ("theta", "critic", "e_u", "F", "rho")
    off_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.behaviour is None:
            self.b, self.theta_b = self.policy, self.policy.init(np.random.default_rng(0))
            return
        try:
            self.b, self.theta_b = self.behaviour[0], np.array(self.behaviour[1], dtype=float)
            fits = self.b.distribution == self.policy.distribution and self.theta_b.shape == (self.b.n_params,)
            fits = fits and bool(np.isfinite(self.theta_b).all())
        except (AttributeError, IndexError, TypeError, ValueError):
            fits = False
        if not fits:
            expected = f"a pair of a policy with {self.policy.distribution} and its finite θ"
            raise ValueError(f"behaviour must be {expected}, got {self.behaviour}")

    @property
    def collect(self) -> Steps:
        """One step."""
        return ONE_STEP

    @property
    def config(self) -> dict[str, Any]:
        """JSON-able: the method and all settings; without a given behaviour."""
        if self.behaviour is not None:
            raise TypeError("a run directory cannot keep a behaviour that is given as a policy: train without out")
        return super().config

    def init(self, rng: Rng, columns: int = 1) -> None:
        """θ as the policy begins it, v = w = 0, no traces."""
        super().init(rng, columns)
        value = LinearValue(self.value_features)
        self.critic = gradient_critic(value, columns, self.alpha_v, self.alpha_w, self.gamma, self.lam)
        self.critic.v0 = self.v0
        self.e_u = np.zeros((columns, self.policy.n_params))
        self.F, self.rho = np.zeros(columns), np.ones(columns)

    def act(self, obs: Array, rng: Rng, explore: bool = True) -> tuple[Array, Inputs]:
        """Actions for a batch of observations, of the behaviour or (``explore=False``) the most probable of π, and x.

        Raises
        ------
        ValueError
            If the behaviour never takes an action that π takes.
        """
        if not explore:
            return super().act(obs, rng, explore)
        x = self.policy.features(obs)
        self.eta_b = self.b.eta(self.theta_b, x if self.b is self.policy else self.b.features(obs))
        if self.behaviour is not None and self.epsilon == 1:
            self.check_support(obs, x)
        a = self.b.distribution.sample(self.eta_b, rng)
        if self.epsilon < 1:
            of_pi = rng.random(len(a)) >= self.epsilon
            a[of_pi] = self.policy.sample(self.theta, x, rng)[of_pi]
        return a, x

    def play(self, obs: Array, rng: Rng, explore: bool = True) -> tuple[Array, Inputs]:
        """As ``act``, of π."""
        return super().act(obs, rng, explore)

    def check_support(self, obs: Array, x: Inputs) -> None:
        """Refuse b(a|s) = 0 where π(a|s) > 0, Eq. (12.24); a density is positive everywhere."""
        if not isinstance(self.b.distribution, Categorical):
            return
        b = self.b.distribution.probabilities(self.eta_b)
        if b.all():
            return
        pi = self.b.distribution.probabilities(self.policy.eta(self.theta, x))
        for n, a in np.argwhere((b == 0) & (pi > 0)):
            raise ValueError(
                f"behaviour must take every action that the policy takes, got b(a|s) = 0 and π(a|s) = {pi[n, a]:.3g} "
                f"for action {a} in state {obs[n]}"
            )

    def behaviour_log_prob(self, x: Inputs, a: Array) -> Array:
        """log b(a|s) of the actions that ``act`` has just returned: (N,)."""
        log_b = self.b.distribution.log_prob(self.eta_b, a)
        if self.epsilon == 1:
            return log_b
        with np.errstate(divide="ignore"):
            parts = np.log(self.epsilon) + log_b, np.log1p(-self.epsilon) + self.policy.log_prob(self.theta, x, a)
        return np.logaddexp(*parts)

    def update(self, traj: Trajectories, rng: Rng) -> dict[str, float]:
        """Take A ~ b(·|S), observe S', R; then, with γ_t = 0 where an episode begins and γ in its other rows,

        δ ← R + γ v̂(S') − v̂(S)                                 (v̂ = 0 where S' is terminal)
        F ← i + γ_t ρF;   M ← (1 − η)i + ηF                     (ρ of the row before)
        ρ ← π(A|S, θ) / b(A|S)
        e_v ← ρ[x(S) + γ_t λ e_v]
        e_u ← ρ[M ∇ ln π(A|S, θ) + γ_t λ e_u]
        v ← v + α_v [δ e_v − γ(1 − λ)(wᵀe_v) x(S')]             (λ = 0 at a time limit)
        w ← w + α_w [δ e_v − (wᵀx(S)) x(S)]
        θ ← θ + α_u δ e_u
        """
        (_, a, valid, n), log_b = traj.step(), traj.behaviour_log_prob()[0]
        x = self.policy.features(traj.observations()[0])  # not those that another behaviour acted on
        delta, gamma_t = self.critic.error(traj), self.critic.gamma_t  # (12.1)
        i = 1.0 if self.interest == "everywhere" else traj.t[0] == 0
        self.F = i + gamma_t * self.rho * self.F  # (12.5)
        M = (1 - self.eta) * i + self.eta * self.F
        log_pi, psi = self.policy.log_prob_and_score(self.theta, x, a)
        self.rho = np.where(valid, np.exp(log_pi - log_b), 0.0)
        self.critic.trace(self.rho)  # (12.7)
        self.e_u *= (self.rho * gamma_t * self.lam)[:, None]
        self.policy.model.accumulate(self.theta, self.e_u, x, (self.rho * M)[:, None] * psi)
        self.critic.learn(delta)  # (12.10), (12.11)
        self.theta = add_traces(self.theta, self.e_u, self.alpha_u / n * delta)  # (12.6), (8.9)
        ends = self.critic.gamma_t == 0  # by termination or a time limit, and reset steps
        if np.count_nonzero(ends):
            self.e_u[ends], self.F[ends], self.rho[ends] = 0, 0, 1  # (8.10)
        return {"squared_td_error": delta.dot(delta) / n, "ratio": self.rho.sum() / n}
