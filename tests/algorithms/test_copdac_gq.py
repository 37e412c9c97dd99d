"""COPDAC-GQ against its box; that it descends the projected Bellman error, and that the printed box does not."""

import numpy as np
import pytest
from continuous import LINEAR, policy_of, seen, transitions_of
from hypothesis import given
from hypothesis import strategies as st
from oracles import close, derivative, make, row_of, stream
from strategies import examples, seeds

from npg import features as F
from npg.algorithms import COPDACGQ, COPDACQ

STEPS = {"gamma": 0.8, "alpha": 0.02, "alpha_w": 0.1, "alpha_v": 0.2, "alpha_u": 0.3}


def box(W, w, v, u_w, u_v, rows, *, gamma, alpha, alpha_w, alpha_v, alpha_u, natural):
    """The box of chapter 13; θ, w, v and u after each step."""
    for s in rows:
        phi = s.J.T @ (s.a - s.J @ W)
        delta = s.r + gamma * v @ s.phi_next - w @ phi - v @ s.phi
        epsilon = u_w @ phi + u_v @ s.phi
        W = W + alpha * (w if natural else s.J.T @ s.J @ w)
        w = w + alpha_w * delta * phi
        v = v + alpha_v * (delta * s.phi - gamma * epsilon * s.phi_next)
        u_w, u_v = u_w + alpha_u * (delta - epsilon) * phi, u_v + alpha_u * (delta - epsilon) * s.phi
        yield W, w, v, u_w, u_v


@pytest.mark.equation("13.22")
@pytest.mark.equation("13.9", "13.12", "13.18", "8.10")
@pytest.mark.parametrize("kind", LINEAR)
@given(seeds, st.booleans())
@examples(20)
def test_one_column_is_the_box_line_by_line(kind, seed, natural):
    case, setting = LINEAR[kind], STEPS | {"natural": natural}
    agent, steps = make(COPDACGQ, case, seed, **setting), stream(case, seed)
    n = agent.mu.n_params
    begin = [part.copy() for part in (agent.theta[:n], agent.w, agent.v, agent.u_w, agent.u_v)]
    expected = box(*begin, (seen(case, row_of(traj)) for traj in steps), **setting)
    for traj, parts in zip(steps, expected, strict=True):
        agent.update(traj, np.random.default_rng(0))
        for actual, part in zip((agent.theta[:n], agent.w, agent.v, agent.u_w, agent.u_v), parts, strict=True):
            close(actual, part)


