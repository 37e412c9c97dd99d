"""One-step actor–critic against its box and its exact mean; and what the tests of all online methods are made of."""

from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit, TransformObservation
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Problem, problems, seeds

from npg import features as F
from npg.algorithms import Agent, OneStepActorCritic
from npg.distributions import Categorical
from npg.envs.tabular import TabularEnv, TabularVectorEnv
from npg.lab.collect import Collector
from npg.models import Linear
from npg.policies import GaussianLinear, Policy, SoftmaxLinear
from npg.problems import random_walk, short_corridor
from npg.trajectories import Trajectories

# Experience, made by hand or collected, and what is computed from it without the library


class Case(NamedTuple):
    """A policy, features of its critic, and where its observations come from."""

    policy: Policy
    value_features: F.Features
    space: spaces.Space[Any]


BOX = spaces.Box(-1.0, 1.0, (2,), dtype=np.float64)
TILES = F.TileCoding(BOX, n_tilings=4, n_tiles=2)
OTHER_TILES = F.TileCoding(BOX, n_tilings=2, n_tiles=3, table_size=12)
CASES = {
    "one-hot": Case(SoftmaxLinear(F.OneHot(5), 3), F.OneHot(5), spaces.Discrete(5)),
    "dense": Case(SoftmaxLinear(F.Fourier(BOX, order=1), 2), F.Polynomial(BOX, degree=2), BOX),
    "tiles": Case(SoftmaxLinear(TILES, 3), TILES, BOX),
    "gaussian": Case(GaussianLinear(F.Affine(BOX), F.Constant(), 2), F.Fourier(BOX, order=1), BOX),
    "gaussian on shared tiles": Case(GaussianLinear(TILES, TILES, 1), OTHER_TILES, BOX),
    "gaussian on features of its own": Case(GaussianLinear(F.Polynomial(BOX, degree=2), TILES, 2), TILES, BOX),
}
WALK = Case(SoftmaxLinear(F.OneHot(6), 2), F.OneHot(6), spaces.Discrete(6))
"""For the random walk of five states."""

ENDS = [(3, True, False), (4, False, True), (1, True, False), (2, True, True), (1, False, True)]
"""Length of an episode, and whether its last step is terminated and truncated."""


class Row(NamedTuple):
    """One step of one environment."""

    obs: Any
    a: Any
    r: float
    next_obs: Any
    terminated: bool
    truncated: bool
    t: int


def _episodes(case: Case, rng: np.random.Generator, first: int) -> Iterator[Row | None]:
    """Rows of a column without end, None for the reset step after an episode."""
    policy, space = case.policy, case.space

    def observe() -> Any:
        return rng.integers(space.n) if isinstance(space, spaces.Discrete) else rng.uniform(space.low, space.high)

    m = policy.distribution.n_actions
    for length, terminated, truncated in cycle(ENDS[first:] + ENDS[:first]):
        obs = observe()
        for t in range(length):
            a = rng.integers(m) if isinstance(policy.distribution, Categorical) else rng.uniform(-1, 1, size=m)
            next_obs, last = observe(), t == length - 1
            yield Row(obs, a, rng.normal(), next_obs, last and terminated, last and truncated, t)
            obs = next_obs
        yield None


def step_of(policy: Policy, rows: Iterable[Row | None], blank: Row) -> Trajectories:
    """One step of each column as the collector records it; reset steps are rows of zeros."""
    valid = np.array([row is not None for row in rows])
    columns = [np.array(part)[None] for part in zip(*(row or blank for row in rows), strict=True)]
    x = policy.features(columns[0][0])
    first, *second = (np.where(valid[:, None], part, 0)[None] for part in (x if isinstance(x, tuple) else (x,)))
    if second:
        first = (first, first if x[1] is x[0] else second[0])
    obs, a, r, next_obs, terminated, truncated, t = columns
    return Trajectories(obs, first, a, r, next_obs, terminated, truncated, valid[None], t)


