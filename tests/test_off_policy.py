"""Off-policy critics on exact means: their updates, fixed points and stability."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import Row, step_of
from scipy import linalg
from strategies import examples, generators

from npg.exact import TabularMDP
from npg.features import OneHot
from npg.gradcheck import numerical_gradient
from npg.off_policy import OffPolicy, joint_system, largest_ridge, least_ratio
from npg.policies import SoftmaxLinear
from npg.problems import (
    BAIRD_BEHAVIOUR,
    BAIRD_FEATURES,
    BAIRD_TARGET,
    BAIRD_WEIGHTS,
    IMANI_BEHAVIOUR,
    IMANI_FEATURES,
    baird,
    imani,
)
from npg.traces import GTD2, TDRC, EmphaticTD, GTDLambda, OffPolicyTD
from npg.values import LinearValue


class Lookup:
    """Features of states, row by row from a table."""

    def __init__(self, x):
        self.x, self.n_features = x, x.shape[1]

    def __call__(self, obs):
        return self.x[obs]


class Task(NamedTuple):
    """An off-policy problem, features of its states, a generator, and what the formulas of the chapter are made of."""

    p: OffPolicy
    x: np.ndarray
    rng: np.random.Generator
    chain: np.ndarray  # P Γ
    r: np.ndarray
    D: np.ndarray

    @property
    def lam(self) -> np.ndarray:
        return np.diag(self.p.lam)


def task(rng, episodic, tabular=False, S=4, A=2, d=2):
    """S states with dense transitions, γ(s), λ(s) and i(s) at random, and a terminal one if ``episodic``."""
    n = S + episodic
    P = np.zeros((n, A, n))
    P[:S, :, :S] = rng.dirichlet(np.full(S, 0.5), size=(S, A))
    R = rng.normal(size=(n, A, n))
    if episodic:
        P[:S] *= rng.uniform(0.3, 1, size=(S, A, 1))
        P[:S, :, S] = 1 - P[:S].sum(axis=2)
        P[S, :, S], R[S] = 1, 0
    mdp = TabularMDP(P, R, 0.9, np.append(rng.dirichlet(np.ones(S)), np.zeros(episodic)))
    pi, b = rng.dirichlet(np.ones(A), size=n), 0.8 * rng.dirichlet(np.ones(A), size=n) + 0.2 / A
    gamma, lam, interest = rng.uniform(0.3, 1 if episodic else 0.95, n), rng.uniform(0, 1, n), rng.uniform(0, 2, n)
    if tabular:
        d = S
    q, _ = np.linalg.qr(rng.normal(size=(S, d)))
    x = np.vstack([np.eye(S) if tabular else q * rng.uniform(0.5, 2, size=d), rng.normal(size=(episodic, d))])
    gamma[S:] = 0
    chain = np.einsum("sa,sat->st", pi, P) * gamma
    expected = np.einsum("sat,sat->sa", P, R)
    restart = np.einsum("sa,sat->st", b, P)[:S, :S]
    restart = restart + np.outer(1 - restart.sum(axis=1), mdp.rho0[:S])
    D = np.zeros((n, n))
    D[:S, :S] = np.diag(np.linalg.matrix_power(restart, 2**14)[0])
    return Task(OffPolicy(mdp, pi, b, gamma, lam, interest), x, rng, chain, (pi * expected).sum(axis=1), D)


tasks = st.builds(task, generators, st.integers(0, 1), st.sampled_from([False, False, False, True]))


def carried(t: Task, emphatic: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """E_b[γ_t e_{t−1} | S_t = s] and E_b[γ_t ρ_{t−1} F_{t−1} | S_t = s], one step of b after another from far back."""
    mdp, d = t.p.mdp, t.p.d
    step = np.einsum("sa,sa,sat->st", t.p.behaviour, t.p.target / t.p.behaviour, mdp.P) * t.p.gamma
    step = step * ~mdp.terminal[:, None]
    e, F, i = np.zeros(t.x.shape), np.zeros(len(d)), d * t.p.interest
    for _ in range(10_000):
        M = t.p.lam * i + (1 - t.p.lam) * (i + F) if emphatic else d
        later = step.T @ (M[:, None] * t.x + t.p.lam[:, None] * e), step.T @ (i + F)
        change = max(np.abs(later[0] - e).max(), np.abs(later[1] - F).max())
        e, F = later
        if change <= 1e-15 * (1 + max(np.abs(e).max(), F.max())):
            break
    at = np.where(d > 0, d, 1)
    return e / at[:, None], F / at


class Steps:
    """All transitions under b with their probabilities, as steps of a critic."""

    def __init__(self, t: Task) -> None:
        mdp, policy = t.p.mdp, SoftmaxLinear(OneHot(t.p.mdp.n_states), t.p.mdp.n_actions)
        p = t.p.d[:, None, None] * t.p.behaviour[:, :, None] * mdp.P
        self.all = []
        for s, a, s_next in np.argwhere(p > 0):
            row = Row(s, a, mdp.R[s, a, s_next], s_next, mdp.terminal[s_next], False, 1)
            rho = t.p.target[s, a] / t.p.behaviour[s, a]
            self.all.append((s, p[s, a, s_next], np.array([rho]), step_of(policy, [row], row)))
        self.t = t
        self.features = Lookup(t.x)
        self.carried: dict[bool, Any] = {}

    def mean(self, cls: Any, v: Any, w: Any = None, **settings: Any) -> np.ndarray:
        """The mean step of (v, w), or of v alone, in the stationary chain: updates are linear in what is carried."""
        p = self.t.p
        td = cls(LinearValue(self.features), 1, 1.0, gamma=p.gamma.__getitem__, lam=p.lam.__getitem__, **settings)
        emphatic = cls is EmphaticTD
        if emphatic not in self.carried:
            self.carried[emphatic] = carried(self.t, emphatic)
        e, F = self.carried[emphatic]
        total = np.zeros(2 * len(v))
        for s, probability, rho, traj in self.all:
            td.v, td.e[0], td.gamma_t = np.array(v, dtype=float), e[s], np.ones(1)
            if emphatic:
                td.F, td.rho = F[[s]], np.ones(1)
            if w is not None:
                td.w = np.array(w, dtype=float)
            td.update(traj, rho)
            total += probability * np.concatenate([td.v - v, np.zeros(len(v)) if w is None else td.w - w])
        return total if w is not None else total[: len(v)]


def resolvent(t: Task) -> np.ndarray:
    """(I − P Γ Λ)^{-1}."""
    return np.linalg.inv(np.eye(len(t.r)) - t.chain @ t.lam)


def live(t: Task) -> np.ndarray:
    """Features, zero in the terminal state."""
    return t.x * ~t.p.mdp.terminal[:, None]


def near(actual, expected, tolerance=1e-10):
    """Within the tolerance, relative to the largest."""
    assert np.abs(np.asarray(actual) - expected).max() <= tolerance * (1 + np.abs(expected).max())


class WrongFeature(GTDLambda):
    """The box that circulates, with x(S) for x(S') in the correction."""

    def learn(self, delta):
        self._x_next = self._x
        super().learn(delta)


# Values and weights


@pytest.mark.equation("12.1", "12.2", defining=True)
@given(tasks)
@examples(200)
def test_ratios_turn_means_into_those_of_the_target_and_the_mean_error_is_that_of_its_bellman_equation(t):
    p, f = t.p, t.rng.normal(size=t.p.target.shape)
    near((p.behaviour * p.rho * f).sum(axis=1), (p.target * f).sum(axis=1))
    near(np.diag(t.D), p.d, 1e-9)
    v = p.value()
    near(v, t.r + t.chain @ v)
    assert not v[p.mdp.terminal].any()
    q = np.einsum("sat,sat->sa", p.mdp.P, p.mdp.R + p.gamma * v)
    near(p.action_value(), q)
    near((p.target * q).sum(axis=1), v)
    steps, v_hat = Steps(t), t.rng.normal(size=len(v)) * ~p.mdp.terminal
    error = np.zeros(len(v))
    for s, probability, rho, traj in steps.all:
        td = OffPolicyTD(LinearValue(Lookup(np.eye(len(v)))), 1, 0.0, p.gamma.__getitem__, 0.0)
        td.v = v_hat.copy()
        error[s] += probability * rho[0] * td.error(traj)[0] / p.d[s]
    near(error, t.r + t.chain @ v_hat - v_hat)


@pytest.mark.equation("12.3", "12.5")
@given(tasks)
@examples(200)
def test_the_follow_on_trace_has_the_mean_that_discounted_steps_of_the_target_have(t):
    _, F = carried(t)
    m = np.linalg.solve(np.eye(len(t.r)) - t.chain.T, t.p.d * t.p.interest)
    near(t.p.follow_on(), m)
    near(t.p.d * (t.p.interest + F), m)


@given(tasks)
@examples(30)
def test_a_state_in_which_the_behaviour_never_is_plays_no_part(t):
    p, n = t.p, len(t.r)
    P, R = np.zeros((n + 1, 2, n + 1)), np.zeros((n + 1, 2, n + 1))
    P[:n, :, :n], R[:n, :, :n] = p.mdp.P, p.mdp.R
    P[n, :, 0] = R[n] = 1  # which leads to the others, by an action that the behaviour does not take
    mdp = TabularMDP(P, R, 0.9, np.append(p.mdp.rho0, 0))
    target, b = np.vstack([p.target, [[1, 0]]]), np.vstack([p.behaviour, [[0, 1]]])
    more = OffPolicy(mdp, target, b, *(np.append(f, 0.9) for f in (p.gamma, p.lam, p.interest)))
    x = np.vstack([t.x, t.rng.normal(size=t.x.shape[1])])
    for name in ("value", "follow_on", "emphasis"):
        near(getattr(more, name)(), np.append(getattr(p, name)(), 0))
    for emphatic in (False, True):
        for mine, theirs in zip(
            more.key_matrices(x, emphatic=emphatic), p.key_matrices(t.x, emphatic=emphatic), strict=True
        ):
            near(mine, theirs)
    v = t.rng.normal(size=x.shape[1])
    near(more.msve(x, v), p.msve(t.x, v))


# Mean updates


@pytest.mark.equation("12.8", defining=True)
@pytest.mark.equation("12.7")
@given(tasks)
@examples(100)
def test_the_mean_update_of_off_policy_td_is_that_of_its_key_matrix(t):
    x = live(t)
    projected = x.T @ t.D @ resolvent(t)
    A, b, C = projected @ (np.eye(len(t.r)) - t.chain) @ x, projected @ t.r, x.T @ t.D @ x
    for found, expected in zip(t.p.key_matrices(t.x), (A, b, C), strict=True):
        near(found, expected, 1e-9)
    v = t.rng.normal(size=len(b))
    near(Steps(t).mean(OffPolicyTD, v), b - A @ v, 1e-9)
    fixed = t.p.fixed_point(t.x)
    near(A @ fixed, b, 1e-9)
    if np.linalg.cond(t.x[: len(fixed)]) == 1:  # a table
        near(fixed, t.p.value()[: len(fixed)], 1e-8)
        assert np.linalg.eigvals(A).real.min() > 0


@pytest.mark.equation("12.9", defining=True)
@given(tasks)
@examples(200)
def test_the_mspbe_is_the_projected_error_of_the_lambda_return(t):
    x, v = live(t), t.rng.normal(size=t.x.shape[1])
    v_hat, n = x @ v, len(t.r)
    bellman = resolvent(t) @ (t.r + t.chain @ (np.eye(n) - t.lam) @ v_hat)
    weights, *_ = np.linalg.lstsq(np.sqrt(t.D) @ x, np.sqrt(t.D) @ bellman)
    d = np.diag(t.D)
    near(t.p.mspbe(t.x, v), d @ (x @ weights - v_hat) ** 2, 1e-9)
    near(t.p.msve(t.x, v), d @ (v_hat - np.linalg.solve(np.eye(n) - t.chain, t.r)) ** 2, 1e-9)
    assert t.p.mspbe(t.x, t.p.fixed_point(t.x)) <= 1e-16 * (1 + np.abs(t.p.fixed_point(t.x)).max() ** 2)


@pytest.mark.equation("12.12", defining=True)
@pytest.mark.equation("12.9", "12.11")
@given(tasks)
@examples(200)
def test_gtd_with_w_at_rest_follows_the_gradient_of_the_mspbe_and_the_lectures_form_does_not(t):
    x, v, n = live(t), t.rng.normal(size=t.x.shape[1]), len(t.r)
    C, K = x.T @ t.D @ x, resolvent(t)

    def mspbe(v):
        v_hat = x @ v
        error = x.T @ t.D @ (K @ (t.r + t.chain @ (np.eye(n) - t.lam) @ v_hat) - v_hat)
        return error @ np.linalg.solve(C, error)

    gradient = numerical_gradient(mspbe, v, "complex")[0]
    steps = Steps(t)
    w = np.linalg.solve(C, steps.mean(OffPolicyTD, v))
    d = len(v)
    step = steps.mean(GTDLambda, v, w, alpha_w=1.0)
    near(step[:d], -gradient / 2, 1e-8)
    near(step[d:], 0, 1e-8)
    near(t.p.mspbe_gradient(t.x, v), gradient, 1e-8)
    lecture = steps.mean(WrongFeature, v, w, alpha_w=1.0)[:d]
    assert np.abs(lecture + gradient / 2).max() > 1e-5 * np.abs(gradient).max()


@pytest.mark.equation("12.10", "12.11", "12.13", "12.14")
@given(tasks)
@examples(30)
def test_the_mean_updates_of_gradient_critics_are_the_joint_system(t):
    A, b, C = t.p.key_matrices(t.x)
    d, steps, zero = len(b), Steps(t), np.zeros(len(b))
    ratio, beta = 0.7, 0.3
    for cls, more, G in (
        (GTD2, {}, joint_system(A, C, ratio, gtd2=True)),
        (GTDLambda, {}, joint_system(A, C, ratio)),
        (TDRC, {"beta": beta}, joint_system(A, C, ratio, beta)),
    ):
        start = steps.mean(cls, zero, zero, alpha_w=ratio, **more)
        near(start, np.concatenate([zero if cls is GTD2 else b, ratio * b]))
        columns = [steps.mean(cls, e[:d], e[d:], alpha_w=ratio, **more) - start for e in np.eye(2 * d)]
        near(np.column_stack(columns), G, 1e-9)
        fixed = np.concatenate([np.linalg.solve(A, b), zero])
        near(G @ fixed + start, 0, 1e-8)


@pytest.mark.equation("12.17", defining=True)
@pytest.mark.equation("12.5", "12.16")
@given(tasks, st.booleans())
@examples(100)
def test_the_key_matrix_of_emphatic_td_is_positive_definite(t, some):
    if some:  # interest in a few states alone, the first of them always
        interest = t.p.interest * (np.arange(len(t.r)) % 3 == 0)
        t = t._replace(p=OffPolicy(t.p.mdp, t.p.target, t.p.behaviour, t.p.gamma, t.p.lam, interest))
    x, n = live(t), len(t.r)
    start = t.p.d * t.p.interest
    m = np.linalg.solve(np.eye(n) - t.chain.T, start)
    m_M = t.p.lam * start + (1 - t.p.lam) * m
    near(t.p.emphasis(), m_M)
    P_lam = resolvent(t) @ t.chain @ (np.eye(n) - t.lam)
    near(P_lam.T @ m_M, m_M - start, 1e-9)
    A = x.T @ np.diag(m_M) @ (np.eye(n) - P_lam) @ x
    b = x.T @ np.diag(m_M) @ resolvent(t) @ t.r
    for found, expected in zip(t.p.key_matrices(t.x, emphatic=True), (A, b, x.T @ t.D @ x), strict=True):
        near(found, expected, 1e-9)
    assert np.linalg.eigvalsh(A + A.T).min() > 0
    v = t.rng.normal(size=len(b))
    near(Steps(t).mean(EmphaticTD, v, interest=t.p.interest.__getitem__), b - A @ v, 1e-9)
    near(A @ t.p.fixed_point(t.x, emphatic=True), b, 1e-9)
    u = x @ v
    squares = m_M @ (P_lam * (u[:, None] - u) ** 2).sum(axis=1) + start @ u**2 + m_M @ ((1 - P_lam.sum(axis=1)) * u**2)
    near(v @ A @ v, squares / 2, 1e-9)


# Stability


def abscissa(G):
    """The largest real part of an eigenvalue."""
    return np.linalg.eigvals(G).real.max()


@pytest.mark.equation("12.14", defining=True)
@given(generators, st.integers(1, 4))
@examples(200)
def test_eigenvalues_of_the_joint_system_solve_a_quadratic_equation(rng, d):
    A, B = rng.normal(size=(2, d, d))
    C, (ratio, beta) = B @ B.T + 0.1 * np.eye(d), np.exp(rng.normal(size=2))
    for kappa, ridge in ((0, 0.0), (1, 0.0), (1, beta)):
        G = joint_system(A, C, ratio, ridge, gtd2=not kappa)
        blocks = [[-kappa * A, A.T - kappa * C], [-ratio * A, -ratio * (C + ridge * np.eye(d))]]
        assert np.array_equal(G, np.block(blocks))
        expected = ratio**d * np.linalg.det(A) * np.linalg.det(A + ridge * np.eye(d))
        assert np.linalg.det(G) == pytest.approx(expected, rel=1e-8, abs=1e-8 * np.linalg.norm(G, 2) ** (2 * d))
        values, vectors = np.linalg.eig(G)
        for zeta, vector in zip(values, vectors.T, strict=True):
            q = vector[d:] / np.linalg.norm(vector[d:])
            a, c, nu = q.conj() @ A @ q, q.conj() @ C @ q, np.linalg.norm(A.T @ q) ** 2
            residual = zeta**2 + (kappa * a + ratio * (c + ridge)) * zeta + ratio * (nu + ridge * a)
            error = 1e-13 * np.linalg.cond(vectors) * np.linalg.norm(G, 2) ** 2 / np.linalg.norm(vector[d:])
            assert abs(residual) <= max(error, 1e-9)


@pytest.mark.equation("12.15", defining=True)
@given(generators, st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.5]))
@examples(300)
def test_gradient_critics_are_stable_where_the_conditions_hold(rng, d, shift):
    A, B = rng.normal(size=(2, d, d))
    A, C = A + shift * np.eye(d), B @ B.T + 0.1 * np.eye(d)
    H = (A + A.T) / 2
    for ratio, beta in np.exp(2 * rng.normal(size=(4, 2))):
        assert abscissa(joint_system(A, C, ratio, gtd2=True)) < 0
        least, largest = least_ratio(A, C), largest_ridge(A)
        assert (np.linalg.eigvalsh(H + ratio * C)[0] > 0) == (ratio > least)
        assert (np.linalg.eigvalsh(A @ A.T + beta * H)[0] > 0) == (beta < largest)
        enough = least + ratio
        assert abscissa(joint_system(A, C, enough)) < 0
        assert abscissa(joint_system(A, C, enough, min(beta, 0.99 * largest))) < 0
        if np.linalg.det(A) * np.linalg.det(A + beta * np.eye(d)) < 0:
            assert abscissa(joint_system(A, C, ratio, beta)) > 0


