"""Off-PAC against its box; what its mean update is the gradient of, and is not; behaviours and their support."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    BOX,
    CASES,
    WALK,
    Case,
    close,
    collected,
    d_pi,
    dense_policy,
    dense_rows,
    density,
    derivative,
    make,
    near,
    probabilities,
    row_of,
    score,
    stream,
    table,
    transitions,
    vector,
)
from strategies import Problem, examples, generators, lams, layered, problems, seeds

import npg
from npg import features as F
from npg.algorithms import OffPAC
from npg.distributions import Categorical
from npg.envs.tabular import TabularEnv
from npg.exact import enumerate_trajectories
from npg.lab.collect import Collector
from npg.off_policy import OffPolicy
from npg.policies import GaussianLinear, SoftmaxLinear
from npg.problems import IMANI_BEHAVIOUR, IMANI_FEATURES, garnet, imani, random_walk
from npg.trajectories import LEAST_LOG_B, Steps

etas = st.sampled_from([0.0, 0.4, 1.0])


def ln_pi(case, theta, s):
    """log π(a|s) of a row."""
    softmax = isinstance(case.policy.distribution, Categorical)
    of_policy = (case.policy.features,) if softmax else (case.policy.features.mean, case.policy.features.scale)
    X = tuple(dense_rows(features, np.asarray(s.obs)[None]) for features in of_policy)
    return np.log(density(case.policy, theta, X, np.asarray(s.a)[None])[0])


def box(case, theta, v, w, rows, *, gamma, lam, eta, interest, alpha_u, alpha_v, alpha_w):
    """The box of the chapter, with x(S') in the correction; rows come with log b. θ, v and w after each step."""
    e_v, e_u, F_, gamma_t, rho = 0 * v, 0 * theta, 0.0, 0.0, 1.0
    for s, log_b in rows:
        x, x_next = vector(case.value_features, s.obs), vector(case.value_features, s.next_obs)
        gamma_next = 0.0 if s.terminated else gamma
        delta = s.r + gamma_next * (v @ x_next) - v @ x
        i = 1.0 if interest == "everywhere" or s.t == 0 else 0.0
        F_ = i + gamma_t * rho * F_
        M = (1 - eta) * i + eta * F_
        rho = np.exp(ln_pi(case, theta, s) - log_b)
        e_v = rho * (x + gamma_t * lam * e_v)
        e_u = rho * (M * score(case.policy, theta, s.obs, s.a) + gamma_t * lam * e_u)
        lam_next = 0.0 if s.truncated else lam
        v_new = v + alpha_v * (delta * e_v - gamma_next * (1 - lam_next) * (w @ e_v) * x_next)
        w = w + alpha_w * (delta * e_v - (w @ x) * x)
        theta, v = theta + alpha_u * delta * e_u, v_new
        gamma_t = 0.0 if s.terminated or s.truncated else gamma
        yield theta, v, w


def recorded(case, seed, **how):
    """Steps with ratios that are neither equal nor extreme."""
    rng = np.random.default_rng(seed)
    for traj in stream(case, seed, **how):
        traj.log_b = (traj.log_b + rng.uniform(-0.5, 0.5, traj.log_b.shape)) * traj.valid
        yield traj


STEPS = {"alpha_u": 0.003, "alpha_v": 0.1, "alpha_w": 0.05}


@pytest.mark.equation("12.1", "12.5", "12.6", "12.7", "12.10", "12.11", "8.10")
@pytest.mark.parametrize("kind", CASES)
@given(seeds, lams, etas, st.sampled_from(["everywhere", "starts"]))
@examples(15)
def test_one_column_is_the_box_line_by_line(kind, seed, lam, eta, interest):
    case = CASES[kind]
    setting = STEPS | {"gamma": 0.8, "lam": lam, "eta": eta, "interest": interest}
    agent, steps = make(OffPAC, case, seed, **setting), list(recorded(case, seed))
    theta, v, w = agent.theta.copy(), agent.critic.v.copy(), agent.critic.w.copy()
    expected = box(case, theta, v, w, [(row_of(traj), traj.log_b[0, 0]) for traj in steps], **setting)
    for traj, (theta, v, w) in zip(steps, expected, strict=True):
        agent.update(traj, np.random.default_rng(0))
        close(agent.theta, theta)
        close(agent.critic.v, v)
        close(agent.critic.w, w)


def walk(n=6):
    return TimeLimit(TabularEnv(random_walk(5)), n)


@pytest.mark.equation("12.6", "12.11")
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_a_collected_run_is_the_box_with_the_ratios_of_its_own_behaviour(epsilon):
    setting = STEPS | {"gamma": 0.9, "lam": 0.5, "eta": 0.4, "interest": "everywhere"}
    agent = make(OffPAC, WALK, epsilon=epsilon, **setting)
    theta, v, w, steps = agent.theta.copy(), agent.critic.v.copy(), agent.critic.w.copy(), []
    for traj in collected(agent, walk(), 150):
        s = row_of(traj)
        b = (1 - epsilon) * probabilities(WALK.policy, agent.theta, s.obs)[s.a] + epsilon / 2
        assert traj.log_b[0, 0] == pytest.approx(np.log(b), abs=1e-12)
        agent.update(traj, np.random.default_rng(0))
        steps.append((s, np.log(b)))
    assert any(s.truncated for s, _ in steps)
    assert any(s.terminated for s, _ in steps)
    *_, (theta, v, w) = box(WALK, theta, v, w, steps, **setting)
    close(agent.theta, theta)
    close(agent.critic.v, v)
    close(agent.critic.w, w)


@pytest.mark.equation("8.6", "12.11")
def test_on_policy_without_decay_or_emphasis_it_is_the_one_step_actor_critic_with_a_tdc_critic():
    alpha_u, alpha_v, alpha_w, gamma = 0.1, 0.2, 0.05, 0.9
    steps = {"alpha_u": alpha_u, "alpha_v": alpha_v, "alpha_w": alpha_w}
    agent = make(OffPAC, WALK, epsilon=0.0, lam=0.0, eta=0.0, gamma=gamma, **steps)
    theta, v, w = agent.theta.copy(), agent.critic.v.copy(), agent.critic.w.copy()
    for traj in collected(agent, walk(), 200):
        s = row_of(traj)
        x, x_next = vector(WALK.value_features, s.obs), vector(WALK.value_features, s.next_obs) * (not s.terminated)
        delta = s.r + gamma * v @ x_next - v @ x
        theta = theta + alpha_u * delta * score(WALK.policy, theta, s.obs, s.a)
        v, w = v + alpha_v * (delta * x - gamma * (w @ x) * x_next), w + alpha_w * (delta - w @ x) * x
        agent.update(traj, np.random.default_rng(0))
        close(agent.theta, theta)
        close(agent.critic.v, v)
        close(agent.critic.w, w)


@pytest.mark.equation("8.10")
@given(seeds, lams, etas)
@examples(20)
def test_what_comes_after_the_end_of_an_episode_does_not_depend_on_how_it_ended_or_began(seed, lam, eta):
    case, steps = CASES["one-hot"], list(recorded(CASES["one-hot"], seed))
    setting = STEPS | {"lam": lam, "eta": eta}
    for first in [t for t, traj in enumerate(steps) if t and traj.t[0, 0] == 0]:
        agent, fresh = (make(OffPAC, case, seed, **setting) for _ in range(2))
        for traj in steps[:first]:
            agent.update(traj, np.random.default_rng(0))
        kept = ("theta", "critic.v", "critic.w")
        fresh.load_state(fresh.state() | {name: agent.state()[name] for name in kept})
        for traj in steps[first:]:
            agent.update(traj, np.random.default_rng(0))
            fresh.update(traj, np.random.default_rng(0))
        assert all(np.array_equal(fresh.state()[name], value) for name, value in agent.state().items())


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("kind", ["one-hot", "tiles"])
def test_a_first_value_is_that_of_a_critic_whose_weights_have_it(kind, columns):
    case = CASES[kind]
    agent, other = (make(OffPAC, case, 0, columns, v0=v0, lam=0.5, **STEPS) for v0 in (-7.0, 0.0))
    active = 1 if kind == "one-hot" else 4
    other.critic.v -= 7.0 / active
    for traj in recorded(case, 0, columns=columns):
        for one in (agent, other):
            one.update(traj, np.random.default_rng(0))
        near(agent.theta, other.theta)
        near(agent.critic.v - 7.0 / active, other.critic.v)


# Mean updates on finite problems


def excursion(p, b, interest=1.0):
    """The exact weights, and J_b(θ) = Σ d_b i v_π by a linear system that complex numbers go through."""
    exact = OffPolicy(p.mdp, p.mdp.policy_matrix(p.policy, p.theta), b, interest=interest)

    def objective(theta):
        live = exact.d > 0
        pi = p.mdp.policy_matrix(p.policy, theta)
        chain = np.einsum("sa,sat->st", pi, p.mdp.P)[np.ix_(live, live)]
        r = (pi * p.mdp.expected_reward).sum(axis=1)[live]
        v = np.linalg.solve(np.eye(live.sum()) - p.mdp.gamma * chain, r)
        return (exact.d * exact.interest)[live] @ v

    return exact, objective


def dropped(p, exact):
    """g = Σ d_b(s) i(s) Σ_a ∇π q_π."""
    return np.einsum("s,sa,san->n", exact.d * exact.interest, exact.action_value(), d_pi(p))


def some_behaviour(p):
    b = p.rng.dirichlet(np.ones(p.mdp.n_actions), size=p.mdp.n_states)
    return 0.8 * b + 0.2 / p.mdp.n_actions


def one_class(p):
    """Whether a stationary distribution is unique; episodes always end, as every action may end them."""
    if p.mdp.terminal.any():
        return True
    reach = np.linalg.matrix_power(np.eye(p.mdp.n_states) + p.mdp.P.max(axis=1), p.mdp.n_states) > 0
    return bool((reach & reach.T).any(axis=0).all() and reach.all(axis=0).any())


def mean_update(p, b, exact, *, eta, lam):
    """E_b[δ_t e_u,t], where what the row inherits is its stationary mean in each state."""
    mdp, gamma, d = p.mdp, p.mdp.gamma, exact.d
    agent = OffPAC(p.policy, table(mdp), gamma=gamma, lam=lam, eta=eta, alpha_u=1.0, alpha_v=0.0, alpha_w=0.0)
    agent.init(p.rng)
    agent.critic.v, live = exact.value(), d > 0
    m, follows = exact.follow_on(), np.einsum("sa,sat->st", exact.target, mdp.P) * live * live[:, None]
    # d_b E[γ_t ρ_{t−1} F_{t−1} | s], and of the trace: Z = γ Pᵀ (m_η ψ̄ + λZ), with the mean ψ̄ of ρψ over actions, 0 but
    # for the pairs that lead to each state.
    inherited = m - d * exact.interest
    m_eta = (1 - eta) * d * exact.interest + eta * m
    psi = np.array([[score(p.policy, p.theta, s, a) for a in range(mdp.n_actions)] for s in range(mdp.n_states)])
    source = gamma * np.einsum("s,sa,sat,san->tn", m_eta, exact.target, mdp.P * live * live[:, None, None], psi)
    Z = np.linalg.solve(np.eye(len(d)) - gamma * lam * follows.T, source)  # γ_t e_u,t−1 in each state, times d_b
    mean, begin = 0.0, agent.state()
    for s, a, _, probability, traj in transitions(mdp, p.policy, b):
        if d[s] == 0:
            continue
        traj.log_b = np.log(b[s, a])[None, None]
        agent.load_state(
            begin
            | {"theta": p.theta, "e_u": Z[None, s] / d[s], "F": inherited[s : s + 1] / d[s], "rho": np.ones(1)}
            | {"critic.gamma_t": np.ones(1), "critic.v": exact.value()}
        )
        agent.critic.gamma_t = np.ones(1)  # both are already discounted
        agent.update(traj, p.rng)
        mean = mean + d[s] * probability * (agent.theta - p.theta)
    return mean


kinds = problems(most=3)


@pytest.mark.equation("12.3", defining=True)
@pytest.mark.equation("12.4")
@given(kinds)
@examples(200)
def test_the_excursion_gradient_weighs_states_by_the_emphasis_and_the_dropped_term_is_the_rest(p):
    if not one_class(p):
        return
    exact, objective = excursion(p, some_behaviour(p), p.rng.uniform(0, 2, p.mdp.n_states))
    gradient = derivative(objective, p.theta)
    q, weights = exact.action_value(), exact.follow_on()
    near(np.einsum("s,sa,san->n", weights, q, d_pi(p)), gradient, 1e-9)
    assert (weights >= exact.d * exact.interest - 1e-14).all()
    pi = p.mdp.policy_matrix(p.policy, p.theta)
    live = exact.d > 0
    chain = p.mdp.gamma * np.einsum("sa,sat->st", pi, p.mdp.P)[np.ix_(live, live)]
    nabla_v = np.linalg.solve(np.eye(live.sum()) - chain, np.einsum("sa,san->sn", q, d_pi(p))[live])
    lost = (exact.d * exact.interest)[live] @ chain @ nabla_v
    np.testing.assert_allclose(dropped(p, exact), gradient - lost, rtol=0, atol=1e-9 * (1 + np.abs(lost).max()))


@pytest.mark.equation("12.6", defining=True)
@pytest.mark.equation("12.3", "12.5")
@given(kinds, lams, etas)
@examples(200)
def test_with_the_exact_values_the_mean_update_is_the_excursion_gradient_for_every_decay(p, lam, eta):
    if not one_class(p):
        return
    b = some_behaviour(p)
    exact, objective = excursion(p, b)
    gradient, g = derivative(objective, p.theta), dropped(p, exact)
    mean = mean_update(p, b, exact, eta=eta, lam=lam)
    size = 1 + np.abs(gradient).max() + np.abs(exact.value()).max()
    np.testing.assert_allclose(mean, (1 - eta) * g + eta * gradient, rtol=0, atol=1e-10 * size)


shared = st.booleans()


def layered_problem(rng, gamma, aliased):
    p = layered(rng, gamma)
    p = dense_policy(p, rng.normal(size=(4, 2))) if aliased else p
    return p, SoftmaxLinear(F.OneHot(4), 2), rng.normal(size=8)


def frozen_sum(agent, steps):
    """Σ_t δ_t e_u,t of an episode, where α_u = 1."""
    theta, total = agent.theta.copy(), 0.0
    for traj in steps:
        agent.update(traj, np.random.default_rng(0))
        total, agent.theta = total + agent.theta - theta, theta.copy()
    return total


@pytest.mark.equation("12.5", defining=True)
@pytest.mark.equation("12.3", "12.6")
@given(generators, st.sampled_from([0.5, 0.9, 1.0]), shared, lams, st.sampled_from(["everywhere", "starts"]))
@examples(60)
def test_over_all_episodes_of_the_behaviour_the_traces_add_up_to_the_gradient(rng, gamma, aliased, lam, interest):
    """With the interest on starts, to ∇J; everywhere, to E_b[T] ∇J_b; the follow-on trace to E_b[T] m."""
    p, other, theta_b = layered_problem(rng, gamma, aliased)
    mdp, b = p.mdp, p.mdp.policy_matrix(other, theta_b)
    episodes, chance = enumerate_trajectories(mdp, other, theta_b, 3)
    exact, objective = excursion(p, b)
    length = chance @ episodes.valid.sum(axis=0)
    setting = {"gamma": gamma, "lam": lam, "eta": 1.0, "alpha_u": 1.0, "alpha_v": 0.0, "alpha_w": 0.0}
    agent = OffPAC(p.policy, table(mdp), interest=interest, **setting)
    agent.init(rng)
    agent.theta, agent.critic.v = p.theta.copy(), exact.value()
    x = p.policy.features(episodes.obs.ravel()).reshape(*episodes.obs.shape, -1)
    mean, emphasis = 0.0, np.zeros(mdp.n_states)
    for k, probability in enumerate(chance):
        steps = list(replace(episodes, x=x)[k].by_step())
        F_ = 0.0
        for t, traj in enumerate(steps):
            s, a = traj.obs[0, 0], traj.actions[0, 0]
            traj.log_b = np.log(b[s, a])[None, None]
            emphasis[s] += probability * (interest == "everywhere" or t == 0) + probability * gamma * F_
            F_ = exact.rho[s, a] * ((interest == "everywhere" or t == 0) + gamma * F_)
        mean = mean + probability * frozen_sum(agent, steps)
    if interest == "everywhere":
        np.testing.assert_allclose(emphasis, length * exact.follow_on(), rtol=0, atol=1e-11)
        expected = length * derivative(objective, p.theta)
    else:
        np.testing.assert_allclose(emphasis, mdp.visitation(p.policy, p.theta), rtol=0, atol=1e-11)
        expected = mdp.gradient(p.policy, p.theta)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-10)