def stream(case: Case, seed: int, steps: int = 16, columns: int = 1, resets: bool = False) -> list[Trajectories]:
    """Steps of episodes that terminate, are truncated, and both, with any actions."""
    rng = np.random.default_rng(seed)
    made = [
        islice((row for row in _episodes(case, rng, n % len(ENDS)) if resets or row), steps) for n in range(columns)
    ]
    some = next(_episodes(case, rng, 0))
    blank = Row(*(np.zeros_like(part) for part in some))
    return [step_of(case.policy, rows, blank) for rows in zip(*made, strict=True)]


def collected(agent: Agent, env: Any, steps: int, seed: int = 0) -> Iterator[Trajectories]:
    """Steps that the agent takes in an environment while it learns from them."""
    collector, rng = Collector(env, seed), np.random.default_rng(seed)
    for _ in range(steps):
        yield collector.collect(agent, agent.collect, rng)


def row_of(traj: Trajectories, n: int = 0) -> Row | None:
    """Column n of one step; None where it is a reset step."""
    if not traj.valid[0, n]:
        return None
    parts = (traj.obs, traj.actions, traj.rewards, traj.next_obs, traj.terminated, traj.truncated, traj.t)
    return Row(*(part[0, n] for part in parts))


def vector(features: F.Features, obs: Any) -> np.ndarray:
    """x(s) with its zeros."""
    x = features(np.asarray(obs)[None])[0]
    if x.dtype.kind not in "iu":
        return x
    full = np.zeros(features.n_features)
    for i in x:
        full[i] += 1
    return full


def probabilities(policy: Policy, theta: np.ndarray, obs: Any) -> np.ndarray:
    """π(·|s) of a softmax policy."""
    x = vector(policy.features, obs)
    weights = [np.exp(theta[b * len(x) : (b + 1) * len(x)] @ x) for b in range(policy.distribution.n_actions)]
    return np.array(weights) / sum(weights)