def two_states(lam=0.0, go=1 / 8):
    """The chain of two states that the target goes along and the behaviour mostly leaves; x = 1 and 2."""
    P, R = np.zeros((3, 2, 3)), np.zeros((3, 2))
    P[0, 0, 1] = P[0, 1, 2] = P[1:, :, 2] = 1
    R[1] = 1
    mdp = TabularMDP(P, R, 0.9, np.array([1.0, 0, 0]))
    return OffPolicy(mdp, np.tile([1.0, 0], (3, 1)), np.tile([go, 1 - go], (3, 1)), lam=lam), np.array(
        [[1.0], [2], [0]]
    )


@pytest.mark.equation("12.8", "12.9", "12.17")
def test_the_two_state_chain_has_the_numbers_of_the_chapter():
    p, x = two_states()
    assert np.allclose(np.concatenate([part.ravel() for part in p.key_matrices(x)]), [-4 / 15, 2 / 9, 4 / 3])
    for lam, emphatic, v, mspbe, msve in (
        (0.0, False, -5 / 6, 0.0, 3.4607),
        (0.5, False, 7 / 6, 0.2133, 0.2607),
        (1.0, False, 23 / 30, 0.1365, 0.0474),
        (0.0, True, 41 / 66, 0.1128, 0.0756),
    ):
        found = two_states(lam)[0].fixed_point(x, emphatic=emphatic)
        assert found == pytest.approx([v], rel=1e-12)
        assert [p.mspbe(x, found), p.msve(x, found)] == pytest.approx([mspbe, msve], abs=5e-5)
    assert two_states(1 / 6)[0].key_matrices(x)[0] == pytest.approx(0, abs=1e-15)
    assert two_states(go=1 / 5)[0].key_matrices(x)[0] == pytest.approx(0, abs=1e-15)
    assert p.emphasis() == pytest.approx([8 / 9, 41 / 45, 0])
    assert p.key_matrices(x, emphatic=True)[0] == pytest.approx(44 / 15)


