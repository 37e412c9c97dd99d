"""Natural policy gradient against its box, and its steps against what is exact; and what tests of its kin need too."""

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    BUILT,
    CASES,
    Case,
    centred,
    direction,
    equal,
    every_episode,
    invertible,
    mean_fisher,
    reparametrised,
    score,
    segments,
    step,
    target_of,
    turned,
    updated,
    vector,
    windows,
)
from strategies import Problem, examples, seeds

import npg
from npg import features as F
from npg.algorithms import NPG
from npg.algorithms.npg import DIRECT
from npg.distributions import Categorical
from npg.policies import SoftmaxLinear

# The method

SETTINGS = {"gamma": 0.8, "n_steps": 5, "lam": 0.7, "ridge": 0.5, "delta": 0.03, "alpha": 0.2, "damping": 1e-2}
SETTINGS |= {"fisher": "exact", "solver": "auto", "cg_iterations": 1000}


@pytest.fixture(autouse=True, scope="module")
def _a_tight_tolerance():
    with turned("npg", cg_tol=1e-13):
        yield


def make(case: Case, seed: int = 0, **changed) -> NPG:
    """An agent at random θ and w."""
    rng = np.random.default_rng(seed)
    agent = NPG(case.policy, case.value_features, **SETTINGS | changed)
    agent.init(rng)
    agent.theta, agent.w = 0.2 * rng.normal(size=agent.theta.shape), rng.normal(size=agent.w.shape)
    return agent


def box(case, theta, w, traj, *, gamma, lam, ridge, delta, alpha, damping, fisher):
    """The box of the module: new θ and w."""
    policy, features = case.policy, case.value_features

    def value(obs):
        return w @ vector(features, obs)

    rows, G = [], []
    for part in windows(traj):
        rows += part
        G += [target_of(part, t, value, target="lambda", gamma=gamma, lam=lam, n=1) for t in range(len(part))]
    A = [G_t - value(s.obs) for G_t, s in zip(G, rows, strict=True)]
    psi = [score(policy, theta, s.obs, s.a) for s in rows]
    g = sum(A_t * psi_t for A_t, psi_t in zip(A, psi, strict=True)) / len(rows)
    exact = mean_fisher(policy, theta, rows)
    used = exact if fisher == "exact" else sum(np.outer(psi_t, psi_t) for psi_t in psi) / len(rows)
    u = np.linalg.solve(used + damping * np.eye(len(g)), g)
    X = np.array([vector(features, s.obs) for s in rows])
    targets = np.array(A) + X @ w
    w = np.linalg.solve(X.T @ X + ridge * np.eye(X.shape[1]), X.T @ targets + ridge * w)
    return theta + step(u, exact, delta, alpha), w


def of_box(setting):
    return {k: v for k, v in setting.items() if k not in ("n_steps", "solver", "cg_iterations")}


@pytest.mark.equation("9.6", defining=True)
@pytest.mark.equation("7.20", "9.7", "9.18", "10.14")
@pytest.mark.parametrize("solver", ["auto", "cholesky", "cg"])
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.sampled_from(["exact", "empirical"]), st.sampled_from([None, 0.03]), st.sampled_from([0.0, 0.7, 1.0]))
@examples(4)
def test_update_is_its_box_line_by_line(kind, solver, seed, fisher, delta, lam):
    changed = {"fisher": fisher, "delta": delta, "lam": lam, "solver": solver}
    case, agent = CASES[kind], make(CASES[kind], seed, **changed)
    theta, w = agent.theta.copy(), agent.w.copy()
    for traj in segments(case, seed, 2):
        assert not traj.valid.all()
        theta, w = box(case, theta, w, traj, **of_box(SETTINGS | changed))
        agent.update(traj, np.random.default_rng(0))
        equal(agent.theta, theta)
        equal(agent.w, w)


@pytest.mark.equation("10.14", "10.16")
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.sampled_from([1e-3, 1e-2, 1.0]), st.sampled_from([None, 0.03]))
@examples(10)
def test_both_solvers_give_the_same_step(kind, seed, damping, delta):
    # The damped matrix has condition numbers up to some 1e4, so that a residual of 1e-13 is 1e-9 of the solution.
    traj, setting = segments(CASES[kind], seed)[1], {"damping": damping, "delta": delta}
    direct, cg = (updated(make(CASES[kind], seed, solver=s, **setting), traj)[0] for s in ("cholesky", "cg"))
    equal(cg, direct, 1e-8)


