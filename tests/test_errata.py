"""For each erratum: a number that the written form gets wrong and the right form gets right."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate
from scipy.linalg import solve_discrete_lyapunov
from scipy.optimize import brentq, linprog
from scipy.special import expit, rel_entr
from scipy.stats import norm

import npg
from npg import estimators
from npg.algorithms import BatchActorCritic, DualDescent
from npg.distributions import Categorical, DiagonalGaussian
from npg.exact import TabularMDP, enumerate_trajectories, total_variation
from npg.features import Constant, OneHot
from npg.gradcheck import numerical_gradient
from npg.lab.collect import Collector
from npg.lqr import LQR
from npg.models import Linear
from npg.off_policy import OffPolicy
from npg.optimizers import kl_step
from npg.problems import IMANI_BEHAVIOUR, IMANI_FEATURES, garnet, imani, two_state
from npg.returns import discounted_returns, gae, n_step_returns
from npg.solvers import backtracking_line_search, cholesky_solve, conjugate_gradient
from npg.surrogates import Surrogate
from npg.traces import TDLambda
from npg.values import LinearValue, lstd

gaussian = DiagonalGaussian(1)


def eta(mu: float, sigma: float) -> np.ndarray:
    return np.array([[mu, np.log(sigma)]])


def returns_of(rewards: list[float], gamma: float) -> np.ndarray:
    rewards_ = np.array(rewards)[:, None]
    ends = np.arange(len(rewards))[:, None] == len(rewards) - 1
    return discounted_returns(rewards_, ends, np.zeros_like(ends), gamma).ravel()


class Chain:
    """The two-step chain of the errata: two states in turn, two actions in each, rewards 1 and 0, uniform policy."""

    policy = npg.SoftmaxLinear(OneHot(2), 2)
    theta = np.zeros(4)
    paths = tuple((np.array([0, 1]), np.array([a, b])) for a in (0, 1) for b in (0, 1))

    def mean(self, estimate) -> np.ndarray:
        """E[estimate(ψ_0, ψ_1, R_1, R_2)] for the logits of the rewarded action 0 in the two states."""
        total = np.zeros(4)
        for states, actions in self.paths:
            psi = self.policy.score(self.theta, self.policy.features(states), actions)
            total += 0.25 * estimate(psi, 1.0 - actions)
        return total.reshape(2, 2)[0]


class StopOrGo:
    """The example after Eq. (1.10) at p = u = 1/2, r = 0.45, γ = 0.8."""

    p = u = 0.5
    r, gamma = 0.45, 0.8

    def mean(self, weight_of_x, weight_of_y) -> np.ndarray:
        """Mean of (∂_x log π · weight_of_x, ∂_y log π · weight_of_y); each weight sees the episode's rewards."""
        total = np.zeros(2)
        total[0] += (1 - self.p) * -self.p * weight_of_x([self.r])
        for reward, probability in ((1.0, self.u), (0.0, 1 - self.u)):
            total[0] += self.p * probability * (1 - self.p) * weight_of_x([0.0, reward])
            score_y = 1 - self.u if reward else -self.u
            total[1] += self.p * probability * score_y * weight_of_y([0.0, reward])
        return total


def stop_or_go() -> TabularMDP:
    """``StopOrGo`` as a process: in state 0 go on (action 0) or stop for 0.45, in state 1 be paid 1 (action 0) or 0."""
    P, R = np.zeros((3, 2, 3)), np.array([[0.0, StopOrGo.r], [1.0, 0.0], [0.0, 0.0]])
    P[0, 0, 1] = 1
    P[0, 1, 2] = P[1, :, 2] = P[2, :, 2] = 1
    return TabularMDP(P, R, StopOrGo.gamma, np.array([1.0, 0.0, 0.0]))


def every_episode(successors: list[list[int]], rewards: list[float], horizon: int):
    """The process of two equally likely successors of each state, the last being the end, with all its trajectories."""
    n = len(successors)
    P, policy = np.zeros((n, 2, n)), npg.SoftmaxLinear(OneHot(n), 2)
    for s, following in enumerate(successors):
        P[s, [0, 1], following] = 1
    mdp = TabularMDP(P, np.array([[r, r] for r in rewards]), 1.0, np.eye(n)[0])
    return mdp, *enumerate_trajectories(mdp, policy, np.zeros(2 * n), horizon)


def bias_and_variance(probability: np.ndarray, X: np.ndarray) -> tuple[float, float]:
    """Mean of X (N,), for a true value of zero, and its variance."""
    mean = probability @ X
    return mean, probability @ (X - mean) ** 2


class TwoStates:
    """The example after Eq. (6.11): actions 0 ("stay") and 1 ("move"), γ = 0.9, from state 0."""

    mdp = replace(two_state(0.9), rho0=np.array([1.0, 0.0]))
    policy = npg.SoftmaxLinear(OneHot(2), 2)
    uniform = np.zeros(4)
    stays = np.log([4.0, 4.0, 1.0, 1.0])  # "stay" with probability 0.8 in both states
    horizon = 2

    def data(self):
        """Every trajectory of the uniform policy, its probability, and the scores and ratios of ``stays``."""
        traj, probability = enumerate_trajectories(self.mdp, self.policy, self.uniform, self.horizon)
        psi = estimators.scores(self.policy, self.stays, traj)
        ratios = estimators.importance_ratios(self.policy, self.stays, traj, np.full(traj.actions.shape, np.log(0.5)))
        return traj, probability, psi, ratios

    def gradient(self) -> np.ndarray:
        return self.mdp.gradient(self.policy, self.stays, horizon=self.horizon)[:2]

    def staying(self, probability: float) -> np.ndarray:
        return np.array([[probability, 1 - probability]] * 2)


def one_state(rewards: list[float], stays: list[float]) -> TabularMDP:
    """State 0, where action a pays rewards[a] and goes on with probability stays[a]; else the terminal state 1."""
    P = np.zeros((2, 2, 2))
    P[0, :, 0], P[0, :, 1] = stays, 1 - np.array(stays)
    P[1, :, 1] = 1
    return TabularMDP(P, np.array([rewards, [0.0, 0.0]]), 1.0, np.array([1.0, 0.0]))


one_feature = npg.SoftmaxLinear(Constant(), 2)
"""Two logits that are linear in one feature; the difference of the parameters is the logit of the first action at 1."""