@pytest.mark.equation("12.13", "12.14", "12.15")
def test_too_small_a_ratio_makes_gtd_diverge_and_too_large_a_ridge_tdrc():
    p, x = two_states()
    A, _, C = p.key_matrices(x)
    assert least_ratio(A, C) == pytest.approx(1 / 5)
    assert largest_ridge(A) == pytest.approx(4 / 15)
    assert np.linalg.eigvals(joint_system(A, C, 0.1)) == pytest.approx([0.0667 + 0.0516j, 0.0667 - 0.0516j], abs=1e-4)
    assert abscissa(joint_system(A, C, 0.19)) > 0 > abscissa(joint_system(A, C, 0.21))
    assert abscissa(joint_system(A, C, 1, 0.27)) > 0 > abscissa(joint_system(A, C, 1, 0.26))
    assert abscissa(joint_system(A, C, 1, 1)) == pytest.approx(0.0906, abs=5e-5)
    one_step = joint_system(np.array([[1 - 2 * 0.9]]), np.eye(1), 1, 1)
    assert abscissa(one_step) == pytest.approx(0.1211, abs=5e-5)
    value, policy = LinearValue(Lookup(np.array([[1.0], [2.0]]))), SoftmaxLinear(OneHot(2), 2)
    tdrc, row = TDRC(value, 1, 0.1, 0.1, 0.9, 0.0, beta=1.0), Row(0, 0, 0.0, 1, False, True, 0)
    tdrc.v[:] = 1
    moved = []
    for _ in range(3000):
        tdrc.update(step_of(policy, [row], row), np.ones(1))
        moved.append(tdrc.v[0])
    growth = np.log(moved[-1] / moved[-1001]) / 1000
    assert growth == pytest.approx(np.log(1 + 0.1 * abscissa(one_step)), rel=1e-6)