@pytest.mark.equation("12.4", defining=True)
@given(kinds.filter(lambda p: isinstance(p.policy.features, F.OneHot)))
@examples(200)
def test_for_a_table_the_dropped_term_leaves_each_state_a_share_of_its_gradient(p):
    if not one_class(p):
        return
    b = some_behaviour(p)
    exact, objective = excursion(p, b)
    g, gradient = (
        direction.reshape(p.mdp.n_actions, -1) for direction in (dropped(p, exact), derivative(objective, p.theta))
    )
    m = exact.follow_on()
    share = np.divide(exact.d * exact.interest, m, out=np.zeros_like(m), where=m > 0)
    size = np.abs(gradient).max()
    np.testing.assert_allclose(g, share * gradient, rtol=0, atol=1e-9 * size)
    assert (g * gradient).sum() > 0 or size < 1e-12
    J = p.mdp.gradient(p.policy, p.theta).reshape(g.shape)
    J = J * (exact.d > 0)  # states that b never sees keep their decisions
    assert (g * J).sum() > 0 or min(np.abs(J).max(), np.abs(g).max()) < 1e-12


@pytest.mark.equation("12.4")
def test_where_states_share_parameters_the_direction_without_the_term_may_point_downhill():
    rng, downhill = np.random.default_rng(0), 0
    for _ in range(200):
        mdp = garnet(5, 2, 2, gamma=0.95, termination=0.05, seed=rng)
        p = dense_policy(Problem(mdp, None, None, rng), rng.normal(size=(6, 1)))
        exact, objective = excursion(p, some_behaviour(p))
        downhill += dropped(p, exact) @ derivative(objective, p.theta) < 0
    assert 5 <= downhill <= 20