def one_state_rows(old: np.ndarray, actions: list[int], A: list[float]) -> Surrogate:
    """Rows of one state, after the policy with probabilities ``old``."""
    return Surrogate(one_feature, np.log(old), np.ones((len(actions), 1)), np.array(actions), np.array(A))


class Batch:
    """Each action of the bandit as often as π = (0.2, 0.8) takes it, with its exact advantage."""

    theta = np.log([0.2, 0.8])
    L = one_state_rows(np.array([0.2, 0.8]), [0, 1, 1, 1, 1], [0.8, -0.2, -0.2, -0.2, -0.2])

    def slope(self, of_rows) -> float:
        """The slope in the first logit, at the old policy, of the mean of of_rows(ρ, log π, Â)."""

        def f(theta):
            return of_rows(self.L.ratio(theta), one_feature.log_prob(theta, self.L.x, self.L.a), self.L.A).mean()

        return numerical_gradient(f, self.theta)[0][0]


def variance(probability: np.ndarray, X: np.ndarray) -> float:
    """tr Cov(X) of estimates X (N, n) with these probabilities."""
    return probability @ (X**2).sum(axis=1) - ((probability @ X) ** 2).sum()


def test_erratum_1():
    mu, sigma = 0.3, 2.0
    written = integrate.quad(lambda a: np.exp(-((a - mu) ** 2) / (2 * sigma)) / (sigma * np.sqrt(2 * np.pi)), -40, 40)[
        0
    ]
    right = integrate.quad(lambda a: np.exp(gaussian.log_prob(eta(mu, sigma), np.array([[a]]))[0]), -40, 40)[0]
    assert written == pytest.approx(1 / np.sqrt(sigma), rel=1e-9)
    assert right == pytest.approx(1, rel=1e-9)


def test_erratum_2():
    policy = npg.GaussianLinear(Constant(), Constant(), 1)
    theta, a = np.array([1.0, np.log(0.5)]), np.array([[1.7]])
    x = policy.features(np.zeros(1))
    slope = numerical_gradient(lambda th: policy.log_prob(th, x, a)[0], theta)[0][1]
    assert slope == pytest.approx((1.7 - 1.0) ** 2 / 0.25 - 1, rel=1e-9)
    assert slope != pytest.approx((1.7 - 0.5) ** 2 / 0.25 - 1, rel=0.1)
    assert policy.score(theta, x, a)[0, 1] == pytest.approx(0.96)


def test_erratum_3():
    P, R = np.zeros((3, 2, 3)), np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    P[0, 0, 1] = P[0, 1, 2] = P[1:, :, 2] = 1  # go or quit, then the end, which is worth 1
    mdp = TabularMDP(P, R, 0.9, np.array([1.0, 0.0, 0.0]))
    exact = OffPolicy(mdp, np.tile([1.0, 0.0], (3, 1)), np.tile([1 / 8, 7 / 8], (3, 1)))
    x = np.array([[1.0], [2.0], [0.0]])
    A, b, C = (m.item() for m in exact.key_matrices(x))

    def mean_step(v: float, of_next: bool) -> float:
        w, total = (b - A * v) / C, 0.0
        for s, a, s_next in np.argwhere(P[:2] > 0):
            e = exact.rho[s, a] * x[s, 0]
            delta = R[s, a] + 0.9 * v * x[s_next, 0] - v * x[s, 0]
            corrected = x[s_next if of_next else s, 0] * (s_next < 2)  # γ(s') = 0 at the end
            total += exact.d[s] * exact.behaviour[s, a] * (delta * e - 0.9 * w * e * corrected)
        return total

    fixed = exact.fixed_point(x).item()
    assert mean_step(fixed + 1, of_next=True) == pytest.approx(-4 / 75)
    assert mean_step(fixed + 1, of_next=True) == pytest.approx(
        -exact.mspbe_gradient(x, np.array([fixed + 1])).item() / 2
    )
    assert mean_step(fixed + 1, of_next=False) == pytest.approx(8 / 75)


def test_erratum_4():
    bandit = Batch()
    assert bandit.slope(lambda rho, log_pi, A: rho * log_pi * A) == pytest.approx(-0.05315, abs=5e-6)
    for right in (lambda rho, log_pi, A: rho * A, lambda rho, log_pi, A: log_pi * A):
        assert bandit.slope(right) == pytest.approx(0.16)
    assert bandit.L.gradient(bandit.theta) == pytest.approx([0.16, -0.16])


def test_erratum_5():
    bandit = Batch()
    for epsilon in (0.1, 0.2, 0.5):

        def written(rho, log_pi, A, epsilon=epsilon):
            return np.minimum(rho * A, rho.clip(1 - epsilon, 1 + epsilon) * log_pi * A)

        def right(rho, log_pi, A, epsilon=epsilon):
            return np.minimum(rho * A, rho.clip(1 - epsilon, 1 + epsilon) * A)

        assert bandit.slope(written) == pytest.approx(-0.04601, abs=5e-6)
        assert bandit.slope(right) == pytest.approx(0.16)
        assert bandit.L.gradient(bandit.theta, epsilon) == pytest.approx([0.16, -0.16])


def test_erratum_6():
    at, epsilon = (np.array([[-0.5]]), np.array([0.5])), 0.01
    for log_sigma, square, divergence, short in ((False, 48143, 1.605e-4, 79), (True, 3065.4, 2.521e-3, 20)):
        g, F = LQR().gradient(*at, log_sigma=log_sigma), LQR().fisher(*at, log_sigma=log_sigma)
        natural = np.linalg.solve(F, g)
        assert g @ natural == pytest.approx(7.726830, abs=5e-7)
        assert g @ F @ g == pytest.approx(square, rel=1e-4)
        written = np.sqrt(2 * epsilon / (g @ F @ g)) * natural
        right = kl_step(natural, F @ natural, epsilon)
        assert np.allclose(right, np.sqrt(2 * epsilon / (g @ natural)) * natural)
        assert right @ F @ right / 2 == pytest.approx(epsilon)
        assert written @ F @ written / 2 == pytest.approx(divergence * epsilon, rel=5e-4)
        assert np.linalg.norm(right) / np.linalg.norm(written) == pytest.approx(short, rel=5e-3)