@pytest.mark.equation("12.8", "12.12", "12.14", "12.15", "12.17")
def test_on_bairds_counterexample_gtd_is_stable_where_the_lectures_form_and_td_are_not():
    p = OffPolicy(baird(), BAIRD_TARGET, BAIRD_BEHAVIOUR)
    assert p.d == pytest.approx(np.full(7, 1 / 7))
    assert np.linalg.matrix_rank(p.key_matrices(BAIRD_FEATURES)[2]) == 7
    x = BAIRD_FEATURES @ linalg.orth(BAIRD_FEATURES.T)
    A, b, C = p.key_matrices(x)
    assert not b.any()
    assert np.sort(np.linalg.eigvals(A).real) == pytest.approx([-0.2393, -0.0222] + 5 * [4 / 7], abs=5e-5)
    assert 0.005 * abscissa(joint_system(A, C, 10)) == pytest.approx(-1.19e-7, abs=5e-10)
    lecture = np.block([[-A, -0.99 * C], [-10 * A, -10 * C]])
    assert 0.005 * abscissa(lecture) == pytest.approx(1.07e-5, abs=5e-8)
    assert least_ratio(A, C) == pytest.approx(0.8046, abs=5e-5)
    assert abscissa(joint_system(A, C, 0.1)) == pytest.approx(0.0388, abs=5e-5)
    assert largest_ridge(A) == pytest.approx(0.0052, abs=5e-5)
    assert abscissa(joint_system(A, C, 1, 1.0)) < 0
    assert abscissa(joint_system(A, C, 1, 0.1)) == pytest.approx(3.7e-5, abs=5e-7)
    assert abscissa(joint_system(A, C, 1, gtd2=True)) < 0
    for outside, inside in ((0.0221, 0.0223), (0.2394, 0.2392)):
        assert abscissa(joint_system(A, C, 1, outside)) < 0 < abscissa(joint_system(A, C, 1, inside))
    assert 7 * p.follow_on() == pytest.approx([1] * 6 + [694])
    A_M, *_ = p.key_matrices(x, emphatic=True)
    assert np.linalg.eigvalsh(A_M + A_M.T)[0] > 0
    # No correction leaves the range of xᵀ: in all eight weights nothing else but a zero is added.
    full = joint_system(*(p.key_matrices(BAIRD_FEATURES)[i] for i in (0, 2)), 10)
    assert np.sort(np.abs(np.linalg.eigvals(full)))[:2] == pytest.approx(0, abs=1e-9)
    v = BAIRD_WEIGHTS
    assert p.mspbe(BAIRD_FEATURES, v) == pytest.approx(p.mspbe(x, linalg.orth(BAIRD_FEATURES.T).T @ v))
    near(p.mspbe_gradient(BAIRD_FEATURES, v), numerical_gradient(lambda v: p.mspbe(BAIRD_FEATURES, v), v, "complex")[0])