# Imani's counterexample


def imani_problem(theta):
    p = dense_policy(Problem(imani(), None, None, np.random.default_rng(0)), IMANI_FEATURES)
    return p._replace(theta=np.array([*theta, 0.0, 0.0]))


def imani_direction(theta, eta):
    """The mean update, for the two differences of logits."""
    p = imani_problem(theta)
    exact, _ = excursion(p, IMANI_BEHAVIOUR)
    return mean_update(p, IMANI_BEHAVIOUR, exact, eta=eta, lam=0.0)[:2]


@pytest.mark.equation("12.3", "12.6")
@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0, 1))
@examples(50)
def test_the_counterexample_has_the_closed_forms_of_the_chapter(x, z, eta):
    p, y = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(-z))
    exact, objective = excursion(imani_problem([x, z]), IMANI_BEHAVIOUR)
    close(exact.d[:3], np.array([4, 1, 3]) / 8)
    close(exact.follow_on()[:3], np.array([1, 0.25 + p, 1.75 - p]) / 2)
    assert objective(imani_problem([x, z]).theta) == pytest.approx((3 * p * y - p - 1.25 * y + 1.75) / 2, abs=1e-12)
    expected = [p * (1 - p) * (3 * y - 1) / 2, y * (1 - y) * (eta * (3 * p - 1) - 0.25) / 2]
    np.testing.assert_allclose(imani_direction([x, z], eta), expected, rtol=0, atol=1e-13)