def test_erratum_7():
    """Over all couplings, matrices with these marginals, the probability of agreement lies in [0.5, 0.9]."""
    p, q = np.array([0.2, 0.8]), np.array([0.3, 0.7])
    marginals = np.vstack([np.kron(np.eye(2), np.ones(2)), np.kron(np.ones(2), np.eye(2))])
    agree = np.eye(2).ravel()
    worst, best = (linprog(sign * agree, A_eq=marginals, b_eq=np.concatenate([p, q])).fun * sign for sign in (1, -1))
    epsilon = total_variation(p, q)
    assert epsilon == pytest.approx(0.1)
    assert best == pytest.approx(1 - epsilon)
    assert worst == pytest.approx(0.5)
    assert epsilon < worst


def test_erratum_8():
    p, q, f = np.array([0.5, 0.5]), np.array([0.49, 0.51]), np.array([1.0, -1.0])
    tv, l1, pinsker = total_variation(p, q), np.abs(p - q).sum(), np.sqrt(rel_entr(q, p).sum() / 2)
    assert pinsker == pytest.approx(0.010001, abs=1e-6)
    assert tv <= pinsker < l1  # true of the total variation only
    assert q @ f == pytest.approx(-0.02)
    assert p @ f - l1 - 1e-12 <= q @ f < p @ f - tv  # true of the L1 norm only

    P = np.zeros((2, 2, 2))
    P[0, 0, 0] = P[0, 1, 1] = P[1, 0, 1] = P[1, 1, 1] = 1
    mdp = TabularMDP(P, np.zeros((2, 2)), 0.9, np.array([1.0, 0.0]))
    old, new = np.array([[1.0, 0.0]] * 2), np.array([[0.9, 0.1]] * 2)
    alpha, t = total_variation(new, old).max(), 2
    moved = np.abs(mdp.state_marginals(new, horizon=t) - mdp.state_marginals(old, horizon=t))[t].sum()
    assert moved == pytest.approx(0.38)
    assert alpha * t < moved <= 2 * alpha * t


def test_erratum_9():
    problem = TwoStates()
    traj, probability, psi, ratios = problem.data()
    gamma = problem.mdp.gamma
    right = probability @ estimators.per_decision(psi, traj, gamma, ratios)
    assert np.allclose(right[:2], problem.gradient())
    assert np.allclose(right[:2], [0.16, 0.0576])

    written = np.zeros(4)
    for t in range(2):
        for k in range(t, 2):
            weight = ratios[: t + 1].prod(axis=0) * ratios[t : k + 1].prod(axis=0) * gamma**k * traj.rewards[k]
            written += (probability * weight) @ psi[t]
    assert np.allclose(written[:2], [0.53248, 0.09216])


def test_erratum_10():
    mdp, policy, theta = stop_or_go(), npg.SoftmaxLinear(OneHot(3), 2), np.zeros(6)
    traj, probability = enumerate_trajectories(mdp, policy, theta, 2)
    psi, v = estimators.scores(policy, theta, traj), mdp.value(policy, theta)

    def mean_step(gamma_of_actor):
        steps = traj.rewards, v[traj.obs], v[traj.next_obs], traj.terminated, traj.truncated
        delta = gae(*steps, gamma_of_actor, 0.0)
        return (probability @ estimators.score_sums(psi, mdp.gamma**traj.t * delta * traj.valid))[:2]

    assert np.allclose(mean_step(mdp.gamma), mdp.gradient(policy, theta)[:2])
    assert np.allclose(mean_step(mdp.gamma), [-0.0125, 0.1])
    assert np.allclose(mean_step(1.0), [0.0125, 0.1])


def test_erratum_11():
    mdp = imani()

    def reached(features: np.ndarray, emphatic: bool) -> tuple[float, float]:
        """J_b and the return where the direction leads from θ = 0."""
        policy, theta = (
            npg.Policy(OneHot(4), Linear(features.shape[1], 2), Categorical(2)),
            np.zeros(2 * features.shape[1]),
        )
        for _ in range(3000):
            probabilities = np.exp([policy.log_prob(theta, features, np.full(4, a)) for a in (0, 1)]).T
            exact = OffPolicy(mdp, probabilities, IMANI_BEHAVIOUR)
            weights = exact.follow_on() if emphatic else exact.d
            theta = theta + policy.all_actions_gradient(theta, features, exact.action_value(), weights)
        return exact.d @ exact.value(), exact.value()[0]

    assert reached(IMANI_FEATURES, emphatic=False) == pytest.approx((7 / 8, 1), abs=0.02)
    assert reached(IMANI_FEATURES, emphatic=True) == pytest.approx((5 / 4, 2), abs=0.02)
    for emphatic in (False, True):  # a table
        assert reached(np.eye(4), emphatic) == pytest.approx((13 / 8, 2), abs=0.02)


def test_erratum_12():
    P = np.zeros((3, 2, 3))
    P[0, 1, 1] = P[0, 0, 2] = 1
    P[1:, :, 2] = 1
    mdp = TabularMDP(P, np.array([[0, 0.9], [0, -2.0], [0, 0]]), 0.9, np.array([1.0, 0, 0]))

    def policy(p):
        return np.array([[1 - p, p]] * 3)

    def kl(p, q):
        return rel_entr([1 - p, p], [1 - q, q]).sum()

    p, delta = 0.24, 0.01
    old, J = policy(p), mdp.J(policy(p))
    slope = (mdp.surrogate(policy(0.5), old) - J) / (0.5 - p)
    for q in (0.1, 0.3, 0.9):  # the surrogate is linear in p, so it is largest at the edge
        assert mdp.surrogate(policy(q), old) - J == pytest.approx(slope * (q - p))
    edge = brentq(lambda q: kl(p, q) - delta, p, 0.9)
    assert edge == pytest.approx(0.30359, abs=5e-6)
    assert mdp.surrogate(policy(edge), old) - J == pytest.approx(0.002289, abs=5e-7)
    assert (J, mdp.J(policy(edge))) == pytest.approx((0.112320, 0.107330), abs=5e-7)

    C = 2 * np.abs(mdp.advantage(old)).max() * 0.9 / (1 - 0.9) ** 2
    best = brentq(lambda q: slope - C * (q - p) / (q * (1 - q)), p, 0.3, xtol=1e-15)  # the derivative of the bound
    assert best == pytest.approx(0.240024, abs=5e-7)
    assert mdp.J(policy(best)) - J == pytest.approx(8.6e-7, abs=5e-9)
    assert mdp.J(policy(best)) >= mdp.surrogate(policy(best), old) - C * kl(p, best) > J

    x, half, new = np.ones((1, 1)), np.log([0.5, 0.5]), np.log([0.9, 0.1])
    assert one_feature.kl(half, new, x)[0] == pytest.approx(0.5108, abs=5e-5)
    assert one_feature.kl(new, half, x)[0] == pytest.approx(0.3681, abs=5e-5)
    F, step = one_feature.fisher(half, x), np.array([1e-3, 0.0])
    for pair in ((half, half + step), (half + step, half)):  # the same to second order
        assert one_feature.kl(*pair, x)[0] == pytest.approx(step @ F @ step / 2, rel=1e-3)