class Data:
    """Transitions of any behaviour, each as often as any other: means over the rows are exact."""

    def __init__(self, seed, centred=False, growth=None, sigma=0.8, count=24):
        self.rng = rng = np.random.default_rng(seed)
        self.gamma, self.policy, self.features = 0.9, policy_of(2, 1), F.Affine(2, scale=1.0)
        self.s, self.s_next, self.r = rng.normal(size=(count, 2)), rng.normal(size=(count, 2)), rng.normal(size=count)
        noise = rng.normal(size=(count, 1)) + 0.5
        if centred:
            self.s = np.repeat(self.s[::2], 2, axis=0)
            noise = sigma * np.tile([[1.0], [-1]], (count // 2, 1))
        self.terminated = rng.random(count) < 0.2
        if growth:  # of the first component, by which TD diverges
            self.s_next, self.terminated = self.s * [growth, 0.5], np.zeros(count, dtype=bool)
        self.theta = rng.normal(size=2)
        self.a = self.s @ self.theta[:, None] + noise
        phi_s, phi_next = (np.c_[x, np.ones(count)] for x in (self.s, self.s_next))
        phi_next = phi_next * ~self.terminated[:, None]
        self.f, self.f_next = np.c_[noise * self.s, phi_s], np.c_[0 * self.s, phi_next]
        self.A = self.f.T @ (self.f - self.gamma * self.f_next) / count
        self.C, self.h = self.f.T @ self.f / count, self.f.T @ self.r / count
        self.y = rng.normal(size=5)

    def mean_error(self, y=None):
        """E[δf]."""
        return self.h - self.A @ (self.y if y is None else y)

    def half_descent(self):
        """−½∇MSPBE."""
        error = self.mean_error
        return -derivative(lambda y: error(y) @ np.linalg.solve(self.C, error(y)), self.y) / 2

    def moved(self, cls, u=None):
        """The mean step of y = (w, v), and of u where there is one."""
        steps = {"alpha": 0.0, "alpha_w": 1.0, "alpha_v": 1.0} | ({} if u is None else {"alpha_u": 1.0})
        agent = cls(self.policy, self.features, gamma=self.gamma, **steps)
        agent.init(self.rng, columns=len(self.s))
        agent.theta[:2], agent.w, agent.v = self.theta, self.y[:2], self.y[2:]
        if u is not None:
            agent.u_w, agent.u_v = u[:2], u[2:]
        agent.update(transitions_of(self.policy, self.s, self.a, self.r, self.s_next, self.terminated), self.rng)
        of_y = np.append(agent.w, agent.v) - self.y
        return of_y if u is None else (of_y, np.append(agent.u_w, agent.u_v) - u)


def near(actual, expected, size=1.0):
    """Condition numbers of C are some 1e3."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10 * (size + np.abs(expected).max()))


@pytest.mark.equation("13.22", defining=True)
@given(seeds, st.booleans())
@examples(200)
def test_with_u_at_its_solution_the_mean_step_descends_the_projected_error(seed, centred):
    data = Data(seed, centred)
    u = np.linalg.solve(data.C, data.mean_error())
    of_y, of_u = data.moved(COPDACGQ, u)
    size = np.abs(u).max() + np.abs(data.y).max()
    near(of_y, data.half_descent(), size)
    near(of_u, np.zeros(5), size)
    near(data.moved(COPDACQ), data.mean_error())
    assert np.abs(data.mean_error() - of_y).max() > 1e-6


@pytest.mark.equation("13.22")
@given(seeds)
@examples(20)
def test_it_finds_what_copdac_q_does(seed):
    data = Data(seed)
    data.y = np.linalg.solve(data.A, data.h)
    size = np.abs(data.y).max()
    near(data.moved(COPDACQ), np.zeros(5), 10 * size)
    near(np.concatenate(data.moved(COPDACGQ, np.zeros(5))), np.zeros(10), 10 * size)


@pytest.mark.equation("13.23", defining=True)
@given(seeds)
@examples(200)
def test_the_printed_box_lacks_the_term_that_makes_it_a_descent(seed):
    """With u on φ(s, a) alone, and centred noise."""
    data = Data(seed, centred=True)
    n, error = 2, data.mean_error()
    C_w, C_v = data.C[:n, :n], data.C[n:, n:]
    near(data.C[:n, n:], np.zeros((n, 3)))
    u_w = np.linalg.solve(C_w, error[:n])
    epsilon = data.f[:, :n] @ u_w
    printed = error - data.gamma * np.append(np.zeros(n), (epsilon[:, None] * data.f_next[:, n:]).mean(axis=0))
    missing = data.gamma * data.f_next[:, n:].T @ data.f[:, n:] / len(data.f) @ np.linalg.solve(C_v, error[n:])
    right, size = data.half_descent(), 1 + np.abs(missing).max()
    near(printed[:n], right[:n], size)
    near(printed[n:] - missing, right[n:], size)
    assert np.abs(missing).max() > 1e-6
    joint, _ = data.moved(COPDACGQ, np.append(u_w, np.zeros(3)))  # the box with u_v held at zero is the printed one
    near(joint, printed, size)


@pytest.mark.equation("13.23")
@given(seeds, st.sampled_from([0.01, 1.0, 100.0]))
@examples(100)
def test_where_td_is_unstable_the_printed_box_is_at_every_ratio(seed, ratio):
    data = Data(seed, centred=True, growth=1.5)
    n, p = 2, 3
    C_w, A_v, G = data.C[:n, :n], data.A[n:, n:], -data.A[:n, n:] / data.gamma
    rows = [[-C_w, data.gamma * G, np.zeros((n, n))], [np.zeros((p, n)), -A_v, -data.gamma * G.T]]
    joint = np.block([*rows, [-ratio * C_w, ratio * data.gamma * G, -ratio * C_w]])
    product = np.linalg.det(-C_w) * np.linalg.det(-A_v) * np.linalg.det(-ratio * C_w)
    assert np.linalg.det(joint) == pytest.approx(product, rel=1e-6)
    assert np.linalg.det(A_v) < 0
    assert np.linalg.eigvals(joint).real.max() > 0


@pytest.mark.equation("13.22", "13.23")
def test_two_states_of_which_one_has_twice_the_feature():
    """A_v = 1 − 2γ: COPDAC-Q and the printed box diverge at the rate 0.8, the box from a ratio of 0.8 on does not."""
    gamma, policy, features = 0.9, policy_of(1, 1), F.Affine(1, scale=1.0, bias=False)
    step = transitions_of(policy, [[1.0]] * 2, [[1.0], [-1]], [0.0, 0], [[2.0]] * 2)

    def rates(ratio):
        columns = []
        for v, u in np.eye(2):
            agent = COPDACGQ(policy, features, gamma=gamma, alpha=0.0, alpha_w=0.0, alpha_v=1.0, alpha_u=ratio)
            agent.init(np.random.default_rng(0), 2)
            agent.v[:], agent.u_v[:] = v, u
            agent.update(step, np.random.default_rng(0))
            columns.append([agent.v[0] - v, agent.u_v[0] - u])
        return np.transpose(columns)

    for ratio, stable in ((0.5, False), (0.79, False), (0.81, True), (10.0, True)):
        found = rates(ratio)
        np.testing.assert_allclose(found, [[0.8, -1.8], [0.8 * ratio, -ratio]], rtol=0, atol=1e-12)
        assert (np.linalg.eigvals(found).real.max() < 0) == stable
    agent = COPDACQ(policy, features, gamma=gamma, alpha=0.0, alpha_w=0.0, alpha_v=1.0)
    agent.init(np.random.default_rng(0), 2)
    agent.v[:] = 1.0
    agent.update(step, np.random.default_rng(0))
    assert agent.v[0] == pytest.approx(1.8, abs=1e-12)