@pytest.mark.equation("12.6")
def test_on_the_counterexample_the_direction_turns_at_one_half_and_without_emphasis_is_wrong():
    at = [imani_direction([0.0, 0.0], eta)[1] for eta in (0.0, 0.499, 0.5, 0.501, 1.0)]
    assert at[0] < 0
    assert at[1] < 0 < at[3]
    assert at[2] == pytest.approx(0, abs=1e-15)
    assert at[4] == pytest.approx(1 / 32, abs=1e-14)
    log_half = np.log(0.5)  # p = 1/2, y = 1/3: the directions are opposite
    near(imani_direction([0.0, log_half], 0.0), -imani_direction([0.0, log_half], 1.0))


def imani_run(eta, seed, episodes, alpha, exact_values):
    """The probabilities of action 0 in state 0, and in the two others, after learning from θ = 0."""
    mdp, policy, rng = imani(), imani_problem([0, 0]).policy, np.random.default_rng(seed)
    how = {"alpha_u": alpha, "alpha_v": 0.0 if exact_values else 0.1, "alpha_w": 0.0}
    agent = OffPAC(policy, F.OneHot(4), gamma=1.0, lam=0.0, eta=eta, **how)
    agent.init(rng)
    step = {(s, a): traj for s, a, *_, traj in transitions(mdp, policy, IMANI_BEHAVIOUR)}
    for (s, a), traj in step.items():
        traj.log_b, traj.t = np.log(IMANI_BEHAVIOUR[None, s : s + 1, a]), np.array([[int(s > 0)]])
    for first, second in (rng.random((episodes, 2)) > 0.25).astype(int):
        for traj in (step[0, first], step[1 + first, second]):
            if exact_values:
                p, y = 1 / (1 + np.exp(agent.theta[2:] - agent.theta[:2]))
                agent.critic.v = np.array([2 * p * y + (1 - p) * (1 - y), 2 * y, 1 - y, 0.0])
            agent.update(traj, rng)
    return 1 / (1 + np.exp(agent.theta[2:] - agent.theta[:2]))