def test_erratum_13():
    assert returns_of([5, 0, -2], 1.0).tolist() == [3, -2, -2]


def test_erratum_14():
    game = StopOrGo()
    whole = game.mean(sum, sum)
    to_go = game.mean(lambda r: returns_of(r, 0.8)[0], lambda r: returns_of(r, 0.8)[1])
    assert np.allclose(whole, [0.0125, 0.125])
    assert np.allclose(to_go, [-0.0125, 0.125])
    undiscounted = game.mean(lambda r: returns_of(r, 1.0)[0], lambda r: returns_of(r, 1.0)[1])
    assert np.allclose(whole, undiscounted)


def test_erratum_15():
    G = returns_of([1, 1, 1], 0.9)[0]
    assert G == pytest.approx(1 + 0.9 * (1 + 0.9))
    assert G != pytest.approx(1 + 0.9 * (1 + 1))


def test_erratum_16():
    """Each step of the loop sees one score and one reward, and the sum is the reward-to-go estimate."""
    policy = npg.SoftmaxLinear(OneHot(1), 2)
    scores = policy.score(np.zeros(2), np.zeros((3, 1), dtype=int), np.array([0, 1, 0]))
    rewards = [5.0, 0.0, -2.0]
    z, X, running = np.zeros(2), np.zeros(2), []
    for psi, r in zip(scores, rewards, strict=True):
        z += psi
        X += r * z
        running.append(X[0])
    assert running == [2.5, 2.5, 1.5]
    assert np.allclose(X, returns_of(rewards, 1.0) @ scores)

    problem = TwoStates()
    traj, probability = enumerate_trajectories(problem.mdp, problem.policy, problem.stays, 2)
    online = estimators.gpomdp(estimators.scores(problem.policy, problem.stays, traj), traj, problem.mdp.gamma)
    assert np.allclose((probability @ online)[:2], problem.gradient())


def test_erratum_17():
    policy, theta, q = npg.SoftmaxLinear(OneHot(1), 2), np.log([0.2, 0.8]), np.array([1.0, 0.0])
    x, actions = np.zeros((2, 1), dtype=int), np.arange(2)
    pi = np.exp(policy.log_prob(theta, x, actions))
    grad_pi = pi[:, None] * policy.score(theta, x, actions)  # row a is ∇π(a)
    true = numerical_gradient(lambda th: np.exp(policy.log_prob(th, x, actions)) @ q, theta)[0]
    assert np.allclose(q @ grad_pi, true)
    assert true[0] == pytest.approx(0.16)
    assert ((pi @ grad_pi) * q.sum())[0] == pytest.approx(-0.096)


def test_erratum_18():
    problem = TwoStates()
    traj, probability, psi, ratios = problem.data()
    q = np.array(
        [
            problem.mdp.action_value(problem.policy, problem.stays, horizon=2 - t)[traj.obs[t], traj.actions[t]]
            for t in range(2)
        ]
    )
    discounted = problem.mdp.gamma ** np.arange(2)[:, None] * q
    written = probability @ estimators.score_sums(psi, ratios * discounted)
    corrected = probability @ estimators.score_sums(psi, ratios.cumprod(axis=0) * discounted)
    assert np.allclose(written[:2], [0.1168, 0.144])
    assert np.allclose(corrected[:2], problem.gradient())
    assert np.allclose(corrected[:2], [0.16, 0.0576])

    by_state = np.zeros(2)  # Σ_t γ^t Pr_β(S_t = s) Σ_a ∇π(a|s) q(s, a): the mean under the states of β
    p = problem.mdp.state_marginals(problem.policy, problem.uniform, horizon=2)
    for t in range(2):
        q_t = problem.mdp.action_value(problem.policy, problem.stays, horizon=2 - t)
        by_state += 0.9**t * p[t] * 0.8 * 0.2 * (q_t[:, 0] - q_t[:, 1])
    assert np.allclose(written[:2], by_state)


def test_erratum_19():
    def values(theta):
        v_1, v_2 = 2 * expit(-theta[1]), expit(theta[1])
        return np.array([expit(-theta[0]) * v_1 + expit(theta[0]) * v_2, v_1, v_2])

    d_b = np.array([1, 1 / 4, 3 / 4])  # the behaviour takes a = log 3 in the first state
    held = values(np.zeros(2))

    def action_values(a):  # q_f held at θ = 0, of the actions a = f(s; θ)
        return np.array([expit(-a[0]) * held[1] + expit(a[0]) * held[2], 2 * expit(-a[1]), expit(a[1])])

    kept = numerical_gradient(lambda a: d_b @ action_values(a), np.zeros(2))[0]
    assert kept == pytest.approx([-1 / 8, 1 / 16])
    assert numerical_gradient(lambda theta: d_b @ values(theta), np.zeros(2))[0] == pytest.approx([-1 / 8, -1 / 16])


def test_erratum_20():
    chain = Chain()
    right = chain.mean(lambda psi, r: psi[0] * r.sum() + psi[1] * r[1])
    product_of_sums = chain.mean(lambda psi, r: psi.sum(axis=0) * (r.sum() + r[1]))
    assert np.allclose(right, [0.25, 0.25])
    assert np.allclose(product_of_sums, [0.25, 0.5])


def test_erratum_21():
    """The bandit with N = 2; the estimators are those of Reinforce, the plain mean by the identity of Eq. (1.13)."""
    policy = npg.SoftmaxLinear(OneHot(1), 2)
    score = policy.score(np.zeros(2), np.zeros((2, 1), dtype=int), np.arange(2))
    plain, left_out = np.zeros(2), np.zeros(2)
    for a in (0, 1):
        for b in (0, 1):
            G = np.array([1.0 - a, 1.0 - b])
            plain += 0.25 * (score[a] * (G[0] - G.mean()) + score[b] * (G[1] - G.mean())) / 2
            baseline = npg.baselines.leave_one_out_mean(np.zeros(2, dtype=int), G)
            left_out += 0.25 * ((G - baseline) @ score[[a, b]]) / 2
    assert left_out[0] == pytest.approx(0.25)
    assert plain[0] == pytest.approx(0.125)


