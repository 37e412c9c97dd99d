"""COPDAC-Q against its box; whom it evaluates, and where its actor goes."""

import numpy as np
import pytest
from continuous import LINEAR, deterministic, policy_of, quadrature, seen, transitions_of
from gymnasium.wrappers import TimeLimit
from hypothesis import given
from hypothesis import strategies as st
from oracles import close, collected, derivative, make, row_of, stream
from strategies import examples, seeds

import npg
from npg import features as F
from npg.algorithms import COPDACQ, DPGSarsa
from npg.envs.lqr import LQREnv
from npg.lqr import LQR

STEPS = {"gamma": 0.8, "alpha": 0.02, "alpha_w": 0.1, "alpha_v": 0.2}


def box(W, w, v, rows, *, gamma, alpha, alpha_w, alpha_v, natural):
    """The box of chapter 13; θ, w and v after each step."""
    for s in rows:
        phi = s.J.T @ (s.a - s.J @ W)
        delta = s.r + gamma * v @ s.phi_next - w @ phi - v @ s.phi
        theta = W + alpha * (w if natural else s.J.T @ s.J @ w)
        W, w, v = theta, w + alpha_w * delta * phi, v + alpha_v * delta * s.phi
        yield W, w, v


@pytest.mark.equation("13.18", defining=True)
@pytest.mark.equation("13.9", "13.12", "8.10")
@pytest.mark.parametrize("kind", LINEAR)
@given(seeds, st.booleans())
@examples(20)
def test_one_column_is_the_box_line_by_line(kind, seed, natural):
    case, setting = LINEAR[kind], STEPS | {"natural": natural}
    agent, steps = make(COPDACQ, case, seed, **setting), stream(case, seed)
    n, log_sigma = agent.mu.n_params, agent.theta[agent.mu.n_params :].copy()
    begin = agent.theta[:n].copy(), agent.w.copy(), agent.v.copy()
    expected = box(*begin, (seen(case, row_of(traj)) for traj in steps), **setting)
    for traj, (W, w, v) in zip(steps, expected, strict=True):
        agent.update(traj, np.random.default_rng(0))
        close(agent.theta[:n], W)
        close(agent.w, w)
        close(agent.v, v)
    assert np.array_equal(agent.theta[n:], log_sigma)


@pytest.mark.equation("13.18")
def test_a_collected_run_is_the_box_line_by_line():
    lqr = LQR()
    case = LINEAR["dense"]._replace(policy=lqr.policy(), value_features=F.Polynomial(1, degree=2, scale=1.0))
    setting = STEPS | {"natural": False, "alpha": 0.001, "alpha_w": 0.01, "alpha_v": 0.01}
    agent = COPDACQ(case.policy, case.value_features, sigma=0.5, **setting)
    agent.init(np.random.default_rng(0))
    W, w, v, steps = np.zeros(1), np.zeros(1), np.zeros(3), []
    for traj in collected(agent, TimeLimit(LQREnv(lqr), 10), 50):
        agent.update(traj, np.random.default_rng(0))
        steps.append(traj)
    assert any(traj.truncated.any() for traj in steps)
    *_, (W, w, v) = box(W, w, v, (seen(case, row_of(traj)) for traj in steps), **setting)
    close(agent.theta[:1], W)
    close(agent.w, w)
    close(agent.v, v)


# Acting


@pytest.mark.equation("13.13")
@pytest.mark.parametrize("cls", [COPDACQ, DPGSarsa])
def test_it_explores_with_its_sigma_around_mu_and_acts_mu_without(cls):
    case, sigma, B = LINEAR["dense"], 0.3, 40_000
    agent = cls(case.policy, case.value_features, sigma=sigma)
    agent.init(np.random.default_rng(0))
    n = agent.mu.n_params
    agent.theta[:n] = np.random.default_rng(1).normal(size=n)
    s = np.array([0.2, -0.7])
    mu = agent.theta[:n].reshape(2, -1) @ np.array([*s, 1])
    a, _ = agent.act(np.tile(s, (B, 1)), np.random.default_rng(2), explore=False)
    np.testing.assert_allclose(a, np.tile(mu, (B, 1)), rtol=1e-14)
    a, _ = agent.act(np.tile(s, (B, 1)), np.random.default_rng(2))
    z = (a - mu) / sigma
    assert np.abs(z.mean(axis=0)).max() < 5.5 / np.sqrt(B)
    assert np.abs((z.T @ z) / B - np.eye(2)).max() < 5.5 * np.sqrt(2 / B)