@pytest.mark.slow
@pytest.mark.parametrize("exact_values", [True, False])
def test_on_the_counterexample_runs_end_right_with_emphasis_alone(exact_values):
    plain, emphatic = (
        np.array([imani_run(eta, seed, 2000, 0.01, exact_values) for seed in range(30)]) for eta in (0.0, 1.0)
    )
    assert (plain[:, 1] < 0.5).all()
    assert ((emphatic > 0.5).all(axis=1)).sum() >= 28


# Behaviours


def gaussian_pair():
    policy = GaussianLinear(F.Affine(BOX), F.Constant(), 2)
    return policy, GaussianLinear(F.Fourier(BOX, order=1), F.Affine(BOX), 2)


@pytest.mark.equation("12.1")
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_a_given_behaviour_acts_and_has_the_log_probability_of_the_mixture(continuous, epsilon):
    rng = np.random.default_rng(0)
    if continuous:
        policy, b = gaussian_pair()
    else:
        policy, b = SoftmaxLinear(F.Affine(BOX), 3), SoftmaxLinear(F.Fourier(BOX, order=1), 3)
    theta_b = 0.3 * rng.normal(size=b.n_params)
    agent = make(OffPAC, Case(policy, F.Affine(BOX), BOX), epsilon=epsilon, behaviour=(b, theta_b))
    obs = np.tile(rng.uniform(-1, 1, 2), (20_000, 1))
    a, x = agent.act(obs, rng)
    log_b = agent.behaviour_log_prob(x, a)
    mixture = epsilon * np.exp(b.log_prob(theta_b, b.features(obs), a))
    mixture += (1 - epsilon) * np.exp(policy.log_prob(agent.theta, x, a))
    near(np.exp(log_b), mixture)
    f = np.exp(policy.log_prob(agent.theta, x, a) - log_b)  # the mean of ρ is one if b is what acted
    assert abs(f.mean() - 1) < 6 * f.std() / np.sqrt(len(f))
    if epsilon < 1:
        assert f.max() <= 1 / (1 - epsilon) + 1e-12
    assert not np.array_equal(a, agent.act(obs, rng, explore=False)[0])
    assert np.array_equal(agent.act(obs, rng, explore=False)[0], policy.mode(agent.theta, x))