def test_erratum_22():
    mdp, traj, probability = every_episode([[1, 2], [3, 3], [3, 3], [3, 3]], [0, 1, 0, 0], 2)

    def squares(w):
        w = np.append(w, 0.0)
        delta = gae(traj.rewards, w[traj.obs], w[traj.next_obs], traj.terminated, traj.truncated, 1.0, 0.0)
        return probability @ (delta**2 * traj.valid).sum(axis=0)

    v, rest = np.array([0.5, 1.0, 0.0]), np.array([0.5, 0.75, 0.25])
    assert np.allclose(mdp.value(np.full((4, 2), 0.5))[:3], v)
    assert np.allclose(numerical_gradient(squares, rest)[0], 0, atol=1e-9)
    assert squares(rest) == pytest.approx(0.125)
    assert squares(v) == pytest.approx(0.25)

    assert np.allclose(mdp.td_fixed_point(np.full((4, 2), 0.5), x=np.eye(4))[:3], v)
    td = TDLambda(LinearValue(OneHot(4)), traj.obs.shape[1], 0.1, 1.0, 0.0)  # equally likely columns, so exact means
    for w, stays in ((v, True), (rest, False)):
        td.w = np.append(w, 0.0)
        for t in range(2):
            td.update(replace(traj, **{name: getattr(traj, name)[t : t + 1] for name in traj.arrays()}))
        assert np.allclose(td.w[:3], w) == stays


def test_erratum_23():
    game, policy = one_state([1.0, -1.0], [1.0, 0.0]), npg.SoftmaxLinear(OneHot(2), 2)
    theta = np.log([3.0, 1.0, 1.0, 1.0])
    traj, probability = enumerate_trajectories(game, policy, theta, 2)
    psi = estimators.scores(policy, theta, traj)
    q = np.array([game.action_value(policy, theta, horizon=2 - t)[traj.obs[t], traj.actions[t]] for t in range(2)])
    q *= traj.valid
    G = discounted_returns(traj.rewards, traj.terminated, traj.truncated, 1.0)
    sampled, exact = estimators.reward_to_go(psi, traj, 1.0), estimators.score_sums(psi, q)
    assert np.allclose(probability @ exact, probability @ sampled)
    assert variance(probability, sampled) == pytest.approx(0, abs=1e-12)
    assert variance(probability, exact) == pytest.approx(9 / 128)
    for t in range(2):
        of_one_step = [variance(probability, w[t][:, None] * psi[t]) for w in (q, G)]
        assert of_one_step[0] <= of_one_step[1] + 1e-12

    chain = Chain()
    of_chain = []
    for later in (lambda r: r[1], lambda r: 0.5):  # what follows the first step: its reward, or the mean of that

        def X(psi, r, later=later):
            return psi[0] * (r[0] + later(r)) + psi[1] * r[1]

        square = chain.mean(lambda psi, r, X=X: X(psi, r) ** 2)
        of_chain.append(2 * (square - chain.mean(X) ** 2).sum())  # two logits a state
    assert of_chain == pytest.approx([3 / 4, 5 / 8])

    bandit = one_state([1.0, 0.0], [0.0, 0.0])
    traj, probability = enumerate_trajectories(bandit, policy, theta, 1)
    psi = estimators.scores(policy, theta, traj)
    plain, value = (estimators.reward_to_go(psi, traj, 1.0, b) for b in (0.0, bandit.value(policy, theta)[0]))
    assert variance(probability, plain) == pytest.approx(3 / 128)
    assert variance(probability, value) == pytest.approx(3 / 32)


def test_erratum_24():
    problem = TwoStates()
    old = problem.staying(0.5)

    def A_bar(new):
        return problem.mdp.surrogate(new, old) - problem.mdp.J(old)

    assert A_bar(old) == pytest.approx(0, abs=1e-12)
    assert A_bar(problem.staying(0.51)) == pytest.approx(0.1405)


def test_erratum_25():
    p, q, f = np.array([0.5, 0.5]), np.array([0.49, 0.51]), np.array([-1.0, -1.0])
    l1 = np.abs(p - q).sum()
    assert q @ f == -1
    assert p @ f - l1 * f.max() == pytest.approx(-0.98)
    assert p @ f - l1 * np.abs(f).max() == pytest.approx(-1.02)


def test_erratum_26():
    problem = TwoStates()
    mdp, old, new = problem.mdp, problem.staying(0.5), problem.staying(0.51)
    A_max, r_max = np.abs(mdp.advantage(old)).max(), np.abs(mdp.R).max()

    def gain_and_penalty(mdp, new, old, C):
        discounted_times = mdp.gamma / (1 - mdp.gamma) ** 2  # Σ_t t γ^t
        return mdp.surrogate(new, old) - mdp.J(old), 2 * total_variation(new, old).max() * discounted_times * C

    assert gain_and_penalty(mdp, new, old, r_max / 0.1) == pytest.approx((0.1405, 36))
    assert gain_and_penalty(mdp, new, old, A_max) == pytest.approx((0.1405, 2.205))
    assert mdp.lower_bound(new, old) - mdp.J(old) == pytest.approx(0.0964)
    assert mdp.J(new) - mdp.J(old) == pytest.approx(0.1403, abs=5e-5)

    for seed in range(20):  # whatever the new policy, and however near: nothing is left
        rng = np.random.default_rng(seed)
        mdp = garnet(5, 3, 2, gamma=rng.uniform(2 / 3, 0.99), seed=rng)
        old, other = rng.dirichlet(np.ones(3), size=(2, 5))
        greedy = np.eye(3)[mdp.advantage(old).argmax(axis=1)]
        for target in (greedy, other):
            for step in (1e-4, 1e-2, 1.0):
                new = (1 - step) * old + step * target
                gain, penalty = gain_and_penalty(mdp, new, old, np.abs(mdp.R).max() / (1 - mdp.gamma))
                assert gain <= penalty
                assert mdp.lower_bound(new, old) <= mdp.J(new) + 1e-9
        step = 1e-3 * (1 - mdp.gamma) ** 2
        assert mdp.lower_bound((1 - step) * old + step * greedy, old) > mdp.J(old)


