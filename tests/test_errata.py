"""For each erratum: a number that the written form gets wrong and the right form gets right."""

import numpy as np
import pytest
from scipy import integrate
from scipy.stats import norm

import npg
from npg.distributions import DiagonalGaussian
from npg.features import Constant, OneHot
from npg.gradcheck import numerical_gradient
from npg.returns import discounted_returns

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


def test_erratum_17():
    policy, theta, q = npg.SoftmaxLinear(OneHot(1), 2), np.log([0.2, 0.8]), np.array([1.0, 0.0])
    x, actions = np.zeros((2, 1), dtype=int), np.arange(2)
    pi = np.exp(policy.log_prob(theta, x, actions))
    grad_pi = pi[:, None] * policy.score(theta, x, actions)  # row a is ∇π(a)
    true = numerical_gradient(lambda th: np.exp(policy.log_prob(th, x, actions)) @ q, theta)[0]
    assert np.allclose(q @ grad_pi, true)
    assert true[0] == pytest.approx(0.16)
    assert ((pi @ grad_pi) * q.sum())[0] == pytest.approx(-0.096)


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
            baseline = npg.returns.leave_one_out_mean(np.zeros(2, dtype=int), G)
            left_out += 0.25 * ((G - baseline) @ score[[a, b]]) / 2
    assert left_out[0] == pytest.approx(0.25)
    assert plain[0] == pytest.approx(0.125)


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
            "reinforce", env, episodes=M, baseline="none", normalize=False, optimizer="ascent", alpha=1.0
        )
        agent.init(np.random.default_rng(0))
        traj = npg.rollout.Collector(env, 0).collect(agent, npg.Episodes(4), np.random.default_rng(0))
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