@pytest.mark.parametrize("kind", ["one-hot", "gaussian"])
def test_by_default_the_behaviour_is_the_policy_as_it_begins(kind):
    case = CASES[kind]
    agent, rng = make(OffPAC, case, 0), np.random.default_rng(0)
    obs = np.zeros(7, int) if kind == "one-hot" else rng.uniform(-1, 1, (7, 2))
    a, x = agent.act(obs, rng)
    log_b = agent.behaviour_log_prob(x, a)
    if kind == "one-hot":
        near(log_b, np.full(7, -np.log(3)))
    else:
        near(log_b, (-(a**2) / 2 - np.log(2 * np.pi) / 2).sum(axis=1))


@pytest.mark.equation("12.24")
def test_an_action_that_the_behaviour_never_takes_is_an_error_that_names_it():
    states, b = F.OneHot(5), SoftmaxLinear(F.OneHot(5), 3)
    W = np.zeros((3, 5))
    W[2, 4] = -1000  # exp(−1000) is zero
    case = Case(SoftmaxLinear(states, 3), states, None)
    agent = make(OffPAC, case, behaviour=(b, W.ravel()))
    rng = np.random.default_rng(0)
    agent.act(np.arange(4), rng)
    with pytest.raises(
        ValueError, match=r"behaviour must take .*, got b\(a\|s\) = 0 and π\(a\|s\) = .* action 2 in state 4"
    ):
        agent.act(np.arange(5), rng)
    agent.theta[-1] = -1000.0  # nor does π
    agent.act(np.arange(5), rng)
    mixed = make(OffPAC, case, behaviour=(b, W.ravel()), epsilon=0.9)
    mixed.act(np.arange(5), rng)


