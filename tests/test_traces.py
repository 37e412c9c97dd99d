"""Online TD(λ) with each trace, for values of states and of actions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import BOX, CASES, Case, Row, independent_features, row_of, step_of, stream, transitions, vector
from strategies import examples, lams, layers, problems, seeds

from npg import features as F
from npg.exact import enumerate_trajectories
from npg.features import OneHot, Polynomial
from npg.gradcheck import numerical_gradient
from npg.policies import SoftmaxLinear
from npg.returns import discounted_returns, lambda_returns
from npg.traces import (
    GTD2,
    TDRC,
    TRACES,
    EmphaticTD,
    ExpectedSarsa,
    GTDLambda,
    OffPolicyTD,
    OneBinaryGTD,
    OneBinaryTD,
    TDLambda,
    TrueOnlineTD,
    gradient_critic,
    online_critic,
)
from npg.trajectories import Trajectories
from npg.values import LinearValue, least_mean_squares


class Lookup:
    """Dense features of states, row by row from a table."""

    def __init__(self, x):
        self.x, self.n_features = x, x.shape[1]

    def __call__(self, obs):
        return self.x[obs]


TABLE = CASES["one-hot"]


def critic(features, seed=0, columns=1, **settings):
    """TD(λ) at random weights."""
    settings = {"alpha": 0.1, "gamma": 0.8, "lam": 0.9} | settings
    made = online_critic(LinearValue(features), columns, **settings)
    made.w = np.random.default_rng(seed).normal(size=made.value.n_params)
    return made


def random_lookup(seed, d=3):
    """Dense features in [−1, 1], and a case of five states that has them."""
    features = Lookup(np.random.default_rng(seed).uniform(-1, 1, size=(5, d)))
    return TABLE._replace(value_features=features)


def td_box(features, w, found, *, alpha, gamma, lam, trace):
    """The box of chapter 7; w after each step."""
    z, v_old = np.zeros(len(w)), 0.0
    for s in found:
        x = vector(features, s.obs)
        v, v_next = w @ x, 0.0 if s.terminated else w @ vector(features, s.next_obs)
        delta = s.r + gamma * v_next - v
        if trace == "accumulating":
            z = gamma * lam * z + x
            w = w + alpha * delta * z
        elif trace == "replacing":
            z = np.array([1.0 if x_i == 1 else gamma * lam * z_i for x_i, z_i in zip(x, z, strict=True)])
            w = w + alpha * delta * z
        else:
            z = gamma * lam * z + (1 - alpha * gamma * lam * (z @ x)) * x
            w = w + alpha * (delta + v - v_old) * z - alpha * (v - v_old) * x
        v_old = v_next
        if s.terminated or s.truncated:
            z, v_old = np.zeros(len(w)), 0.0
        yield delta, w


TD_CASES = [
    (kind, trace)
    for kind in ("one-hot", "dense", "tiles")
    for trace in TRACES
    if (kind, trace) != ("dense", "replacing")
]


@pytest.mark.equation("7.1", "7.11", "7.13", "7.14", defining=True)
@pytest.mark.equation("7.3", "8.10")
@pytest.mark.parametrize(("kind", "trace"), TD_CASES)
@given(seeds, lams, st.sampled_from([0.0, 0.8, 1.0]))
def test_td_lambda_is_its_box_line_by_line(kind, trace, seed, lam, gamma):
    setting = {"alpha": 0.1, "gamma": gamma, "lam": lam, "trace": trace}
    td, steps = critic(CASES[kind].value_features, seed, **setting), stream(CASES[kind], seed)
    expected = td_box(CASES[kind].value_features, td.w.copy(), map(row_of, steps), **setting)
    for traj, (delta, w) in zip(steps, expected, strict=True):
        assert td.update(traj) == pytest.approx([delta], rel=1e-12, abs=1e-12)
        assert np.abs(td.w - w).max() <= 1e-12 * np.abs(w).max()


@pytest.mark.equation("7.3", defining=True)
@pytest.mark.parametrize("trace", TRACES)
@given(seeds)
def test_without_decay_every_trace_is_semi_gradient_td(trace, seed):
    tiles = CASES["tiles"]
    td, steps = critic(tiles.value_features, seed, lam=0.0, trace=trace), stream(tiles, seed)
    for traj in steps:
        s, w = row_of(traj), td.w.copy()
        x, x_next = (vector(tiles.value_features, obs) for obs in (s.obs, s.next_obs))
        td.update(traj)
        delta = s.r + 0.8 * (0 if s.terminated else w @ x_next) - w @ x
        assert np.allclose(td.w, w + 0.1 * delta * x, rtol=0, atol=1e-13)


def frozen_sum(td, steps):
    """Σ_t δ_t z_t with the weights put back after each step, and the sum of all δ_t."""
    w, total, deltas = td.w.copy(), np.zeros(len(td.w)), 0.0
    for traj in steps:
        deltas = deltas + td.update(traj)
        total += (td.w - w) / td.alpha
        td.w = w.copy()
    return total, deltas


def mean_update(p, x, lam, w, alpha=1.0):
    """E[Σ_t δ_t z_t] over all episodes of a problem that ends within 3 steps."""
    episodes, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, 3)
    td, mean = TDLambda(LinearValue(Lookup(x)), 1, alpha, p.mdp.gamma, lam), np.zeros(len(w))
    for i, q in enumerate(probability):
        td.w = np.array(w, dtype=float)
        length = int(episodes.valid[:, i].sum())
        steps = [
            Trajectories(**{name: F.rows(part, slice(t, t + 1)) for name, part in episodes[i].arrays().items()})
            for t in range(length)
        ]
        mean += q * frozen_sum(td, steps)[0]
    return mean


@pytest.mark.equation("7.1")
@given(problems())
@examples(200)
def test_the_mean_td_error_in_a_state_is_the_bellman_error(p):
    mdp, pi = p.mdp, p.mdp.policy_matrix(p.policy, p.theta)
    w = 3 * p.rng.normal(size=mdp.n_states)
    td, mean = TDLambda(LinearValue(OneHot(mdp.n_states)), 1, 0.0, mdp.gamma, 0.0), np.zeros(mdp.n_states)
    for s, _, _, probability, traj in transitions(mdp, p.policy, pi):
        td.w = w.copy()
        mean[s] += probability * td.update(traj)[0]
    v = w * ~mdp.terminal
    error = (pi * mdp.expected_reward).sum(axis=1) + mdp.gamma * np.einsum("sa,sat,t->s", pi, mdp.P, v) - v
    assert np.allclose(mean, error * ~mdp.terminal, rtol=0, atol=1e-12)


@pytest.mark.equation("7.3")
def test_td_is_at_rest_at_the_values_where_the_residual_gradient_is_not():
    features = Lookup(np.eye(4)[:, :3])
    policy = SoftmaxLinear(OneHot(4), 1)

    def mean(w):
        total = np.zeros(3)
        for s, r in [(1, 1.0), (2, 0.0)]:
            td = TDLambda(LinearValue(features), 1, 1.0, 1.0, 0.0)
            td.w = np.array(w)
            episode = [Row(0, 0, 0.0, s, False, False, 0), Row(s, 0, r, 3, True, False, 1)]
            total += frozen_sum(td, [step_of(policy, [row], row) for row in episode])[0] / 2
        return total

    def residual(w):
        return ((w[1] - w[0]) ** 2 + (w[2] - w[0]) ** 2 + (1 - w[1]) ** 2 + w[2] ** 2) / 2

    values, minimum = np.array([1 / 2, 1, 0]), np.array([1 / 2, 3 / 4, 1 / 4])
    assert mean(values) == pytest.approx([0, 0, 0], abs=1e-15)
    assert mean(minimum) == pytest.approx([0, 1 / 8, -1 / 8], abs=1e-15)
    assert np.allclose(numerical_gradient(residual, minimum, "complex")[0], 0, atol=1e-15)
    assert residual(minimum) < residual(values)


@pytest.mark.equation("7.12", defining=True)
@pytest.mark.equation("7.10", "7.11", "8.10")
@given(seeds, lams, st.sampled_from([0.5, 0.8, 1.0]), st.integers(1, 13))
@examples(200)
def test_with_frozen_weights_traces_add_up_to_the_errors_of_lambda_returns(seed, lam, gamma, T):
    case = random_lookup(seed)
    td, steps = critic(case.value_features, seed, lam=lam, gamma=gamma), stream(case, seed, T)
    found = [row_of(traj) for traj in steps]
    x, x_next = (case.value_features.x[[getattr(s, name) for s in found]] for name in ("obs", "next_obs"))
    rewards, *ends = (np.array([[getattr(s, name)] for s in found]) for name in ("r", "terminated", "truncated"))
    G = lambda_returns(rewards, (x_next @ td.w)[:, None], *ends, gamma, lam)[:, 0]
    forward = (G - x @ td.w) @ x
    total, _ = frozen_sum(td, steps)
    assert np.allclose(total, forward, rtol=0, atol=1e-12 * (1 + np.abs(td.w).max()) * T / td.alpha)


def online_lambda_return(x, x_next, rewards, terminated, w_0, alpha, gamma, lam):
    """Weights after each step of an episode by the online λ-return algorithm, which begins anew at each horizon."""
    at = [np.array(w_0)]  # w_h, the weights at the horizon h
    for h in range(1, len(x) + 1):

        def to(k, n):
            """G_{k:k+n}, which bootstraps with the weights of its time."""
            last = k + n - 1
            bootstrap = 0.0 if terminated and last == len(x) - 1 else at[last] @ x_next[last]
            return sum(gamma**i * rewards[k + i] for i in range(n)) + gamma**n * bootstrap

        w = at[0]
        for k in range(h):
            L = h - k
            G = (1 - lam) * sum(lam ** (n - 1) * to(k, n) for n in range(1, L)) + lam ** (L - 1) * to(k, L)
            w = w + alpha * (G - w @ x[k]) * x[k]
        at.append(w)
    return at[1:]


@pytest.mark.equation("7.15", defining=True)
@pytest.mark.equation("7.14")
@given(
    seeds, lams, st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from([0.05, 0.3]), st.integers(1, 9), st.booleans()
)
@examples(200)
def test_true_online_td_is_the_online_lambda_return_algorithm_after_every_step(seed, lam, gamma, alpha, T, terminated):
    rng = np.random.default_rng(seed)
    case = random_lookup(seed)
    td = critic(case.value_features, seed, lam=lam, gamma=gamma, alpha=alpha, trace="dutch")
    for _ in range(2):  # the second episode begins with the weights of the first, and with nothing else of it
        states, rewards = rng.integers(5, size=T + 1), rng.normal(size=T)
        x = case.value_features.x[states]
        expected = online_lambda_return(x[:-1], x[1:], rewards, terminated, td.w, alpha, gamma, lam)
        for t, w in enumerate(expected):
            last = t == T - 1
            row = Row(states[t], 0, rewards[t], states[t + 1], last and terminated, last and not terminated, t)
            td.update(step_of(case.policy, [row], row))
            assert np.allclose(td.w, w, rtol=0, atol=1e-12)


@pytest.mark.equation("7.15")
@given(seeds)
def test_true_online_td_with_lambda_one_ends_where_one_pass_over_the_returns_does(seed):
    rng = np.random.default_rng(seed)
    case = random_lookup(seed)
    td, T = critic(case.value_features, seed, lam=1.0, gamma=0.9, trace="dutch"), 6
    states, rewards = rng.integers(5, size=T + 1), rng.normal(size=T)
    G = discounted_returns(rewards[:, None], np.arange(T)[:, None] == T - 1, np.zeros((T, 1), dtype=bool), 0.9)[:, 0]
    expected, _ = least_mean_squares(td.w.copy(), case.value_features.x[states[:-1]], G, 0.1)
    for t in range(T):
        row = Row(states[t], 0, rewards[t], states[t + 1], t == T - 1, False, t)
        td.update(step_of(case.policy, [row], row))
    assert np.allclose(td.w, expected, rtol=0, atol=1e-13)


@pytest.mark.equation("7.4", "7.11", "7.16")
@given(layers, st.integers(1, 3), lams)
@examples(100)
def test_the_mean_update_of_td_vanishes_at_its_fixed_point_and_nowhere_else(p, d, lam):
    x = independent_features(p, d) * ~p.mdp.terminal[:, None]
    w = p.mdp.td_fixed_point(p.policy, p.theta, x=x, lam=lam)
    assert np.allclose(mean_update(p, x, lam, w), 0, rtol=0, atol=1e-11 * (1 + np.abs(w).max()))
    weight, chain = (
        p.mdp.visitation(p.policy, p.theta, gamma=1),
        np.einsum("sa,sat->st", p.mdp.policy_matrix(p.policy, p.theta), p.mdp.P),
    )
    resolvent = np.linalg.inv(np.eye(4) - p.mdp.gamma * lam * chain * ~p.mdp.terminal)
    A = x.T @ (weight[:, None] * resolvent) @ (x - p.mdp.gamma * chain @ x)
    elsewhere = w + p.rng.normal(size=d)
    assert np.allclose(
        mean_update(p, x, lam, elsewhere), A @ (w - elsewhere), rtol=0, atol=1e-11 * (1 + np.abs(w).max())
    )


@pytest.mark.equation("7.4", "7.11", "7.16")
@given(layers, st.integers(1, 3), lams)
@examples(20)
def test_the_mean_dynamics_of_td_with_decaying_steps_come_to_the_fixed_point(p, d, lam):
    x = independent_features(p, d) * ~p.mdp.terminal[:, None]
    fixed = p.mdp.td_fixed_point(p.policy, p.theta, x=x, lam=lam)
    b = mean_update(p, x, lam, np.zeros(d))
    A = np.column_stack([b - mean_update(p, x, lam, e) for e in np.eye(d)])
    assert (np.linalg.eigvalsh(A + A.T) > 0).all()  # of whole episodes
    c = 1 / np.linalg.norm(A, 2) ** 2 * np.linalg.eigvalsh(A + A.T).min() / 2
    w, start = fixed + 1, np.sqrt(d)
    for k in range(2000):
        w = w + c / (1 + k / 1000) * (b - A @ w)
    # A step α multiplies the square of the distance by at most 1 − 2αm + α²‖A‖², m the smallest of wᵀAw/wᵀw.
    m = np.linalg.eigvalsh(A + A.T).min() / 2
    steps = c / (1 + np.arange(2000) / 1000)
    bound = np.prod(np.sqrt(np.maximum(1 - 2 * steps * m + (steps * np.linalg.norm(A, 2)) ** 2, 0)))
    assert np.linalg.norm(w - fixed) <= bound * start + 1e-9
    assert bound < 1


@pytest.mark.equation("7.11")
@pytest.mark.parametrize("trace", TRACES)
def test_td_with_decaying_steps_learns_the_values_of_the_random_walk(trace):
    rng, td = np.random.default_rng(0), critic(OneHot(7), gamma=1.0, lam=0.5, trace=trace)
    td.w[:] = 0
    policy = SoftmaxLinear(OneHot(7), 2)
    for k in range(2000):
        td.alpha = 0.5 / (1 + k / 20)
        s = 3
        while 0 < s < 6:
            s_next = s + 2 * int(rng.random() < 0.5) - 1
            row = Row(s, 0, float(s_next == 6), s_next, s_next in (0, 6), False, 0)
            td.update(step_of(policy, [row], row))
            s = s_next
    # The error of a state has a standard deviation of at most 0.018 over seeds: six of them.
    assert np.abs(td.w[1:6] - np.arange(1, 6) / 6).max() < 0.11


@pytest.mark.equation("7.22")
@given(seeds, st.sampled_from([1, 4, 8]), st.none() | st.just(40))
def test_a_step_on_tiles_moves_the_value_by_the_number_of_tilings_that_states_share(seed, K, table_size):
    rng = np.random.default_rng(seed)
    features = F.TileCoding(BOX, n_tilings=K, n_tiles=3, table_size=table_size)
    case = Case(SoftmaxLinear(F.Constant(), 2), features, BOX)
    td = critic(features, seed, alpha=0.3 / K)
    s, others = rng.uniform(-1, 1, size=2), rng.uniform(-1, 1, size=(5, 2))
    others[0] = s
    before = td.value.value(td.w, others)
    row = Row(s, 0, 2.0, s, True, False, 0)
    (delta,) = td.update(step_of(case.policy, [row], row))
    shared = [len(set(features(s[None])[0]) & set(features(o[None])[0])) for o in others]
    moved = td.value.value(td.w, others) - before
    assert shared[0] == K
    assert np.allclose(moved, 0.3 / K * delta * np.array(shared), rtol=0, atol=1e-13)
    assert moved[0] == pytest.approx(0.3 * delta, rel=1e-12)
    assert delta == pytest.approx(2 - before[0], rel=1e-12)


@pytest.mark.parametrize("trace", TRACES)
@given(seeds)
@examples(20)
def test_columns_of_td_have_traces_of_their_own_and_the_mean_of_their_updates(trace, seed):
    case = CASES["tiles"]
    td = critic(case.value_features, seed, columns=3, trace=trace)
    singles = [critic(case.value_features, trace=trace) for _ in range(3)]
    resets = 0
    for traj in stream(case, seed, columns=3, resets=True):
        w, deltas, moved = td.w.copy(), np.zeros(3), []
        for n, single in enumerate(singles):
            single.w = w.copy()
            if traj.valid[0, n]:
                deltas[n] = single.update(traj[n])[0]
                moved.append(single.w - w)
        assert np.allclose(td.update(traj), deltas, rtol=0, atol=1e-13)
        assert np.allclose(td.w, w + sum(moved) / max(len(moved), 1), rtol=0, atol=1e-13)
        assert np.allclose(td.z, [single.z[0] for single in singles], rtol=0, atol=1e-13)
        resets += 3 - len(moved)
    assert resets > 0


def test_td_can_be_saved_and_restored_mid_episode():
    case = CASES["dense"]
    td, other = (critic(case.value_features, seed, trace="dutch") for seed in (0, 1))
    steps = stream(case, 0)
    for traj in steps[:6]:
        td.update(traj)
    assert td.state().keys() == {"w", "z", "v_old"}
    assert td.state()["z"].any()
    other.load_state(td.state())
    for traj in steps[6:]:
        assert np.array_equal(td.update(traj), other.update(traj))
    assert all(np.array_equal(value, other.state()[name]) for name, value in td.state().items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gamma": 1.1}, r"^gamma must lie in \[0, 1\], got 1.1"),
        ({"gamma": np.nan}, r"^gamma must lie in \[0, 1\], got nan"),
        ({"lam": -0.1}, r"^lam must lie in \[0, 1\], got -0.1"),
        ({"lam": 1.1}, r"^lam must lie in \[0, 1\], got 1.1"),
        ({"alpha": -1e-9}, "^alpha must be a number of at least 0, got -1e-09"),
        ({"alpha": None}, "^alpha must be a number of at least 0, got None"),
        ({"trace": "true online"}, "^trace must be one of accumulating, replacing, got 'true online'"),
    ],
)
def test_bad_settings_of_td_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        critic(OneHot(3), **changed)


@pytest.mark.equation("7.13")
@pytest.mark.parametrize("features", [Polynomial(BOX, degree=1), F.RBF(BOX, n_centres=2), F.Fourier(BOX, order=1)])
def test_replacing_traces_on_features_that_are_not_binary_are_refused(features):
    with pytest.raises(ValueError, match=r"^trace='replacing' needs binary features \(one-hot or tile\), got "):
        critic(features, trace="replacing")


def one_step_of(rng, n_states, n_actions, columns=1):
    """A made-up step of each environment: states, actions, rewards; none ends."""
    shape = (1, columns)
    no, yes = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    s, s_next = rng.integers(n_states, size=(2, *shape))
    a, r = rng.integers(n_actions, size=shape), rng.normal(size=shape)
    return Trajectories(s, s[..., None], a, r, s_next, no, no.copy(), yes, np.zeros(shape, dtype=int))


@pytest.mark.equation("8.5", "7.11", "7.13")
@pytest.mark.parametrize("trace", ["accumulating", "replacing"])
def test_a_critic_of_actions_learns_by_expected_sarsa_with_traces(trace):
    rng, S, A, alpha, gamma, lam = np.random.default_rng(0), 4, 3, 0.1, 0.9, 0.7
    critic = ExpectedSarsa(LinearValue(F.OneHot(S), A), 1, alpha, gamma, lam, trace)
    q, z = np.zeros((A, S)), np.zeros((A, S))
    for t in range(30):
        traj = one_step_of(rng, S, A)
        traj.terminated[:], traj.truncated[:] = t % 7 == 6, t % 11 == 10
        pi = rng.dirichlet(np.ones(A))
        s, a, r, s_next = (array[0, 0] for array in (traj.obs, traj.actions, traj.rewards, traj.next_obs))
        delta = r + gamma * (pi @ q[:, s_next]) * (not traj.terminated[0, 0]) - q[a, s]
        z *= gamma * lam
        z[a, s] = 1 if trace == "replacing" else z[a, s] + 1
        q += alpha * delta * z
        if traj.terminated[0, 0] or traj.truncated[0, 0]:
            z[:] = 0
        assert critic.update(traj, pi[None]) == pytest.approx([delta], rel=1e-12)
        np.testing.assert_allclose(critic.w.reshape(A, S), q, rtol=1e-12, atol=1e-14)


def test_a_step_that_does_not_fit_the_critic_is_named():
    rng = np.random.default_rng(0)
    critic = TDLambda(LinearValue(F.OneHot(4)), 2, 0.1, 0.9, 0.5)
    of_actions = ExpectedSarsa(LinearValue(F.OneHot(4), 3), 2, 0.1, 0.9, 0.5)
    for columns in (1, 3):
        with pytest.raises(ValueError, match="one step of columns = 2 environments"):
            critic.update(one_step_of(rng, 4, 3, columns))
    for pi_next in (None, np.ones((2, 2))):
        with pytest.raises(ValueError, match=r"pi_next must have shape \(2, 3\)"):
            of_actions.update(one_step_of(rng, 4, 3, 2), pi_next)
    with pytest.raises(ValueError, match="value must be of states, got one of 3 actions"):
        TrueOnlineTD(LinearValue(F.OneHot(4), 3), 1, 0.1, 0.9, 0.5)
    for columns in (0, -1, 1.5):
        with pytest.raises(ValueError, match="columns must be an integer of at least 1"):
            TDLambda(LinearValue(F.OneHot(4)), columns, 0.1, 0.9, 0.5)


@pytest.mark.equation("7.1", "7.11")
@given(seeds, st.sampled_from(["one-hot", "tiles"]), st.sampled_from([0.0, 0.7, 1.0]))
@examples(20)
def test_the_fast_path_for_one_environment_is_the_box(seed, kind, lam):
    case, how = CASES[kind], {"alpha": 0.1, "gamma": 0.9, "lam": lam}
    fast, box = critic(case.value_features, seed, **how), TDLambda(LinearValue(case.value_features), 1, **how)
    assert type(fast) is OneBinaryTD
    box.w = fast.w.copy()
    for traj in stream(case, seed, steps=30, resets=True):
        np.testing.assert_allclose(fast.update(traj), box.update(traj), rtol=0, atol=1e-13)
        for name in ("w", "z"):
            np.testing.assert_allclose(getattr(fast, name), getattr(box, name), rtol=0, atol=1e-13)


# Off-policy

OFF_POLICY = {
    "TD": (OffPolicyTD, {}),
    "emphatic TD": (EmphaticTD, {"interest": lambda obs: 1 + wave(obs)}),
    "GTD2": (GTD2, {"alpha_w": 0.3}),
    "GTD": (GTDLambda, {"alpha_w": 0.3}),
    "TDRC": (TDRC, {"alpha_w": 0.3, "beta": 0.7}),
}


def wave(obs):
    """A number in [0, 1] for each observation."""
    return np.cos(np.reshape(obs, (len(obs), -1)).sum(axis=1)) ** 2


def lam_of(obs):
    return 1 - wave(2 * obs)


def off_policy_critic(kind, features, seed=0, columns=1):
    """One of the critics, with discounts of states, at random weights."""
    cls, settings = OFF_POLICY[kind]
    made, rng = (
        cls(LinearValue(features), columns, 0.1, gamma=wave, lam=lam_of, **settings),
        np.random.default_rng(seed),
    )
    made.v = rng.normal(size=made.value.n_params)
    if "w" in made.learned:
        made.w = rng.normal(size=made.value.n_params)
    return made


def off_policy_box(kind, features, v, w, found, rhos):
    """The box of chapter 12; δ, v and w after each step."""
    e, F, gamma, rho = np.zeros(len(v)), 0.0, 0.0, 1.0
    for s, ratio in zip(found, rhos, strict=True):
        x, x_next = vector(features, s.obs), vector(features, s.next_obs)
        lam, gamma_next = lam_of(s.obs[None])[0], wave(s.next_obs[None])[0]
        lam_next = 0.0 if s.truncated else lam_of(s.next_obs[None])[0]
        if s.terminated:
            gamma_next = 0.0
        delta, M = s.r + gamma_next * v @ x_next - v @ x, 1.0
        if kind == "emphatic TD":
            i = 1 + wave(s.obs[None])[0]
            F = i + gamma * rho * F
            M = lam * i + (1 - lam) * F
        rho = ratio
        e = rho * (M * x + gamma * lam * e)
        c = gamma_next * (1 - lam_next) * (w @ e) * x_next
        step = {"GTD2": (w @ x) * x - c, "GTD": delta * e - c, "TDRC": delta * e - c}.get(kind, delta * e)
        v, w = v + 0.1 * step, w + 0.3 * (delta * e - (w @ x) * x - (0.7 if kind == "TDRC" else 0.0) * w)
        gamma = 0.0 if s.terminated or s.truncated else gamma_next
        yield delta, v, w


@pytest.mark.equation("12.7", "12.10", "12.11", "12.13", "12.16", defining=True)
@pytest.mark.equation("12.1", "12.5", "8.10")
@pytest.mark.parametrize("features", ["one-hot", "dense", "tiles"])
@pytest.mark.parametrize("kind", OFF_POLICY)
@given(seeds)
@examples(20)
def test_off_policy_critics_are_their_boxes_line_by_line(kind, features, seed):
    case = CASES[features]
    td, steps = off_policy_critic(kind, case.value_features, seed), stream(case, seed)
    rhos = np.random.default_rng(seed).choice([0.0, 0.3, 1.0, 2.5], size=len(steps))
    w = td.w.copy() if "w" in td.learned else np.zeros_like(td.v)
    box = off_policy_box(kind, case.value_features, td.v.copy(), w, map(row_of, steps), rhos)
    for traj, rho, (delta, v, w) in zip(steps, rhos, box, strict=True):
        size = 1e-12 * (1 + np.abs(v).max() + np.abs(w).max())
        assert np.abs(td.update(traj, np.array([rho])) - delta) <= size
        assert np.abs(td.v - v).max() <= size
        assert "w" not in td.learned or np.abs(td.w - w).max() <= size


@pytest.mark.equation("12.7")
@pytest.mark.parametrize("trace", [0.0, 0.9])
@given(seeds)
@examples(20)
def test_on_policy_with_constant_discounts_off_policy_td_and_gtd_with_w_zero_are_td(trace, seed):
    case = CASES["tiles"]
    td = TDLambda(LinearValue(case.value_features), 1, 0.1, 0.8, trace)
    off = OffPolicyTD(LinearValue(case.value_features), 1, 0.1, 0.8, trace)
    gtd = GTDLambda(LinearValue(case.value_features), 1, 0.1, 0.0, 0.8, trace)
    for traj in stream(case, seed):
        td.update(traj)
        for other in (off, gtd):
            other.update(traj, np.ones(1))
            assert np.allclose(other.v, td.w, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", OFF_POLICY)
@given(seeds)
@examples(10)
def test_columns_of_off_policy_critics_have_the_mean_of_their_updates_and_resets_change_nothing(kind, seed):
    case, rng = CASES["tiles"], np.random.default_rng(seed)
    td = off_policy_critic(kind, case.value_features, seed, columns=3)
    singles = [off_policy_critic(kind, case.value_features, seed) for _ in range(3)]
    weights = [name for name in ("v", "w") if name in td.learned]
    for traj in stream(case, seed, columns=3, resets=True):
        before = {name: getattr(td, name).copy() for name in weights}
        rho, valid = rng.exponential(size=3), traj.valid[0]
        for n, single in enumerate(singles):
            for name in weights:
                setattr(single, name, before[name].copy())
            single.update(traj[n], rho[[n]])
        td.update(traj, np.where(valid, rho, np.nan))
        for name in weights:
            moved = sum((getattr(single, name) - before[name] for single in singles), np.zeros(td.value.n_params))
            assert np.allclose(getattr(td, name), before[name] + moved / max(valid.sum(), 1), rtol=0, atol=1e-12)
        for name in {*td.learned} - {*weights}:
            assert np.allclose(getattr(td, name), [getattr(single, name)[0] for single in singles], rtol=1e-12)


@pytest.mark.equation("12.11")
@given(seeds, st.sampled_from(["one-hot", "tiles"]))
@examples(20)
def test_the_fast_gradient_critic_for_one_environment_is_the_box(seed, kind):
    case, rng = CASES[kind], np.random.default_rng(seed)
    fast = gradient_critic(LinearValue(case.value_features), 1, 0.1, 0.3, wave, lam_of)
    box = GTDLambda(LinearValue(case.value_features), 1, 0.1, 0.3, wave, lam_of)
    assert type(fast) is OneBinaryGTD
    assert type(gradient_critic(fast.value, 2, 0.1, 0.3, 0.9, 0.5)) is GTDLambda
    for traj in stream(case, seed, steps=30, resets=True):
        rho = rng.exponential(size=1)
        assert np.allclose(fast.update(traj, rho), box.update(traj, rho), rtol=1e-12, atol=1e-12)
        for name in fast.learned:
            assert np.allclose(getattr(fast, name), getattr(box, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", OFF_POLICY)
def test_off_policy_critics_can_be_saved_and_restored_mid_episode(kind):
    case, rho = CASES["dense"], np.array([1.7])
    td, other = (off_policy_critic(kind, case.value_features, seed) for seed in (0, 1))
    steps = stream(case, 0)
    for traj in steps[:6]:
        td.update(traj, rho)
    assert td.e.any()
    other.load_state(td.state())
    for traj in steps[6:]:
        assert np.array_equal(td.update(traj, rho), other.update(traj, rho))
    assert all(np.array_equal(value, other.state()[name]) for name, value in td.state().items())


@pytest.mark.parametrize(
    ("cls", "changed", "message"),
    [
        (OffPolicyTD, {"columns": 0}, "^columns must be an integer of at least 1, got 0"),
        (OffPolicyTD, {"gamma": 1.1}, r"^gamma must lie in \[0, 1\], got 1.1"),
        (OffPolicyTD, {"lam": -0.1}, r"^lam must lie in \[0, 1\], got -0.1"),
        (OffPolicyTD, {"alpha_v": -1.0}, "^alpha_v must be a number of at least 0, got -1.0"),
        (OffPolicyTD, {"value": LinearValue(OneHot(3), 2)}, "^value must be linear and of states, got "),
        (GTD2, {"alpha_w": -1.0}, "^alpha_w must be a number of at least 0, got -1.0"),
        (TDRC, {"alpha_w": 0.1, "beta": np.nan}, "^beta must be a number of at least 0, got nan"),
        (EmphaticTD, {"interest": -1.0}, "^interest must be a number of at least 0, got -1.0"),
    ],
)
def test_bad_settings_of_off_policy_critics_are_named(cls, changed, message):
    settings = {"value": LinearValue(OneHot(3)), "columns": 1, "alpha_v": 0.1, "gamma": 0.9, "lam": 0.5} | changed
    with pytest.raises(ValueError, match=message):
        cls(**settings)


def test_steps_and_ratios_that_do_not_fit_an_off_policy_critic_are_named():
    rng, critic = np.random.default_rng(0), OffPolicyTD(LinearValue(F.OneHot(4)), 2, 0.1, 0.9, 0.5)
    with pytest.raises(ValueError, match="one step of columns = 2 environments"):
        critic.update(one_step_of(rng, 4, 3, 3), np.ones(3))
    with pytest.raises(ValueError, match=r"rho must have shape \(2,\), got \(3,\)"):
        critic.update(one_step_of(rng, 4, 3, 2), np.ones(3))