def test_imanis_counterexample_has_the_weights_of_the_chapter():
    target = IMANI_BEHAVIOUR.copy()
    target[:3, 0], target[:3, 1] = [0.4, 0.7, 0.7], [0.6, 0.3, 0.3]
    p = OffPolicy(imani(), target, IMANI_BEHAVIOUR)
    assert p.d == pytest.approx([1 / 2, 1 / 8, 3 / 8, 0])
    assert p.value() == pytest.approx([2 * 0.4 * 0.7 + 0.6 * 0.3, 1.4, 0.3, 0])
    assert 2 * p.follow_on() == pytest.approx([1, 0.25 + 0.4, 1.75 - 0.4, 0])
    assert p.d @ p.value() == pytest.approx((3 * 0.4 * 0.7 - 0.4 - 1.25 * 0.7 + 1.75) / 2)
    assert np.array_equal(IMANI_FEATURES[1], IMANI_FEATURES[2])


# Action values

KINDS = ("expected sarsa", "tree backup", "retrace")


def pairs(t, weights):
    """P(s'|s, a) γ(s') times weights of (s', a'), between all pairs."""
    n = weights.size
    step = t.p.mdp.P * t.p.gamma * ~t.p.mdp.terminal[:, None, None]
    return (step[:, :, :, None] * weights).reshape(n, n)