@pytest.mark.equation("12.24")
@pytest.mark.parametrize("log_b", [None, np.nan, -np.inf, np.inf, LEAST_LOG_B - 1e-9, 0.5, np.zeros((1, 2))])
def test_recorded_data_without_a_probability_are_refused_and_change_nothing(log_b):
    case = CASES["one-hot"]
    agent, traj = make(OffPAC, case), stream(case, 0)[0]
    traj.log_b = np.full((1, 1), log_b) if isinstance(log_b, float) else log_b
    before = agent.state()
    with pytest.raises(ValueError, match="log_b must "):
        agent.update(traj, np.random.default_rng(0))
    assert all(np.array_equal(agent.state()[name], value) for name, value in before.items())


def test_rows_that_are_no_transitions_need_no_probability():
    case = CASES["one-hot"]
    agent = make(OffPAC, case, columns=3)
    parts = [part for part in stream(case, 0, steps=9, columns=3, resets=True) if part.valid.any()]
    for part in parts:
        part.log_b[~part.valid] = np.nan
        agent.update(part, np.random.default_rng(0))
    assert not all(part.valid.all() for part in parts)
    assert np.isfinite(agent.theta).all()


@pytest.mark.parametrize(
    "behaviour",
    [
        5,
        SoftmaxLinear(F.OneHot(5), 3),
        (SoftmaxLinear(F.OneHot(5), 3), np.zeros(14)),
        (SoftmaxLinear(F.OneHot(5), 2), np.zeros(10)),
        (None, np.zeros(15)),
        (SoftmaxLinear(F.OneHot(5), 3), np.full(15, np.nan)),
        (SoftmaxLinear(F.OneHot(5), 3),),
    ],
)
def test_a_behaviour_that_does_not_fit_the_policy_is_refused(behaviour):
    with pytest.raises(ValueError, match="behaviour must be a pair of a policy with Categorical"):
        make(OffPAC, CASES["one-hot"], behaviour=behaviour)