@pytest.mark.equation("10.13")
def test_conjugate_gradient_that_is_cut_short_gives_another_step_uphill():
    traj, agents = segments(CASES["dense"], 0)[1], [make(CASES["dense"], solver="cg", cg_iterations=n) for n in (1, 99)]
    (short, _), (full, _) = (updated(agent, traj) for agent in agents)
    assert np.abs(short - full).max() > 0.01 * np.abs(full).max()
    plain, _ = updated(make(CASES["dense"], damping=1e9, delta=None, alpha=1e9), traj)
    assert plain @ short > 0
    equal(short / np.linalg.norm(short), plain / np.linalg.norm(plain), 1e-6)  # the first direction is the gradient's


@pytest.mark.equation("9.7")
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.sampled_from([1e-3, 1e-1, 10.0]), st.sampled_from([1e-5, 1e-4, 1e-3]))
@examples(4)
def test_a_normalised_step_has_the_radius_in_the_undamped_exact_matrix(kind, solver, fisher, seed, damping, delta):
    agent = make(CASES[kind], seed, fisher=fisher, solver=solver, damping=damping, delta=delta)
    theta, traj = agent.theta.copy(), segments(CASES[kind], seed)[1]
    change, _ = updated(agent, traj)
    rows = [row for part in windows(traj) for row in part]
    assert change @ mean_fisher(CASES[kind].policy, theta, rows) @ change / 2 == pytest.approx(delta, rel=1e-9)


@pytest.mark.equation("9.5", "9.7")
@pytest.mark.parametrize("kind", CASES)
def test_the_divergence_of_a_step_tends_to_its_radius(kind):
    traj = segments(CASES[kind], 0)[1]
    off = [
        abs(updated(make(CASES[kind], delta=delta), traj)[1]["kl"] / delta - 1)
        for delta in (1e-4, 1e-6, 1e-8)  # the difference is of the order of √δ
    ]
    assert off[0] < 0.05
    assert off[1] < 0.005
    assert off[2] < 0.0005


@pytest.mark.equation("9.6")
@pytest.mark.parametrize("kind", CASES)
def test_a_fixed_step_is_in_proportion_to_its_size_and_the_advantages(kind):
    traj = segments(CASES[kind], 0)[1]
    once, thrice = (updated(make(CASES[kind], delta=None, alpha=alpha), traj)[0] for alpha in (0.2, 0.6))
    equal(thrice, 3 * once, 1e-11)
    agent = make(CASES[kind], delta=None)
    agent.w, traj.rewards = 2 * agent.w, 2 * traj.rewards
    equal(updated(agent, traj)[0], 2 * once, 1e-11)


@pytest.mark.equation("9.7")
def test_a_normalised_step_does_not_depend_on_the_scale_of_rewards():
    traj, agents = segments(CASES["dense"], 0)[1], [make(CASES["dense"]) for _ in range(2)]
    first, _ = updated(agents[0], traj)
    agents[1].w, traj.rewards = 1e3 * agents[1].w, 1e3 * traj.rewards
    equal(updated(agents[1], traj)[0], first)


@pytest.mark.equation("9.18")
@given(seeds)
@examples(20)
def test_the_empirical_matrix_is_another_and_is_factored_whatever_the_solver(seed):
    traj = segments(CASES["one-hot"], seed)[1]
    exact, *empirical = (
        updated(make(CASES["one-hot"], seed, fisher=fisher, solver=solver, cg_iterations=1), traj)[0]
        for fisher, solver in (("exact", "cholesky"), ("empirical", "cholesky"), ("empirical", "cg"))
    )
    assert np.array_equal(*empirical)
    assert np.abs(empirical[0] - exact).max() > 1e-3 * np.abs(exact).max()


@pytest.mark.equation("9.9", "9.10")
@pytest.mark.parametrize("delta", [None, 0.03])
@pytest.mark.parametrize("kind", ["one-hot", "dense", "tiles", "gaussian", "gaussian on shared tiles"])
@given(seeds)
@examples(10)
def test_without_damping_an_update_is_the_same_in_all_linear_parameters(kind, delta, seed):
    case, undamped = CASES[kind], {"solver": "cg", "damping": 0.0, "delta": delta}
    traj, agent = segments(case, seed)[1], make(case, seed, **undamped)
    x = F.rows(traj.x, traj.valid)
    theta, p = agent.theta, Problem(None, case.policy, agent.theta, np.random.default_rng(seed))
    q = reparametrised(p, invertible(p.rng, len(theta), 4))
    other = NPG(q.policy, case.value_features, **SETTINGS | undamped)
    other.init(p.rng)
    other.theta, other.w = q.theta, agent.w.copy()
    before = case.policy.eta(theta, x)
    for one in (agent, other):
        one.update(traj, p.rng)
    changes = [one.policy.eta(one.theta, x) - before for one in (agent, other)]
    if isinstance(case.policy.distribution, Categorical):
        changes = [change - change.mean(axis=1, keepdims=True) for change in changes]
    equal(changes[1], changes[0], 1e-8)
    equal(other.w, agent.w, 1e-13)