@pytest.mark.parametrize("cls", [COPDACQ, DPGSarsa])
def test_sigma_is_a_setting_and_not_a_function_of_the_state(cls):
    affine = F.Affine(2, scale=1.0)
    with pytest.raises(TypeError, match="needs constant scale_features, because σ is a setting, got Pair"):
        cls(npg.GaussianLinear(affine, affine, 1), affine)


# Whom it evaluates


def centred(p, d, sigma, v):
    """E_d[J_sᵀ(A − μ(s)) (R + γ v(S'))] for Gaussian actions, exactly: (n,)."""
    nodes, weights = quadrature(p.m)
    a = p.mu() + sigma * nodes[:, None, :]
    phi = np.einsum("smn,qsm->qsn", p.J, sigma * np.broadcast_to(nodes[:, None, :], a.shape))
    return np.einsum("q,s,qsn,qs->n", weights, d, phi, p.mdp.target(a, v))


@pytest.mark.equation("13.14", defining=True)
@given(deterministic(most=3), st.sampled_from([0.3, 0.8]))
@examples(50)
def test_with_exact_state_values_the_actor_follows_the_gradient_of_the_policy_that_explores(p, sigma):
    smooth = p.mdp.smoothed(sigma)
    v, size = smooth.v(p.mu()), 1 + np.abs(p.g()).max()
    for d in (p.rng.dirichlet(np.ones(len(v))), smooth.visitation(p.mu())):
        w = np.linalg.lstsq(sigma**2 * p.F(d), centred(p, d, sigma, v), rcond=1e-10)[0]
        expected = d @ p.g(smooth)
        np.testing.assert_allclose(p.F(d) @ w, expected, rtol=0, atol=1e-8 * size * d.sum())
    gradient = derivative(lambda theta: smooth.J(p.mu(theta)), p.theta)
    np.testing.assert_allclose(p.F(d) @ w, gradient, rtol=0, atol=1e-8 * size * d.sum())


def noisy_rows(rng, sigma, m=2, d=2, count=4):
    """States and actions μ(s) + σξ, where ξ takes vectors of mean 0 and covariance I equally often, for W = 0."""
    xi = np.sqrt(m) * np.concatenate([np.eye(m), -np.eye(m)])
    s = rng.normal(size=(count, d))
    return np.repeat(s, 2 * m, axis=0), np.tile(sigma * xi, (count, 1)), xi


@pytest.mark.equation("13.14", "13.18")
@given(seeds, st.sampled_from([0.5, 2.0]))
@examples(50)
def test_the_mean_update_is_that_of_a_block_triangular_matrix(seed, sigma):
    rng, gamma = np.random.default_rng(seed), 0.9
    s, a, _ = noisy_rows(rng, sigma)
    r, s_next = rng.normal(size=len(s)), rng.normal(size=s.shape)
    agent = COPDACQ(policy_of(2, 2), F.Affine(2, scale=1.0), gamma=gamma, alpha=0.0, alpha_w=1.0, alpha_v=1.0)
    agent.init(rng, columns=len(s))
    w, v = agent.w, agent.v = rng.normal(size=4), rng.normal(size=3)
    agent.update(transitions_of(agent.policy, s, a, r, s_next), rng)
    J = np.stack([np.kron(np.eye(2), x) for x in s])
    phi, phi_s, phi_next = np.einsum("bmn,bm->bn", J, a), *(np.c_[x, np.ones(len(s))] for x in (s, s_next))
    F_, G, B = np.einsum("bmn,bmk->nk", J, J) / len(s), phi.T @ phi_next / len(s), len(s)
    A_v = phi_s.T @ (phi_s - gamma * phi_next) / B
    expected_w = phi.T @ r / B - sigma**2 * F_ @ w + gamma * G @ v
    expected_v = phi_s.T @ r / B - A_v @ v
    np.testing.assert_allclose(agent.w - w, expected_w, rtol=0, atol=1e-11 * (1 + np.abs(expected_w).max()))
    np.testing.assert_allclose(agent.v - v, expected_v, rtol=0, atol=1e-11 * (1 + np.abs(expected_v).max()))