def test_a_given_behaviour_is_trained_with_but_not_kept_in_a_run_directory(tmp_path):
    env = npg.make_vec("npg/RandomWalk-v0", 2)
    b = SoftmaxLinear(F.OneHot(env.single_observation_space), 2)
    agent = npg.make_agent("off_pac", env, behaviour=(b, np.zeros(b.n_params)))
    npg.train(agent, env, steps=40)
    with pytest.raises(TypeError, match="cannot keep a behaviour"):
        npg.train(agent, env, steps=40, out=tmp_path / "run")


def test_what_is_collected_has_the_log_probabilities_where_the_agent_explores():
    env = npg.make_vec("npg/RandomWalk-v0", 3, max_episode_steps=5)
    agent = npg.make_agent("off_pac", env)
    agent.init(np.random.default_rng(0), 3)
    rng = np.random.default_rng(0)
    traj = Collector(env, 0).collect(agent, Steps(30), rng)
    assert not traj.valid.all()
    near(traj.log_b, np.where(traj.valid, -np.log(2), 0.0))
    assert traj[1].log_b.shape == (30, 1)
    assert Collector(env, 0).collect(agent, Steps(5), rng, explore=False).log_b is None


def test_recorded_data_teach_what_they_taught_when_they_were_drawn():
    env, agents = npg.make_vec("npg/RandomWalk-v0", 3, n_states=5, max_episode_steps=12), []
    for recorded in (False, True):
        agent, rng = npg.make_agent("off_pac", env, lam=0.5, eta=0.5), np.random.default_rng(1)
        agent.init(np.random.default_rng(0), 3)
        collector = Collector(env, 0)
        if recorded:
            steps = collector.collect(agent, Steps(60), rng).by_step()
        else:
            steps = (collector.collect(agent, Steps(1), rng) for _ in range(60))
        for step in steps:
            if step.valid.any():
                agent.update(step, rng)
        agents.append(agent)
    assert np.abs(agents[0].theta).max() > 0
    for name, array in agents[0].state().items():
        np.testing.assert_array_equal(array, agents[1].state()[name])


@pytest.mark.parametrize("columns", [1, 3])
def test_a_recording_that_stopped_within_an_episode_leaves_no_trace_for_the_next(columns):
    case, rng = CASES["one-hot"], np.random.default_rng(0)
    setting = STEPS | {"lam": 0.8, "eta": 1.0}
    steps = list(recorded(case, 0, columns=columns))
    agent, fresh = make(OffPAC, case, 0, columns, **setting), make(OffPAC, case, 0, columns, **setting)
    for traj in steps[:3]:
        for flags in (traj.terminated, traj.truncated):
            flags[:] = False
        traj.t[:] = 1
        agent.update(traj, rng)
    assert np.abs(agent.e_u).max() > 0
    kept = ("theta", "critic.v", "critic.w")
    fresh.load_state(fresh.state() | {name: agent.state()[name] for name in kept})
    steps[3].t[:] = 0
    for one in (agent, fresh):
        one.update(steps[3], rng)
    for name in kept:
        np.testing.assert_array_equal(agent.state()[name], fresh.state()[name])


def test_features_are_those_of_the_policy_and_not_what_the_recorder_acted_on():
    case = CASES["dense"]
    agent, other = make(OffPAC, case), make(OffPAC, case)
    for traj in recorded(case, 0):
        agent.update(traj, np.random.default_rng(0))
        other.update(replace(traj, x=3 * traj.x), np.random.default_rng(0))
    np.testing.assert_array_equal(agent.theta, other.theta)