def test_erratum_27():
    """The batch has each action of the bandit once, and the first step of the agent has a divergence of 0.001."""
    L = one_state_rows(np.array([0.5, 0.5]), [0, 1], [0.5, -0.5])
    step = np.arccosh(np.exp(0.001))  # of each logit: the divergence is log cosh of it
    divergence = L.kl(L.theta_old + np.array([step, -step]))
    assert divergence == pytest.approx(0.001)
    written = 0.05 + 10 * (divergence - 0.01)
    assert written == pytest.approx(-0.04)

    policy = npg.SoftmaxLinear(OneHot(2), 2)
    agent = DualDescent(
        policy,
        value_features=OneHot(2),
        gamma=1.0,
        epsilon=0.01,
        dual_steps=1,
        primal_steps=1,
        mu=0.05,
        normalize=None,
        optimizer="ascent",
        alpha=step / 0.25,
        alpha_mu=10.0,
    )
    agent.init(np.random.default_rng(0))
    agent.theta[:] = 0
    traj, _ = enumerate_trajectories(one_state([0.5, -0.5], [0.0, 0.0]), policy, agent.theta, 1)
    assert agent.update(traj, np.random.default_rng(0))["kl"] == pytest.approx(0.001)
    assert agent.multiplier == 0

    def lagrangian(x, multiplier):
        theta = np.array([x / 2, -x / 2])
        return L.value(theta) - multiplier * (L.kl(theta) - 0.01)

    found = [lagrangian(x, written) for x in (100, 1000, -100)]
    assert found == pytest.approx([2.47, 20.47, 1.47], abs=5e-3)
    assert max(lagrangian(x, 0.0) for x in (-100, 1, 100, 1000)) <= 0.5 + 1e-12


def test_erratum_28():
    ks, sigma, a = 1.0, 0.5, 1.2
    d_log_sigma = gaussian.score(eta(ks, sigma), np.array([[a]]))[0, 1]
    assert d_log_sigma / sigma == pytest.approx(-1.68)  # ∂/∂σ = (∂/∂ log σ)/σ
    slope = (norm.logpdf(a, ks, sigma + 1e-6) - norm.logpdf(a, ks, sigma - 1e-6)) / 2e-6
    assert slope == pytest.approx(-1.68, rel=1e-6)
    assert (a - ks) ** 2 / sigma**3 == pytest.approx(0.32)


def test_erratum_29():
    chain = Chain()
    grad_pi_q = chain.mean(lambda psi, r: psi[0] * r[0] + psi[1] * r[1])  # each state is visited once
    true = chain.mean(lambda psi, r: psi.sum(axis=0) * r.sum())
    assert np.allclose(true, grad_pi_q)
    assert np.allclose(grad_pi_q / 2, [0.125, 0.125])  # μ = (1/2, 1/2)


def test_erratum_30():
    rewards = [5.0, 0.0, -2.0]
    assert returns_of(rewards, 1.0)[0] == 3
    assert returns_of(rewards, 1.0)[0] != sum(rewards[1:])


def test_erratum_31():
    """If the rewards 5, 0, −2 are the only course, v is the reward-to-go and every advantage is zero."""
    G = returns_of([5, 0, -2], 1.0)
    v = np.array([3.0, -2.0, -2.0])
    assert np.array_equal(G - v, np.zeros(3))
    assert (G[0] - v)[2] == 5