@pytest.mark.equation("13.14", "13.19")
@given(deterministic(ends=False), st.sampled_from([0.3, 2.0]))
@examples(100)
def test_where_the_weights_are_on_policy_the_mean_update_is_stable(p, sigma):
    smooth = p.mdp.smoothed(sigma)
    P, phi = smooth.P(p.mu()), p.rng.normal(size=(len(p.X), 1 + p.rng.integers(len(p.X))))
    values, vectors = np.linalg.eig(P.T)
    d = np.real(vectors[:, np.argmax(values.real)])
    d = d / d.sum()
    A_v = phi.T @ np.diag(d) @ (phi - p.mdp.gamma * P @ phi)
    assert np.linalg.eigvalsh(A_v + A_v.T)[0] > 0
    assert np.linalg.eigvalsh(sigma**2 * p.F(d))[0] > -1e-12


@pytest.mark.equation("13.19", defining=True)
@given(seeds, st.sampled_from([0.5, 2.0]))
@examples(50)
def test_its_error_is_that_of_td_in_the_mean_and_that_of_sarsa_with_less_variance(seed, sigma):
    rng, gamma = np.random.default_rng(seed), 0.9
    s, a, xi = noisy_rows(rng, sigma)
    r, s_next = rng.normal(size=len(s)), rng.normal(size=s.shape)
    s, a, r, s_next = (np.repeat(part, len(xi), axis=0) for part in (s, a, r, s_next))
    a_next = np.tile(sigma * xi, (len(s) // len(xi), 1))
    agents = [cls(policy_of(2, 2), F.Affine(2, scale=1.0), gamma=gamma, alpha=0.0) for cls in (COPDACQ, DPGSarsa)]
    w, v, squares, moved = rng.normal(size=4), rng.normal(size=3), [], []
    for agent in agents:
        agent.init(rng, columns=len(s))
        agent.w, agent.v = w, v
        squares.append(agent.update(transitions_of(agent.policy, s, a, r, s_next), rng)["squared_td_error"])
        if agent is agents[1]:  # it learns when it knows the next action
            later = transitions_of(agent.policy, s_next, a_next, r, s_next)
            squares[1] = agent.update(later, rng)["squared_td_error"]
        moved.append((agent.w - w, agent.v - v))
    np.testing.assert_allclose(moved[0][0], moved[1][0], rtol=0, atol=1e-12 * (1 + np.abs(moved[0][0]).max()))
    np.testing.assert_allclose(moved[0][1], moved[1][1], rtol=0, atol=1e-12 * (1 + np.abs(moved[0][1]).max()))
    slopes = s_next @ w.reshape(2, 2).T  # J_{S'} w
    extra = gamma**2 * sigma**2 * (slopes**2).sum(axis=1).mean()
    assert squares[1] - squares[0] == pytest.approx(extra, rel=1e-9)  # the means are the same
    td = (r + gamma * np.c_[s_next, np.ones(len(s))] @ v - np.c_[s, np.ones(len(s))] @ v).mean()
    by_constant = moved[0][1][2] / agents[0].alpha_v  # φ(s) has a component 1
    assert by_constant == pytest.approx(td, abs=1e-11)