@pytest.mark.equation("12.18", defining=True)
@given(tasks, st.sampled_from(KINDS))
@examples(100)
def test_the_mean_updates_of_action_values_are_those_of_their_key_matrices(t, kind):
    p, n = t.p, t.p.target.size
    rho = p.target / p.behaviour
    c = p.lam[:, None] * {"expected sarsa": rho, "tree backup": p.target, "retrace": np.minimum(rho, 1)}[kind]
    near(p.coefficients(kind), c)
    phi = t.rng.normal(size=(*p.target.shape, 3)) * ~p.mdp.terminal[:, None, None]
    d_b = np.diag(t.D)[:, None] * p.behaviour
    trace = np.zeros(phi.shape)  # d_b(s) b(a|s) E[e_t | s, a], one step after another
    for _ in range(10_000):
        back = np.einsum("sak,sat->tk", trace, p.mdp.P * p.gamma)
        last, trace = trace, d_b[:, :, None] * phi + (p.behaviour * c)[:, :, None] * back[:, None]
        if np.abs(trace - last).max() <= 1e-16 * np.abs(trace).max():
            break
    v = t.rng.normal(size=3)
    q = phi @ v
    delta = np.einsum("sat,sat->sa", p.mdp.P, p.mdp.R + p.gamma * (p.target * q).sum(axis=1)) - q
    delta *= ~p.mdp.terminal[:, None]
    A, b, C = p.action_key_matrices(phi, c)
    near(np.einsum("sak,sa->k", trace, delta), b - A @ v, 1e-9)
    flat, D = phi.reshape(n, 3), np.diag(d_b.ravel())
    K = np.linalg.inv(np.eye(n) - pairs(t, p.behaviour * c))
    near(A, flat.T @ D @ K @ (np.eye(n) - pairs(t, p.target)) @ flat, 1e-9)
    near(C, flat.T @ D @ flat, 1e-9)
    # GQ(λ): the correction −γ'(1 − λ')(wᵀe) φ̄' of expected Sarsa(λ) has the mean −(C − A)ᵀ w
    if kind == "expected sarsa":
        w = t.rng.normal(size=3)
        phi_bar = np.einsum("ta,tak->tk", p.target, phi)
        correction = np.einsum("sak,k,sat,tj->j", trace, w, p.mdp.P * p.gamma * (1 - p.lam), phi_bar)
        near(correction, (C - A).T @ w, 1e-9)