@pytest.mark.equation("9.9")
def test_with_damping_it_is_not():
    case, agent = CASES["dense"], make(CASES["dense"], solver="cg", damping=0.1)
    p = Problem(None, case.policy, agent.theta, np.random.default_rng(0))
    q = reparametrised(p, invertible(p.rng, len(p.theta), 4))
    other, traj = (
        NPG(q.policy, case.value_features, **SETTINGS | {"solver": "cg", "damping": 0.1}),
        segments(case, 0)[1],
    )
    other.init(p.rng)
    other.theta, other.w = q.theta, agent.w.copy()
    x = F.rows(traj.x, traj.valid)
    for one in (agent, other):
        one.update(traj, p.rng)
    assert np.abs(case.policy.kl(agent.theta, q.policy.model.M @ other.theta, x)).max() > 1e-4


@pytest.mark.equation("9.6", "9.12", "9.13")
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("kind", BUILT)
def test_with_the_exact_critic_and_every_episode_the_direction_is_the_exact_natural_gradient(kind, gamma, lam):
    p = BUILT[kind](gamma)
    agent = NPG(p.policy, F.OneHot(4), gamma=gamma, lam=lam, delta=None, alpha=1.0, damping=0.0, solver="cg")
    agent.init(p.rng)
    agent.theta, agent.w = p.theta, p.mdp.value(p.policy, p.theta)
    u, _ = updated(agent, every_episode(p))
    fisher, g = direction(p, p.mdp.visitation(p.policy, p.theta, gamma=1))  # rows are not discounted
    equal(fisher @ u, g, 1e-8)
    if gamma == 1 or kind == "table":
        change = centred(p, p.mdp.natural_gradient(p.policy, p.theta))
        np.testing.assert_allclose(centred(p, u), change, rtol=0, atol=1e-7)
    if kind == "table":
        a = p.mdp.advantage(p.policy, p.theta)
        np.testing.assert_allclose(centred(p, u), (a - a.mean(axis=1, keepdims=True))[:3], rtol=0, atol=1e-7)


def test_advantages_use_the_critic_before_its_fit():
    case, traj = CASES["one-hot"], segments(CASES["one-hot"], 0)[1]
    changes = [updated(make(case, ridge=ridge), traj)[0] for ridge in (0.0, 1e6)]
    assert np.array_equal(*changes)


def test_diagnostics_are_what_they_are_called():
    case, agent, traj = CASES["dense"], make(CASES["dense"]), segments(CASES["dense"], 0)[1]
    before, x = agent.theta.copy(), F.rows(traj.x, traj.valid)
    _, diagnostics = updated(agent, traj)
    assert list(diagnostics) == ["gradient_norm", "kl", "entropy"]
    assert diagnostics["kl"] == case.policy.kl(before, agent.theta, x).mean()
    assert diagnostics["entropy"] == case.policy.entropy(agent.theta, x).mean()
    plain, _ = updated(make(case, damping=1e9, delta=None, alpha=1e9), traj)
    assert diagnostics["gradient_norm"] == pytest.approx(np.linalg.norm(plain), rel=1e-8)


@pytest.mark.equation("10.14", "10.16")
def test_without_damping_a_matrix_that_would_be_factored_is_refused():
    case = CASES["one-hot"]
    for changed in ({"solver": "cholesky"}, {"solver": "auto"}, {"solver": "cg", "fisher": "empirical"}):
        with pytest.raises(ValueError, match=r"^damping must be positive where F is factored, got 0"):
            make(case, damping=0.0, **changed)
    assert np.isfinite(updated(make(case, damping=0.0, solver="cg"), segments(case, 0)[1])[0]).all()


@pytest.mark.equation("10.16")
def test_the_matrix_is_factored_up_to_a_number_of_parameters():
    assert DIRECT == 300
    space = spaces.Discrete(151)
    for n, direct in ((150, True), (151, False)):
        policy = SoftmaxLinear(F.OneHot(n), 2)
        assert (policy.n_params <= DIRECT) == direct
        if direct:
            with pytest.raises(ValueError, match=r"^damping must be positive"):
                NPG(policy, F.OneHot(space), damping=0.0)
        else:
            NPG(policy, F.OneHot(space), damping=0.0)


def test_no_matrix_is_made_on_the_way_of_conjugate_gradient(monkeypatch):
    def refuse(*args):
        raise AssertionError("a matrix was made")

    for name in ("fisher", "empirical_fisher", "score"):
        monkeypatch.setattr(npg.Policy, name, refuse)
    monkeypatch.setattr("npg.models.Linear.jacobian", refuse)
    traj = segments(CASES["dense"], 0)[1]
    updated(make(CASES["dense"], solver="cg"), traj)
    with pytest.raises(AssertionError, match="a matrix was made"):
        updated(make(CASES["dense"], solver="cholesky"), traj)