def score(policy: Policy, theta: np.ndarray, obs: Any, a: Any) -> np.ndarray:
    """∇ log π(a|s): Sutton & Barto (2018), equation 13.9 and exercise 13.4."""
    m = policy.distribution.n_actions
    if isinstance(policy.distribution, Categorical):
        pi, x = probabilities(policy, theta, obs), vector(policy.features, obs)
        return np.concatenate([((b == a) - pi[b]) * x for b in range(m)])
    x_mu, x_sigma = vector(policy.features.mean, obs), vector(policy.features.scale, obs)
    d, e = len(x_mu), len(x_sigma)
    mu = [theta[j * d : (j + 1) * d] @ x_mu for j in range(m)]
    sigma = [np.exp(theta[m * d + j * e : m * d + (j + 1) * e] @ x_sigma) for j in range(m)]
    of_mean = [(a[j] - mu[j]) / sigma[j] ** 2 * x_mu for j in range(m)]
    of_scale = [((a[j] - mu[j]) ** 2 / sigma[j] ** 2 - 1) * x_sigma for j in range(m)]
    return np.concatenate(of_mean + of_scale)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal to 1e-12, relative to the largest element: some thousand roundings."""
    assert np.abs(actual - expected).max() <= 1e-12 * np.abs(expected).max()


# What holds for all online methods

SHARED = ("theta", "w", "critic.w", "average_reward")
Make = Callable[..., Agent]


def make(cls: type[Agent], case: Case, seed: int = 0, **settings: Any) -> Agent:
    """An agent at random θ and w."""
    rng = np.random.default_rng(seed)
    agent = cls(case.policy, case.value_features, **settings)
    agent.init(rng)
    learned = agent.state()
    agent.load_state(
        learned | {name: 0.2 * rng.normal(size=np.shape(learned[name])) for name in SHARED if name in learned}
    )
    return agent


def check_columns_are_averaged(agent: Agent, singles: list[Agent], steps: Iterable[Trajectories]) -> None:
    """N columns make the mean of what agents of one column would do from the same θ and w, each with its own state.

    Those agents see no reset steps, which therefore change nothing and are left out of the mean.
    """
    for traj in steps:
        before = agent.state()
        agent.update(traj, np.random.default_rng(0))
        after = agent.state()
        moved: list[dict[str, np.ndarray]] = []
        for n, single in enumerate(singles):
            single.load_state(single.state() | {name: before[name] for name in SHARED if name in before})
            if traj.valid[0, n]:
                single.update(traj[n], np.random.default_rng(0))
                moved.append(single.state())
        for name, value in after.items():
            if name in SHARED:
                mean = sum(s[name] - before[name] for s in moved) / max(len(moved), 1)
                expected = before[name] + mean
            else:
                expected = np.concatenate([single.state()[name] for single in singles])
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12 * (1 + np.abs(expected).max()), err_msg=name)


def check_a_restored_agent_continues_identically(new: Make, steps: list[Trajectories]) -> None:
    """From every step, mid-episode or not; and a saved state stays as it was."""
    for k in range(len(steps)):
        agent, restored = new(seed=0), new(seed=1)
        for traj in steps[:k]:
            agent.update(traj, np.random.default_rng(0))
        saved = agent.state()
        copies = {name: value.copy() for name, value in saved.items()}
        restored.load_state(saved)
        for traj in steps[k:]:
            agent.update(traj, np.random.default_rng(0))
            restored.update(traj, np.random.default_rng(0))
        assert all(np.array_equal(saved[name], value) for name, value in copies.items())
        assert not np.array_equal(agent.state()["theta"], saved["theta"])
        assert all(np.array_equal(restored.state()[name], value) for name, value in agent.state().items())


class Shifted(TransformObservation):
    """States that are numbered from 3."""

    def __init__(self, env: Any) -> None:
        super().__init__(env, lambda s: s + 3, spaces.Discrete(env.observation_space.n, start=3))


def check_resets_may_lie_outside_the_space(cls: type[Agent], **settings: Any) -> None:
    """A row of zeros is no observation of a space that begins at 3, and still does no harm."""
    features = F.OneHot(spaces.Discrete(6, start=3))
    agent = make(cls, Case(SoftmaxLinear(features, 2), features, spaces.Discrete(6, start=3)), columns=2, **settings)
    env = SyncVectorEnv(
        [lambda: Shifted(TimeLimit(TabularEnv(random_walk(5)), 4))] * 2, autoreset_mode=AutoresetMode.NEXT_STEP
    )
    resets = 0
    for traj in collected(agent, env, 20):
        resets += (~traj.valid).sum()
        agent.update(traj, np.random.default_rng(0))
    assert resets > 0


def transitions(mdp: Any, policy: Policy, pi: np.ndarray) -> Iterator[tuple[int, int, int, float, Trajectories]]:
    """s, a, s', π(a|s) P(s'|s, a) and the step, for all that may happen in the states that are not terminal."""
    p = pi[:, :, None] * mdp.P * ~mdp.terminal[:, None, None]
    for s, a, s_next in np.argwhere(p > 0):
        r = mdp.R[s, a] if mdp.R.ndim == 2 else mdp.R[s, a, s_next]
        row = Row(s, a, r, s_next, mdp.terminal[s_next], False, 0)
        yield s, a, s_next, p[s, a, s_next], step_of(policy, [row], row)


def table(mdp: Any) -> F.OneHot:
    """Features with which the critic is a table."""
    return F.OneHot(mdp.n_states)


# The one-step method


def box(case, theta, w, rows, *, gamma, alpha, alpha_w, outer_discount):
    """The box of Sutton & Barto (2018), section 13.5, one step at a time; θ and w after each."""
    policy, features = case.policy, case.value_features
    I = 1.0
    for s in rows:
        v = w @ vector(features, s.obs)
        v_next = 0.0 if s.terminated else w @ vector(features, s.next_obs)
        delta = s.r + gamma * v_next - v
        grad_log_pi = score(policy, theta, s.obs, s.a)
        w = w + alpha_w * delta * vector(features, s.obs)
        theta = theta + alpha * I * delta * grad_log_pi
        if outer_discount:
            I = gamma * I
        if s.terminated or s.truncated:
            I = 1.0
        yield theta, w


SETTINGS = {"gamma": 0.8, "alpha": 0.003, "alpha_w": 0.1}


@pytest.mark.equation("7.1", "7.3", "8.6", "8.10")
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.booleans())
@settings(max_examples=20)
def test_one_column_is_the_box_of_the_book_line_by_line(kind, seed, outer_discount):
    case, setting = CASES[kind], SETTINGS | {"outer_discount": outer_discount}
    agent, steps = make(OneStepActorCritic, case, seed, **setting), stream(case, seed)
    expected = box(case, agent.theta.copy(), agent.critic.w.copy(), map(row_of, steps), **setting)
    for traj, (theta, w) in zip(steps, expected, strict=True):
        agent.update(traj, np.random.default_rng(0))
        close(agent.theta, theta)
        close(agent.critic.w, w)


@pytest.mark.equation("8.6")
@pytest.mark.parametrize("outer_discount", [False, True])
def test_a_collected_run_is_the_box_of_the_book_line_by_line(outer_discount):
    setting = SETTINGS | {"outer_discount": outer_discount}
    agent = make(OneStepActorCritic, WALK, **setting)
    theta, w = agent.theta.copy(), agent.critic.w.copy()
    steps = []
    for traj in collected(agent, TimeLimit(TabularEnv(random_walk(5)), 6), 100):
        agent.update(traj, np.random.default_rng(0))
        steps.append(traj)
    assert any(traj.truncated.any() for traj in steps)
    assert any(traj.terminated.any() for traj in steps)
    *_, (theta, w) = box(WALK, theta, w, map(row_of, steps), **setting)
    close(agent.theta, theta)
    close(agent.critic.w, w)


@pytest.mark.equation("8.9")
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("kind", CASES)
@given(seeds)
@settings(max_examples=5)
def test_columns_are_averaged_and_reset_steps_change_nothing(kind, resets, seed):
    setting = SETTINGS | {"outer_discount": True}
    agent = make(OneStepActorCritic, CASES[kind], seed, columns=3, **setting)
    singles = [make(OneStepActorCritic, CASES[kind], **setting) for _ in range(3)]
    check_columns_are_averaged(agent, singles, stream(CASES[kind], seed, columns=3, resets=resets))


@pytest.mark.equation("8.9")
@pytest.mark.parametrize("outer_discount", [False, True])
def test_collected_columns_are_averaged_and_reset_steps_change_nothing(outer_discount):
    setting = SETTINGS | {"outer_discount": outer_discount}
    agent = make(OneStepActorCritic, WALK, columns=3, **setting)
    singles = [make(OneStepActorCritic, WALK, **setting) for _ in range(3)]
    check_columns_are_averaged(agent, singles, collected(agent, TabularVectorEnv(random_walk(5), 3, 6), 60))


def test_a_reset_step_alone_changes_nothing():
    agent = make(OneStepActorCritic, CASES["dense"], outer_discount=True)
    for traj in stream(CASES["dense"], 0, steps=4, resets=True):
        before = agent.state()
        diagnostics = agent.update(traj, np.random.default_rng(0))
    assert not traj.valid.any()
    assert all(np.array_equal(agent.state()[name], value) for name, value in before.items())
    assert diagnostics == {"squared_td_error": 0.0}


def test_reset_steps_do_no_harm_where_zero_is_no_state():
    check_resets_may_lie_outside_the_space(OneStepActorCritic)


@pytest.mark.parametrize("kind", ["one-hot", "gaussian"])
def test_a_restored_agent_continues_identically(kind):
    case = CASES[kind]
    check_a_restored_agent_continues_identically(
        lambda seed: make(OneStepActorCritic, case, seed, columns=2, outer_discount=True, **SETTINGS),
        stream(case, 0, steps=8, columns=2, resets=True),
    )


def mean_step(p: Problem, v: np.ndarray) -> np.ndarray:
    """Σ_s d_γ(s) times the mean of what one update from s adds to θ, which is E[Σ_t γ^t ψ_t δ_t]."""
    agent = OneStepActorCritic(p.policy, table(p.mdp), gamma=p.mdp.gamma, alpha=1.0, alpha_w=0.0)
    agent.init(p.rng)
    d, mean = p.mdp.visitation(p.policy, p.theta), np.zeros(p.policy.n_params)
    for s, _, _, probability, traj in transitions(p.mdp, p.policy, p.mdp.policy_matrix(p.policy, p.theta)):
        agent.theta, agent.critic.w = p.theta.copy(), v.copy()
        agent.update(traj, p.rng)
        mean += d[s] * probability * (agent.theta - p.theta)
        agent.I[:] = 1
    return mean


@pytest.mark.equation("8.1")
@given(problems())
@settings(max_examples=200)
def test_with_the_exact_critic_the_mean_over_an_episode_is_the_gradient(p):
    gradient = p.mdp.gradient(p.policy, p.theta)
    size = 1e-10 * (1 + np.abs(gradient).max() + np.abs(p.mdp.value(p.policy, p.theta)).max())
    np.testing.assert_allclose(mean_step(p, p.mdp.value(p.policy, p.theta)), gradient, rtol=0, atol=size)


@pytest.mark.equation("8.2")
@given(problems())
@settings(max_examples=200)
def test_with_a_wrong_critic_the_mean_has_the_bias_of_the_successors_value(p):
    error = 5 * p.rng.normal(size=p.mdp.n_states) * ~p.mdp.terminal
    v = p.mdp.value(p.policy, p.theta)
    d, bias = p.mdp.visitation(p.policy, p.theta), np.zeros(len(p.theta))
    for s, a in np.argwhere(~p.mdp.terminal[:, None] & np.ones(p.mdp.n_actions, dtype=bool)):
        pi = p.mdp.policy_matrix(p.policy, p.theta)[s, a]
        x = p.policy.features(np.array([s]))
        gradient_of_pi = pi * p.policy.score(p.theta, x, np.array([a]))[0]
        bias += p.mdp.gamma * d[s] * gradient_of_pi * (p.mdp.P[s, a] @ error)
    expected = p.mdp.gradient(p.policy, p.theta) + bias
    size = 1e-10 * (1 + np.abs(expected).max() + np.abs(v).max())
    np.testing.assert_allclose(mean_step(p, v + error), expected, rtol=0, atol=size)


@pytest.mark.equation("8.1", "8.2")
@pytest.mark.parametrize(("c", "mean"), [(0, 2), (4, 0), (10, -3), (None, 0)])
def test_in_the_short_corridor_an_optimistic_critic_turns_the_gradient_round(c, mean):
    mdp, policy = short_corridor(), SoftmaxLinear(F.Constant(), 2)
    v = mdp.value(policy, np.zeros(2))
    v = np.zeros(4) if c is None else v + c * ~mdp.terminal
    left, right = mean_step(Problem(mdp, policy, np.zeros(2), np.random.default_rng(0)), v)
    assert (right, left) == pytest.approx((mean, -mean), abs=1e-11)


@pytest.mark.equation("8.10")
def test_only_a_termination_has_no_value_to_come():
    case = Case(Policy(F.OneHot(2), Linear(2, 2), Categorical(2)), F.OneHot(2), spaces.Discrete(2))
    for terminated, truncated, to_come in [(0, 0, 4), (0, 1, 4), (1, 0, 0), (1, 1, 0)]:
        agent = make(OneStepActorCritic, case, gamma=0.5, alpha=1.0, alpha_w=0.1, outer_discount=True)
        agent.load_state({"theta": np.zeros(4), "critic.w": np.array([1.0, 8.0])} | carried(agent))
        row = Row(0, 1, 3.0, 1, bool(terminated), bool(truncated), 0)
        agent.update(step_of(case.policy, [row], row), np.random.default_rng(0))
        delta = 3 + to_come - 1
        assert agent.critic.w == pytest.approx([1 + 0.1 * delta, 8], abs=1e-14)
        assert agent.theta == pytest.approx([-delta / 2, 0, delta / 2, 0], abs=1e-14)
        assert agent.I == (1.0 if terminated or truncated else 0.5)


def carried(agent: Agent) -> dict[str, np.ndarray]:
    """The state of the columns: traces, I and what else goes on with an episode."""
    return {name: value for name, value in agent.state().items() if name not in SHARED}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma", 1.01), ("gamma", -0.1), ("gamma", float("nan")), ("alpha", -1), ("alpha", "0.1"), ("alpha_w", -1),
        ("alpha_w", float("inf")), ("outer_discount", 1), ("columns", 0), ("columns", 1.0),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be"):
        make(OneStepActorCritic, CASES["dense"], **{name: value})