@pytest.mark.equation("12.19", "12.20", defining=True)
@pytest.mark.equation("12.18")
@given(tasks, st.sampled_from(KINDS))
@examples(200)
def test_for_tables_the_traces_of_action_values_are_stable_and_their_targets_contract_to_q(t, kind):
    p, n = t.p, t.p.target.size
    alive = ~p.mdp.terminal[:, None] & np.ones(p.target.shape, dtype=bool)
    c, q_pi = p.coefficients(kind), p.action_value()
    table = np.eye(n)[:, alive.ravel()].reshape(*p.target.shape, -1)
    A, b, _ = p.action_key_matrices(table, c)
    assert np.linalg.eigvals(A).real.min() > 0
    near(np.linalg.solve(A, b), q_pi[alive], 1e-8)
    near(p.action_targets(q_pi, c), q_pi)
    q = 3 * t.rng.normal(size=q_pi.shape) * alive
    target = p.action_targets(q, c)
    K = np.linalg.inv(np.eye(n) - pairs(t, p.behaviour * c))
    r = np.einsum("sat,sat->sa", p.mdp.P, p.mdp.R) * alive
    near(target.ravel(), q.ravel() + K @ (r.ravel() + (pairs(t, p.target) - np.eye(n)) @ q.ravel()), 1e-9)
    assert np.abs(target - q_pi).max() <= p.gamma.max() * np.abs(q - q_pi).max() + 1e-12


@pytest.mark.equation("12.14", "12.15", "12.18")
def test_with_features_each_trace_of_action_values_has_an_unstable_key_matrix():
    p, _ = two_states()
    phi = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])[:, :, None]
    P = np.array(p.mdp.P)
    P[0, 1] = P[0, 0]  # one action in the first state
    R = np.array([[0.0, 0], [1, 1], [0, 0]])
    behaviour = np.tile([1 / 8, 7 / 8], (3, 1))
    for lam in (0.0, 0.1, 0.2, 0.5, 1.0):
        p = OffPolicy(TabularMDP(P, R, 0.9, np.array([1.0, 0, 0])), np.tile([1.0, 0], (3, 1)), behaviour, lam=lam)
        A = {kind: p.action_key_matrices(phi, p.coefficients(kind))[0] for kind in KINDS}
        assert A["expected sarsa"] == pytest.approx(3 / 4 - 9 / 10 * (1 - lam))
        assert A["tree backup"] == pytest.approx(-3 / 20 + 9 / 80 * lam)
        assert A["retrace"] == pytest.approx(-3 / 20 + 9 / 80 * lam)
    A, _, C = OffPolicy(p.mdp, p.target, behaviour).action_key_matrices(phi, np.zeros((3, 2)))
    assert least_ratio(A, C) == pytest.approx(1 / 5)
    assert abscissa(joint_system(A, C, 0.19)) > 0 > abscissa(joint_system(A, C, 0.21))


# Clipped ratios


