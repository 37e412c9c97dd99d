"""What ``npg check`` runs: gradients of distributions, models, policies, oracles and objectives on random instances.

A new gradient registers itself at the end of this file: a function from a random generator to (f, ∇f(θ), θ), under the
decorator ``case``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import at_least
from .._typing import Array, Inputs, Rng
from ..algorithms import A2C
from ..distributions import Categorical, DiagonalGaussian, Distribution, log_softmax
from ..exact import TabularMDP
from ..features import Constant, Fourier, OneHot
from ..gradcheck import RTOL, check_gradient
from ..lqr import LQR
from ..models import Linear, Model, Parallel
from ..off_policy import OffPolicy
from ..policies import GaussianLinear, Policy, SoftmaxLinear
from ..problems import garnet
from ..surrogates import Surrogate
from ..trajectories import Trajectories
from ..values import clipped_error

Problem = tuple[Callable[[Array], Any], Array, Array]
"""f, the gradient that the library claims for it, and θ."""


@dataclass(frozen=True)
class Case:
    """One row of ``npg check``: what is checked, its equation, and how to draw an instance."""

    quantity: str
    equation: str
    draw: Callable[[Rng], Problem]


CASES: list[Case] = []


def case(quantity: str, equation: str) -> Callable[[Callable[[Rng], Problem]], Callable[[Rng], Problem]]:
    """Register a function that draws a random (f, gradient, θ)."""

    def register(draw: Callable[[Rng], Problem]) -> Callable[[Rng], Problem]:
        CASES.append(Case(quantity, equation, draw))
        return draw

    return register


@dataclass(frozen=True)
class CaseResult:
    """The worst of many instances of a case."""

    case: Case
    method: str
    instances: int
    max_rel_error: float
    passed: bool


def run_cases(instances: int = 20, seed: int = 0) -> Iterator[CaseResult]:
    """Check every case by both methods on ``instances`` random instances each."""
    at_least("instances", instances, 1)
    at_least("seed", seed, 0)
    for c in CASES:
        for method in RTOL:
            rng = np.random.default_rng(seed)
            checks = [
                check_gradient(f, grad, theta, method=method)
                for f, grad, theta in (c.draw(rng) for _ in range(instances))
            ]
            worst = max(check.max_rel_error for check in checks)
            yield CaseResult(c, method, instances, worst, all(check.passed for check in checks))


# --- the cases -------------------------------------------------------------------------------------------------

BATCH = 5


def _distribution_cases(name: str, make: Callable[[int], Distribution], equations: tuple[str, ...]) -> None:
    """Score, entropy gradient, KL gradient and Fisher product of a distribution, as derivatives in one row of η."""

    def row(rng: Rng) -> tuple[Distribution, Array]:
        distribution = make(int(rng.integers(1, 6)))
        return distribution, rng.normal(size=distribution.n_eta)

    @case(f"{name}.score", equations[0])
    def score(rng: Rng) -> Problem:
        p, eta = row(rng)
        a = p.sample(eta[None], rng)
        return lambda e: p.log_prob(e[None], a)[0], p.score(eta[None], a)[0], eta

    @case(f"{name}.entropy_grad", equations[1])
    def entropy_grad(rng: Rng) -> Problem:
        p, eta = row(rng)
        return lambda e: p.entropy(e[None])[0], p.entropy_grad(eta[None])[0], eta

    @case(f"{name}.kl_grad", equations[2])
    def kl_grad(rng: Rng) -> Problem:
        p, eta = row(rng)
        eta_p = rng.normal(size=(1, p.n_eta))
        return lambda e: p.kl(eta_p, e[None])[0], p.kl_grad(eta_p, eta[None])[0], eta

    @case(f"{name}.fisher_product", equations[3])
    def fisher_product(rng: Rng) -> Problem:
        p, eta = row(rng)
        u = rng.normal(size=(1, p.n_eta))
        return lambda e: (p.kl_grad(eta[None], e[None]) * u).sum(), p.fisher_product(eta[None], u)[0], eta


def _model_cases(name: str, draw: Callable[[Rng], tuple[Model, Inputs]], equation: str) -> None:
    """Both products of a model with its Jacobian."""

    @case(f"{name}.vjp", equation)
    def vjp(rng: Rng) -> Problem:
        model, x = draw(rng)
        theta, u = rng.normal(size=model.n_params), rng.normal(size=(BATCH, model.n_outputs))
        return lambda th: (model.forward(th, x) * u).sum(), model.vjp(theta, x, u), theta

    @case(f"{name}.jvp", equation)
    def jvp(rng: Rng) -> Problem:
        model, x = draw(rng)
        theta, v = rng.normal(size=(2, model.n_params))
        u = rng.normal(size=(BATCH, model.n_outputs))
        along = (model.jvp(theta, x, v) * u).sum()
        return lambda s: (model.forward(theta + s[0] * v, x) * u).sum(), np.array([along]), np.zeros(1)


def _policy_cases(name: str, draw: Callable[[Rng], tuple[Policy, Array]], score_equation: str) -> None:
    """Every gradient of a policy, and its Fisher-vector product as the derivative of the KL gradient."""

    def instance(rng: Rng) -> tuple[Policy, Array, Inputs, Array]:
        policy, obs = draw(rng)
        return policy, rng.normal(size=policy.n_params), policy.features(obs), rng.normal(size=BATCH)

    @case(f"{name}.score", score_equation)
    def score(rng: Rng) -> Problem:
        policy, theta, x, w = instance(rng)
        a = policy.sample(theta, x, rng)
        return lambda th: policy.log_prob(th, x, a) @ w, w @ policy.score(theta, x, a), theta

    @case(f"{name}.weighted_score", "3.4")
    def weighted_score(rng: Rng) -> Problem:
        policy, theta, x, w = instance(rng)
        a = policy.sample(theta, x, rng)
        return lambda th: policy.log_prob(th, x, a) @ w, policy.weighted_score(theta, x, a, w), theta

    @case(f"{name}.entropy_grad", "3.9")
    def entropy_grad(rng: Rng) -> Problem:
        policy, theta, x, w = instance(rng)
        return lambda th: policy.entropy(th, x) @ w, policy.entropy_grad(theta, x, w), theta

    @case(f"{name}.kl_grad", "3.9")
    def kl_grad(rng: Rng) -> Problem:
        policy, theta, x, w = instance(rng)
        theta_p = rng.normal(size=policy.n_params)
        return lambda th: policy.kl(theta_p, th, x) @ w, policy.kl_grad(theta_p, theta, x, w), theta

    @case(f"{name}.fisher_vector_product", "3.11")
    def fisher_vector_product(rng: Rng) -> Problem:
        policy, theta, x, w = instance(rng)
        v = rng.normal(size=policy.n_params)
        product = policy.fisher_vector_product(theta, x, v, w)
        return lambda th: policy.kl_grad(theta, th, x, w) @ v, product, theta


def _observations(rng: Rng) -> Array:
    return rng.uniform(-1, 1, size=(BATCH, 2))


_distribution_cases("Categorical", Categorical, ("2.3", "2.5", "2.7", "2.8"))
_distribution_cases("DiagonalGaussian", DiagonalGaussian, ("2.11", "2.13", "2.15", "2.16"))
_model_cases("Linear (dense)", lambda rng: (Linear(4, 3), rng.normal(size=(BATCH, 4))), "3.2")
_model_cases("Linear (active)", lambda rng: (Linear(4, 3), rng.integers(4, size=(BATCH, 2))), "3.13")
_model_cases(
    "Parallel",
    lambda rng: (
        Parallel(Linear(4, 2), Linear(3, 2)),
        (rng.normal(size=(BATCH, 4)), rng.integers(3, size=(BATCH, 1))),
    ),
    "3.2",
)
_policy_cases("SoftmaxLinear", lambda rng: (SoftmaxLinear(Fourier(2, 1, scale=1.0), 3), _observations(rng)), "3.5")
_policy_cases("SoftmaxLinear (tabular)", lambda rng: (SoftmaxLinear(OneHot(3), 3), rng.integers(3, size=BATCH)), "3.8")
_policy_cases(
    "GaussianLinear",
    lambda rng: (GaussianLinear(Fourier(2, 1, scale=1.0), Fourier(2, 1, scale=1.0), 2), _observations(rng)),
    "3.6",
)
_policy_cases(
    "GaussianLinear (constant σ)",
    lambda rng: (GaussianLinear(Fourier(2, 1, scale=1.0), Constant(), 2), _observations(rng)),
    "3.7",
)


@case("SoftmaxLinear.all_actions_gradient", "4.10")
def _all_actions_gradient(rng: Rng) -> Problem:
    policy = SoftmaxLinear(Fourier(2, 1, scale=1.0), 3)
    theta, x, w = rng.normal(size=policy.n_params), policy.features(_observations(rng)), rng.normal(size=BATCH)
    q = rng.normal(size=(BATCH, 3))
    expected = policy.all_actions_gradient(theta, x, q, w)
    return lambda th: (np.exp(log_softmax(policy.eta(th, x))) * q).sum(axis=1) @ w, expected, theta


def _finite_problem(rng: Rng) -> tuple[TabularMDP, Policy, Array]:
    mdp = garnet(4, 3, 2, gamma=0.9, termination=0.1, seed=rng)
    policy = SoftmaxLinear(OneHot(mdp.n_states), mdp.n_actions)
    return mdp, policy, rng.normal(size=policy.n_params)


@case("TabularMDP.gradient", "4.9")
def _exact_gradient(rng: Rng) -> Problem:
    mdp, policy, theta = _finite_problem(rng)
    return lambda th: mdp.J(policy, th), mdp.gradient(policy, theta), theta


@case("TabularMDP.gradient (horizon)", "4.15")
def _exact_gradient_of_a_horizon(rng: Rng) -> Problem:
    mdp, policy, theta = _finite_problem(rng)
    return lambda th: mdp.J(policy, th, 5), mdp.gradient(policy, theta, 5), theta


@case("TabularMDP.value_jacobian", "4.8")
def _value_jacobian(rng: Rng) -> Problem:
    mdp, policy, theta = _finite_problem(rng)
    u = rng.normal(size=mdp.n_states)
    return lambda th: u @ mdp.value(policy, th), u @ mdp.value_jacobian(policy, theta), theta


@case("LQR.gradient", "4.22")
def _lqr_gradient(rng: Rng) -> Problem:
    A, B = rng.uniform(-0.4, 0.4, size=(2, 2)), rng.normal(size=(2, 1))
    lqr = LQR(A, B, Q=np.eye(2), R=np.eye(1), W=np.eye(2))
    theta = rng.uniform(-0.1, 0.1, size=3)

    def unpack(th: Array) -> tuple[Array, Array]:
        return th[:2].reshape(1, 2), np.exp(th[2:])

    return lambda th: lqr.J(*unpack(th)), lqr.gradient(*unpack(theta)), theta


@case("LQR.deterministic_gradient", "13.4")
def _lqr_deterministic_gradient(rng: Rng) -> Problem:
    lqr = LQR(rng.uniform(-0.4, 0.4, size=(2, 2)), rng.normal(size=(2, 2)), Q=np.eye(2), R=np.eye(2), W=np.eye(2))
    theta, still = rng.uniform(-0.1, 0.1, size=4), np.full(2, 1e-200)  # whose square is 0
    return (
        lambda th: lqr.J(th.reshape(2, 2), still),
        lqr.deterministic_gradient(theta.reshape(2, 2)).ravel(),
        theta,
    )


@case("OffPolicy.follow_on, ∇J_b", "12.3")
def _excursion_gradient(rng: Rng) -> Problem:
    mdp = garnet(4, 3, 3, gamma=0.9, termination=0.1, seed=rng)
    gamma, lam, interest = rng.uniform(0.2, 0.95, size=(3, mdp.n_states))
    b, x = rng.dirichlet(np.ones(3), size=mdp.n_states), rng.normal(size=(mdp.n_states, 2))  # states share parameters
    policy = Policy(Constant(), Linear(2, 3), Categorical(3))
    theta = rng.normal(size=policy.n_params)

    def pi(th: Array) -> Array:
        return Categorical(3).probabilities(policy.eta(th, x))

    exact = OffPolicy(mdp, pi(theta), b, gamma, lam, interest)

    def objective(th: Array) -> Any:
        chain = np.einsum("sa,sat->st", pi(th), mdp.P) * exact.gamma
        v = np.linalg.solve(np.eye(mdp.n_states) - chain, (pi(th) * mdp.expected_reward).sum(axis=1))
        return (exact.d * exact.interest) @ v

    return objective, policy.all_actions_gradient(theta, x, exact.action_value(), exact.follow_on()), theta


@case("OffPolicy.mspbe_gradient", "12.12")
def _mspbe_gradient(rng: Rng) -> Problem:
    mdp = garnet(4, 3, 3, gamma=0.9, termination=0.1, seed=rng)
    target, b = rng.dirichlet(np.ones(3), size=(2, mdp.n_states))
    exact = OffPolicy(mdp, target, b, *rng.uniform(0.2, 0.95, size=(2, mdp.n_states)))
    x, v = rng.normal(size=(mdp.n_states, 2)), rng.normal(size=2)
    return lambda v: exact.mspbe(x, v), exact.mspbe_gradient(x, v), v


@case("TabularMDP.average_reward_gradient", "8.16")
def _average_reward_gradient(rng: Rng) -> Problem:
    mdp = garnet(4, 3, 4, gamma=0.9, seed=rng)
    policy = SoftmaxLinear(OneHot(mdp.n_states), mdp.n_actions)
    theta = rng.normal(size=policy.n_params)
    return lambda th: mdp.average_reward(policy, th), mdp.average_reward_gradient(policy, theta), theta


def _surrogate_cases(name: str, policy: Policy) -> None:
    """The gradients of the surrogate objective and of the divergence from the old policy."""

    def instance(rng: Rng) -> tuple[Surrogate, Array]:
        theta_old, step = rng.normal(scale=0.3, size=(2, policy.n_params))
        x = policy.features(_observations(rng))
        a = policy.sample(theta_old, x, rng)
        return Surrogate(policy, theta_old, x, a, rng.normal(size=BATCH)), theta_old + step

    @case(f"Surrogate.gradient ({name})", "11.2")
    def gradient(rng: Rng) -> Problem:
        L, theta = instance(rng)
        return L.value, L.gradient(theta), theta

    @case(f"Surrogate.gradient ({name}, clipped)", "11.9")
    def clipped_gradient(rng: Rng) -> Problem:
        L, theta = instance(rng)
        while np.abs(np.abs(L.ratio(theta) - 1) - 0.2).min() < 0.05:  # a difference must not reach across a kink
            L, theta = instance(rng)
        return lambda th: L.value(th, 0.2), L.gradient(theta, 0.2), theta

    @case(f"Surrogate.kl_gradient ({name})", "11.11")
    def kl_gradient(rng: Rng) -> Problem:
        L, theta = instance(rng)
        return L.kl, L.kl_gradient(theta), theta


_surrogate_cases("SoftmaxLinear", SoftmaxLinear(Fourier(2, 1, scale=1.0), 3))
_surrogate_cases("GaussianLinear", GaussianLinear(Fourier(2, 1, scale=1.0), Fourier(2, 1, scale=1.0), 2))


@case("clipped_error", "11.16")
def _clipped_error(rng: Rng) -> Problem:
    c, kink = 0.5, 0.0
    while kink < 0.05:  # a difference must not reach across a kink
        v, v_old, G = rng.normal(size=(3, BATCH))
        near = v.clip(v_old - c, v_old + c)
        equal = np.where(near == v, np.inf, np.abs(near - G) - np.abs(v - G))
        kink = np.minimum(np.abs(np.abs(v - v_old) - c), np.abs(equal)).min()

    def objective(v: Array) -> Any:
        return -0.5 * np.maximum((v - G) ** 2, (v.clip(v_old - c, v_old + c) - G) ** 2).sum()

    return objective, clipped_error(v, v_old, G, c), v


def _a2c_cases(name: str, policy: Policy) -> None:
    """The steps of A2C with α = 1: the gradients of its two objectives, with advantages and targets held."""

    def instance(rng: Rng) -> tuple[A2C, tuple[Array, Array], tuple[Inputs, Array, Array, Array, Array]]:
        agent = A2C(policy, Fourier(2, 1, scale=1.0), optimizer="ascent", alpha=1.0, alpha_w=1.0, clip=None, beta=0.3)
        agent.init(rng)
        agent.theta, agent.w = rng.normal(size=len(agent.theta)), rng.normal(size=len(agent.w))
        obs, next_obs, r = _observations(rng), _observations(rng), rng.normal(size=(1, BATCH))
        x, no = policy.features(obs), np.zeros((1, BATCH), dtype=bool)
        a = policy.sample(agent.theta, x, rng)
        first = tuple(part[None] for part in x) if isinstance(x, tuple) else x[None]
        traj = Trajectories(obs[None], first, a[None], r, next_obs[None], no, no, ~no, np.zeros((1, BATCH), dtype=int))
        before, rows = (agent.theta, agent.w), agent.advantages(traj)
        agent.update(traj, rng)
        return agent, before, rows

    @case(f"A2C.update, θ ({name})", "8.12")
    def actor(rng: Rng) -> Problem:
        agent, (theta, _), (x, a, _, _, A) = instance(rng)
        return (
            lambda th: (A * policy.log_prob(th, x, a) + 0.3 * policy.entropy(th, x)).mean(),
            agent.theta - theta,
            theta,
        )

    @case(f"A2C.update, w ({name})", "8.12")
    def critic(rng: Rng) -> Problem:
        agent, (_, w), (_, _, x_v, v, A) = instance(rng)
        return lambda u: -((A + v - x_v @ u) ** 2).mean() / 2, agent.w - w, w


_a2c_cases("SoftmaxLinear", SoftmaxLinear(Fourier(2, 1, scale=1.0), 3))
_a2c_cases("GaussianLinear", GaussianLinear(Fourier(2, 1, scale=1.0), Fourier(2, 1, scale=1.0), 2))