def test_erratum_32():
    """The step of Reinforce does not grow with the number of episodes of equal returns."""
    env = npg.make_vec("CartPole-v1", 4, max_episode_steps=2)
    steps = []
    for M in (4, 40):
        agent = npg.make_agent(
            "reinforce", env, episodes=M, baseline="none", normalize=None, optimizer="ascent", alpha=1.0
        )
        agent.init(np.random.default_rng(0))
        traj = Collector(env, 0).collect(agent, npg.Episodes(4), np.random.default_rng(0))
        copies = traj[np.tile(np.arange(4), M // 4)]
        agent.update(copies, np.random.default_rng(0))
        steps.append(agent.theta)
    assert np.allclose(steps[0], steps[1], rtol=1e-12)
    assert np.abs(steps[0]).max() > 1e-3


def test_erratum_33():
    game = StopOrGo()
    without = game.mean(lambda r: returns_of(r, 0.8)[0], lambda r: returns_of(r, 0.8)[1])
    with_factor = game.mean(lambda r: returns_of(r, 0.8)[0], lambda r: 0.8 * returns_of(r, 0.8)[1])

    def J(xy):
        p, u = 1 / (1 + np.exp(-xy))
        return p * game.gamma * u + (1 - p) * game.r

    assert np.allclose(with_factor, numerical_gradient(J, np.zeros(2))[0])
    assert np.allclose(with_factor, [-0.0125, 0.1])
    assert np.allclose(without, [-0.0125, 0.125])


def test_erratum_34():
    P = np.zeros((3, 2, 3))
    P[0, 0, 1] = P[0, 1, 2] = 1
    P[1:, :, 1:] = np.eye(2)[:, None]
    mdp = TabularMDP(P, np.zeros((3, 2)), 0.9, np.array([1.0, 0.0, 0.0]))
    old, new = np.array([[0.1, 0.9]] * 3), np.array([[0.0, 1.0]] * 3)
    epsilon = total_variation(new, old).max()
    p, p_new = (mdp.state_marginals(pi, horizon=1)[1] for pi in (old, new))
    mistake = (p_new - (1 - epsilon) * p) / epsilon
    assert np.allclose(mistake, [0, -0.9, 1.9])  # no distribution
    moved = np.abs(p_new - p).sum()
    assert moved == pytest.approx(0.2)
    assert epsilon * np.abs(np.eye(3)[1:] - p).sum(axis=1).max() == pytest.approx(0.18)  # convex: largest at a corner
    assert moved <= 2 * epsilon + 1e-12
    assert (p >= (1 - epsilon) * p_new - 1e-12).all()  # the other way, from a deterministic policy, there is a mixture


def test_erratum_35():
    problem = TwoStates()
    mdp, policy, theta = problem.mdp, problem.policy, problem.uniform
    mu = mdp.stationary_distribution(policy, theta)
    assert np.allclose(mu, 0.5)
    inside = mu @ mdp.value_jacobian(policy, theta)  # Σ_s μ(s) ∇V(s)

    def gradient_of(f):
        return numerical_gradient(f, theta)[0][:2]

    moving = gradient_of(lambda th: mdp.stationary_distribution(policy, th) @ mdp.value(policy, th))
    J = gradient_of(lambda th: mdp.J(policy, th))
    assert np.allclose(inside[:2], [0.6875, 3.0625])
    assert np.allclose(moving, [0.625, 3.125])
    assert np.allclose(J, [0.75625, 2.75625])
    beta = np.array([0.3, 0.7])  # weights that do not depend on θ
    assert np.allclose(
        gradient_of(lambda th: beta @ mdp.value(policy, th)), beta @ mdp.value_jacobian(policy, theta)[:, :2]
    )


def test_erratum_36():
    rewards, zero = np.array([[0.0], [1.0]]), np.zeros((2, 1))
    ends, cut = np.array([[False], [True]]), np.zeros((2, 1), dtype=bool)
    windows = [n_step_returns(rewards, zero, ends, cut, 1.0, n)[0, 0] for n in (1, 2)]
    assert windows == [0, 1]
    for lam, written, right in ((0.5, 1 / 3, 1 / 2), (1.0, 1 / 2, 1.0)):
        assert np.average(windows, weights=[1, lam]) == pytest.approx(written)
        assert gae(rewards, zero, zero, ends, cut, 1.0, lam)[0, 0] == pytest.approx(right)
    long = [windows[min(n, 2) - 1] for n in range(1, 200)]  # with the last window repeated for ever
    assert np.average(long, weights=0.5 ** np.arange(199)) == pytest.approx(1 / 2)


def test_erratum_37():
    mdp, traj, probability = every_episode([[1, 2], [4, 4], [3, 3], [4, 4], [4, 4]], [0] * 5, 3)
    assert np.allclose(mdp.value(np.full((5, 2), 0.5)), 0)
    v_hat = np.array([0.0, 1.0, -1.0, 1.0, 0.0])
    ends = traj.terminated, traj.truncated
    for n, expected in ((1, (0, 1)), (2, (1 / 2, 1 / 4)), (3, (0, 0))):
        G = n_step_returns(traj.rewards, v_hat[traj.next_obs], *ends, 1.0, n)[0]
        assert bias_and_variance(probability, G) == pytest.approx(expected)

    def advantage(lam, v_hat=v_hat):
        return gae(traj.rewards, v_hat[traj.obs], v_hat[traj.next_obs], *ends, 1.0, lam)[0]

    for lam, expected in ((0.0, (0, 1)), (0.5, (1 / 8, 9 / 64)), (1.0, (0, 0))):
        assert bias_and_variance(probability, advantage(lam)) == pytest.approx(expected)
    assert probability @ advantage(1.0, v_hat + np.eye(5)[0]) == pytest.approx(-1)


def test_erratum_38():
    ones, x, last = np.ones((100, 1)), np.ones((100, 1, 1)), np.arange(100)[:, None] == 99
    flags = {"limit": (~last & last, last), "done": (last, ~last & last)}
    v = {name: lstd(x, ones, x, *ends, ones == 1, 0.99, 0.0, 0.0)[0] for name, ends in flags.items()}
    assert v["limit"] == pytest.approx(1 / (1 - 0.99))
    assert v["done"] == pytest.approx(50.25, abs=5e-3)


def test_erratum_39():
    """The batch has each action of the bandit once; the fitted critic is 1/2, and the first step leads to p = 0.8."""
    policy = npg.SoftmaxLinear(OneHot(2), 2)
    traj, probability = enumerate_trajectories(one_state([1.0, 0.0], [0.0, 0.0]), policy, np.zeros(4), 1)
    assert np.allclose(probability, 0.5)
    alpha = 2 * np.log(4)
    good = []
    for K_pi in (1, 2):
        agent = BatchActorCritic(
            policy,
            value_features=OneHot(2),
            gamma=1.0,
            target="mc",
            K_pi=K_pi,
            ridge=0.0,
            optimizer="ascent",
            alpha=alpha,
        )
        agent.init(np.random.default_rng(0))
        agent.theta[:] = 0
        agent.update(traj, np.random.default_rng(0))
        good.append(agent.theta[0])
    assert good[0] == pytest.approx(0.25 * alpha)
    assert good[1] - good[0] == pytest.approx(0.16 * alpha)

    theta = np.zeros(4)
    for _ in range(20):  # without the ratio the step never gets smaller
        step = policy.weighted_score(theta, traj.x[0], traj.actions[0], probability * (traj.rewards[0] - 0.5))
        assert step[0] == pytest.approx(0.25)
        theta = theta + alpha * step


def test_erratum_40():
    mdp, policy, beta = stop_or_go(), npg.SoftmaxLinear(OneHot(3), 2), 0.5
    x = mdp.features(policy)
    living = ~mdp.terminal

    def J_beta(theta):
        bonus = beta * policy.entropy(theta, x) * living
        return replace(mdp, R=mdp.R + bonus[:, None]).J(policy, theta)

    def written(theta):
        d = mdp.visitation(policy, theta)
        return mdp.gradient(policy, theta) + beta * policy.entropy_grad(theta, x, d)

    theta = np.zeros(6)
    assert np.allclose(written(theta)[:2], [-0.0125, 0.1])
    assert np.allclose(numerical_gradient(J_beta, theta)[0][:2], [0.0568, 0.1], atol=5e-5)

    theta[1] = 1.0  # the logit of the second decision: x = 0, y = 1
    by_y, by_x = (numerical_gradient(lambda th, i=i: written(th)[i], theta)[0][1 - i] for i in (0, 1))
    assert (by_y, by_x) == pytest.approx((0.0393, 0.0197), abs=5e-5)


def test_erratum_41():
    x, actions = np.array([[3.0], [3.0], [1.0], [1.0]]), np.array([0, 1, 0, 1])
    old, delta = np.zeros(2), 0.01
    L = Surrogate(one_feature, old, x, actions, np.array([0.5, -0.5, -1.49, 1.49]))

    def J(theta):
        p = np.exp(one_feature.log_prob(theta, x, actions))
        return p @ [1.0, 0.0, 0.0, 2.98] / 2

    def F(v):
        return one_feature.fisher_vector_product(old, x, v)

    g = L.gradient(old)
    natural = conjugate_gradient(F, g, max_iter=2, tol=1e-10).x
    full = kl_step(natural, F(natural), delta)
    assert L.kl(full) == pytest.approx(0.009946, abs=5e-7)
    assert L.kl(full) <= delta  # taken by the written rule
    for theta, gain in ((full, -0.000182), (full / 2, 0.000095)):
        assert L.value(theta) == pytest.approx(gain, abs=5e-7)
        assert J(theta) - J(old) == pytest.approx(L.value(theta), abs=1e-12)
    found = backtracking_line_search(L.value, old, full, g @ full, constraint=L.kl, radius=delta)
    assert (found.accepted, found.backtracks) == (True, 1)
    assert np.allclose(found.x, full / 2)


def test_erratum_42():
    rng, policy, products = np.random.default_rng(0), npg.SoftmaxLinear(OneHot(4), 3), []
    x, theta = rng.normal(size=(50, 4)), rng.normal(size=12)
    g = policy.weighted_score(theta, x, policy.sample(theta, x, rng), rng.normal(size=50) / 50)

    def F(v):
        products.append(v)
        return policy.fisher_vector_product(theta, x, v)

    one = conjugate_gradient(F, g, max_iter=1, tol=1e-10)
    assert len(products) == 1
    assert one.x @ g == pytest.approx(np.linalg.norm(one.x) * np.linalg.norm(g))  # the plain gradient
    assert one.residual_norm > 0.1 * np.linalg.norm(g)
    assert not conjugate_gradient(F, g, max_iter=7, tol=1e-10).converged
    products.clear()
    natural = conjugate_gradient(F, g, max_iter=100, tol=1e-10)
    assert natural.converged
    assert (natural.iterations, len(products)) == (8, 9)  # the last product checks the solution
    assert np.allclose(natural.x, np.linalg.pinv(policy.fisher(theta, x), rcond=1e-12) @ g)

    assert np.ceil(np.sqrt(1e4) / 2 * np.log(2 / 1e-2)) == 265


def test_erratum_43():
    x, g = np.ones((1, 1)), Batch.L.gradient(Batch.theta)
    H = one_feature.fisher(Batch.theta, x)
    assert np.allclose(H, 0.16 * np.array([[1, -1], [-1, 1]]))
    assert np.linalg.matrix_rank(H) == 1
    with pytest.raises(ValueError, match="positive definite"):
        cholesky_solve(H, g)
    assert np.allclose(g, [0.16, -0.16])
    found = conjugate_gradient(lambda v: H @ v, g, max_iter=5, tol=1e-10)
    assert (found.converged, found.iterations) == (True, 1)
    assert np.allclose(found.x, [0.5, -0.5])
    assert np.allclose(found.x, np.linalg.pinv(H) @ g)
    outside = conjugate_gradient(lambda v: H @ v, np.array([0.16, 0.0]), max_iter=5, tol=1e-10)
    assert (outside.converged, outside.nonpositive_curvature) == (False, True)


def test_erratum_44():
    chain, N, delta = Chain(), 10, 0.01
    x = chain.policy.features(np.tile([0, 1], N))
    L = Surrogate(chain.policy, chain.theta, x, np.zeros(2 * N, dtype=int), np.zeros(2 * N))
    g = np.array([0.25, 0.25, -0.25, -0.25])
    for weight, divergence in ((1 / (2 * N), 0.00997), (1 / N, 0.00499)):
        H = chain.policy.fisher(chain.theta, x, np.full(2 * N, weight))
        natural = np.linalg.pinv(H) @ g
        assert L.kl(kl_step(natural, H @ natural, delta)) == pytest.approx(divergence, abs=5e-6)
    assert np.allclose(chain.policy.fisher(chain.theta, x), H / 2)


def test_erratum_45():
    old = np.array([0.1, 0.9])
    L, theta, ratios = one_state_rows(old, [0, 1], [-1.0, 1.0]), np.log(old), []
    for _ in range(1000):
        theta = theta + 0.1 * L.gradient(theta, 0.2)
        ratios.append(L.ratio(theta))
    assert ratios[99][0] == pytest.approx(0.445, abs=5e-4)
    assert ratios[999][0] == pytest.approx(0.084, abs=5e-4)
    assert (np.diff([rho[0] for rho in ratios]) < 0).all()  # although clipped below 0.8
    assert max(rho[1] for rho in ratios) < 1 / 0.9
    clipped = one_state_rows(old, [0], [-1.0])
    assert (clipped.gradient(theta, 0.2) == 0).all()

    mirrored = one_state_rows(old, [0, 1], [1.0, -1.0])
    far = np.log(old) + 5 * mirrored.gradient(np.log(old), 0.2)
    assert far[0] - far[1] == pytest.approx(np.log(old[0] / old[1]) + 5)
    assert mirrored.ratio(far) == pytest.approx([9.43, 0.0635], rel=5e-4)


def test_erratum_46():
    system = LQR([[1, 0.3], [-0.2, 0.9]], [[0], [1]], np.eye(2), np.eye(1), gamma=0.9, S0=np.eye(2))
    K, theta = np.array([[-0.3, -0.6]]), np.array([-0.3, -0.6])
    M = system.A + system.B @ K
    X = solve_discrete_lyapunov(np.sqrt(0.9) * M, np.eye(2))

    def value(theta, X):  # Σ_s d(s) v_θ(s), d of second moment X, up to what does not depend on θ
        V = solve_discrete_lyapunov(
            np.sqrt(0.9) * (system.A + system.B @ [theta]).T, np.eye(2) + np.outer(theta, theta)
        )
        return -np.trace(V @ X)

    assert numerical_gradient(lambda theta: value(theta, X), theta)[0] == pytest.approx([5.463, -5.183], abs=1e-3)
    gradient = numerical_gradient(lambda theta: value(theta, np.eye(2)), theta)[0]
    assert gradient == pytest.approx([1.743, -1.800], abs=1e-3)
    assert system.deterministic_gradient(K)[0] == pytest.approx(gradient, rel=1e-6)


def test_erratum_47():
    pi, r, gamma, v, q = np.array([0.8, 0.2]), np.array([1.0, 0.0]), 0.9, 0.0, np.zeros(2)
    for _ in range(300):  # the buffer has both actions alike
        v = (r + gamma * v).mean()
        q = r + gamma * pi @ q
    true = TabularMDP(np.ones((1, 2, 1)), r[None], gamma, np.ones(1)).value(pi[None])[0]
    assert (v, pi @ q, true) == pytest.approx((5, 8, 8))
    assert q == pytest.approx([8.2, 7.2])


def test_erratum_48():
    psi, q = np.array([0.5, -0.5]), np.array([101.0, 100.0])  # of the difference of the logits, π = (1/2, 1/2)
    without, baseline = psi * q, psi * (q - q.mean())
    assert (without.mean(), baseline.mean()) == pytest.approx((0.25, 0.25))
    assert (without.var(), baseline.var()) == pytest.approx((2525.0625, 0))