@pytest.mark.equation("12.21", defining=True)
@given(tasks, st.floats(0.5, 3), st.floats(0, 1), st.floats(0, 1))
@examples(200)
def test_vtrace_learns_the_values_of_a_policy_between_at_a_speed_that_the_trace_decides(t, rho_bar, share, less):
    p, c_bar = t.p, share * rho_bar
    clipped = np.minimum(rho_bar * p.behaviour, p.target)
    Z = clipped.sum(axis=1)
    pi = clipped / Z[:, None]
    near(p.clipped_target(rho_bar), pi)
    values = OffPolicy(p.mdp, pi, p.behaviour, p.gamma).value()
    near(p.vtrace(values, rho_bar, c_bar), values)
    V = 3 * t.rng.normal(size=len(Z)) * ~p.mdp.terminal
    step = p.mdp.P * p.gamma * ~p.mdp.terminal[:, None, None]
    r = np.einsum("sat,sat->sa", p.mdp.P, p.mdp.R) * ~p.mdp.terminal[:, None]
    clipped_ratio = np.minimum(rho_bar, p.target / p.behaviour)
    delta = p.behaviour * clipped_ratio * (r + step @ V - V[:, None])
    c = p.lam[:, None] * np.minimum(c_bar, p.target / p.behaviour)
    expected, error = V.copy(), delta.sum(axis=1)
    decay = np.einsum("sa,sat->st", p.behaviour * c, step)
    for _ in range(2000):
        expected, error = expected + error, decay @ error
    near(p.vtrace(V, rho_bar, c_bar), expected, 1e-9)
    factor = 1 - (1 - p.gamma.max()) * Z[~p.mdp.terminal].min()
    assert np.abs(expected - values).max() <= factor * np.abs(V - values).max() + 1e-12
    ones = 1.0 * ~p.mdp.terminal
    slow, fast = (p.vtrace(values + ones, rho_bar, bar) - values for bar in (less * c_bar, c_bar))
    assert (fast <= slow + 1e-12).all()


@pytest.mark.equation("12.21")
def test_vtrace_has_the_numbers_of_the_chapter():
    mdp = TabularMDP(np.ones((1, 2, 1)), np.array([[1.0, 0.0]]), 0.9, np.ones(1))
    p = OffPolicy(mdp, np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]]), lam=1.0)
    assert p.clipped_target(1.0) == pytest.approx(np.array([[5 / 6, 1 / 6]]))
    fixed = np.array([25 / 3])
    for c_bar, factor in ((0.0, 0.94), (0.5, 0.912), (1.0, 0.870)):
        assert p.vtrace(fixed, 1.0, c_bar) == pytest.approx(fixed)
        assert p.vtrace(fixed + 1, 1.0, c_bar) - fixed == pytest.approx([factor], abs=5e-4)
    assert p.vtrace(p.value(), 1.8, 1.0) == pytest.approx(p.value())
    assert p.value() == pytest.approx([9])


# Support


@pytest.mark.equation("12.24", defining=True)
@given(tasks)
@examples(50)
def test_actions_that_the_behaviour_never_takes_are_missing_from_every_mean_and_refused(t):
    p = t.p
    b, f = np.array(p.behaviour), t.rng.normal(size=p.target.shape)
    b[0] = [0.0, 1.0]
    rho = np.divide(p.target, b, out=np.zeros(b.shape), where=b > 0)
    near((b * rho * f)[0].sum(), p.target[0, 1] * f[0, 1])
    near((b * rho)[0].sum(), 1 - p.target[0, 0])
    with pytest.raises(
        ValueError, match=r"behaviour must be positive .* got 0 in state 0 for action 0, which the targ"
    ):
        OffPolicy(p.mdp, p.target, b, p.gamma)
    target = np.array(p.target)
    target[0] = [0.0, 1.0]
    near(OffPolicy(p.mdp, target, b, p.gamma).rho[0], [0, 1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gamma": 1.2}, r"^gamma must lie in \[0, 1\], got 1.2"),
        ({"lam": [0.5, np.nan]}, r"^lam must lie in \[0, 1\], got \[0.5, nan\]"),
        ({"interest": -1.0}, "^interest must be numbers of at least 0, got -1.0"),
        ({"lam": [0.5]}, r"^lam must have shape \(2,\), got \(1,\)"),
        ({"target": np.ones((2, 2))}, r"^policy\[0\] must sum to 1, got 2.0"),
    ],
)
def test_bad_problems_are_named(changed, message):
    half = np.full((2, 2), 0.5)
    mdp = TabularMDP(np.full((2, 2, 2), 0.5), half, 0.9, half[0])
    with pytest.raises(ValueError, match=message):
        OffPolicy(**{"mdp": mdp, "target": half, "behaviour": half} | changed)
    p = OffPolicy(mdp, half, half, gamma=1.0)
    with pytest.raises(ValueError, match="sums over the steps of the target converge, got the radius"):
        p.value()
    p.key_matrices(np.eye(2))  # with λ = 0 they exist
    for call, expected in (
        (lambda: p.key_matrices(np.eye(3)), r"^x must be finite with a row for each of 2 states, got shape \(3, 3\)"),
        (lambda: p.coefficients("q"), "^kind must be one of expected sarsa, tree backup, retrace, got 'q'"),
        (lambda: p.action_key_matrices(np.ones((3, 2, 1)), half), r"^phi must have shape \(2, 2, 1\), got \(3, 2, 1\)"),
        (lambda: p.vtrace(np.ones(2), 1.0, 1.5), r"^c_bar must be a number in \[0, rho_bar = 1\], got 1.5"),
        (lambda: joint_system(np.eye(2), np.eye(3), 1.0), r"^C must have shape \(2, 2\), got \(3, 3\)"),
    ):
        with pytest.raises(ValueError, match=expected):
            call()
