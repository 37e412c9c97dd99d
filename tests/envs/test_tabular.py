"""A finite MDP in Gymnasium's two interfaces: one uniform number a step, and equal numbers give equal episodes."""

from typing import NamedTuple

import numpy as np
import pytest
import strategies as S
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from npg.envs.tabular import TabularEnv, TabularVectorEnv
from npg.exact import TabularMDP
from npg.lab.collect import Collector
from npg.problems import four_rooms, garnet, random_walk, short_corridor
from npg.trajectories import Episodes, Steps

LEFT, RIGHT = 0, 1
BELOW_ONE = np.nextafter(1, 0)  # the largest number that a generator's random() returns is 1 − 2⁻⁵³, this one


class Replay:
    """A generator whose uniform numbers are given, one item a call."""

    def __init__(self, u):
        self.u = iter(u)

    def random(self, size=None):
        return next(self.u)


class Uniform:
    """An actor that chooses each of A actions with the same probability, on features that say nothing."""

    def __init__(self, n_actions):
        self.n_actions = n_actions

    def act(self, obs, rng, explore=True):
        return rng.integers(self.n_actions, size=len(obs)), np.zeros((len(obs), 1))


class Record(NamedTuple):
    obs: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def played(env, actions, seed=None):
    """What an environment returns to the actions, one row a step; the first observation too."""
    first, _ = env.reset(seed=seed)
    record = Record(*map(np.array, zip(*(env.step(a)[:4] for a in actions), strict=True)))
    return record._replace(obs=np.concatenate([np.array(first)[None], record.obs]))


def assert_same(a, b):
    for name in Record._fields:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def scalar(mdp, limit):
    env = TabularEnv(mdp)
    return env if limit is None else TimeLimit(env, limit)


def both(mdp, n, limit, actions, u):
    """The vector environment and Gymnasium's vector of scalar ones, replaying the same uniforms u (T + 1, n)."""
    vector = TabularVectorEnv(mdp, n, limit)
    vector.np_random = Replay(u)
    sync = SyncVectorEnv([lambda: scalar(mdp, limit)] * n, autoreset_mode=AutoresetMode.NEXT_STEP)
    for env, column in zip(sync.envs, u.T, strict=True):
        env.unwrapped.np_random = Replay(column)
    return played(vector, actions), played(sync, actions)


@st.composite
def problems(draw, **settings):
    """Random problems, half of them with rewards that depend on the next state too."""
    problem = draw(S.problems(**settings))
    mdp = problem.mdp
    if draw(st.booleans()):
        R = mdp.R[:, :, None] + problem.rng.normal(size=mdp.P.shape) * ~mdp.terminal[:, None, None]
        mdp = TabularMDP(mdp.P, R, mdp.gamma, mdp.rho0)
    return problem._replace(mdp=mdp)


def reward(mdp, s, a, s2):
    return mdp.R[s, a] if mdp.R.ndim == 2 else mdp.R[s, a, s2]


limits = st.none() | st.integers(1, 6)


@examples(200)
@given(problems(), st.integers(1, 4), limits)
def test_the_vector_environment_is_gymnasiums_vector_of_scalar_ones_step_by_step(problem, n, limit):
    actions = problem.rng.integers(problem.mdp.n_actions, size=(25, n))
    ours, theirs = both(problem.mdp, n, limit, actions, problem.rng.random((26, n)))
    assert_same(ours, theirs)


@examples(200)
@given(problems(), limits, S.seeds)
def test_one_column_is_the_scalar_environment_with_the_same_seed(problem, limit, seed):
    mdp = problem.mdp
    actions = problem.rng.integers(mdp.n_actions, size=(25, 1))
    vector = TabularVectorEnv(mdp, 1, limit)
    ours = played(vector, actions, seed)

    env = scalar(mdp, limit)
    obs, done = [env.reset(seed=seed)[0]], False
    for t, (action,) in enumerate(actions):
        s, r, terminated, truncated = (env.reset()[0], 0, False, False) if done else env.step(action)[:4]
        assert (ours.rewards[t, 0], ours.terminated[t, 0], ours.truncated[t, 0]) == (r, terminated, truncated)
        obs.append(s)
        done = terminated or truncated
    np.testing.assert_array_equal(ours.obs[:, 0], obs)


@examples(100)
@given(problems(), st.integers(1, 4), limits, st.integers(0, 25), S.seeds)
def test_from_its_state_an_environment_goes_on_as_it_did(problem, n, limit, k, seed):
    mdp = problem.mdp
    env, other = (TabularVectorEnv(mdp, n, limit) for _ in range(2))
    actions = problem.rng.integers(mdp.n_actions, size=(50, n))
    played(env, actions[:k], seed) if k else env.reset(seed=seed)
    state = env.get_state()
    whole = [env.step(a)[:4] for a in actions[k:]]
    other.reset(seed=seed + 1)
    for which in (other, env):
        which.set_state(state)
        np.testing.assert_equal([which.step(a)[:4] for a in actions[k:]], whole)


def test_the_state_of_an_environment_of_another_size_is_refused():
    states = []
    for problem, n in ((random_walk(9), 3), (random_walk(5), 2)):
        env = TabularVectorEnv(problem, n)
        env.reset(seed=0)
        states.append(env.get_state())
    env = TabularVectorEnv(random_walk(5), 3)
    env.reset(seed=0)
    states[0]["_state"][:] = 8
    for state in (*states, {}, {"_state": states[0]["_state"]}):
        with pytest.raises(ValueError, match="must"):
            env.set_state(state)


@pytest.mark.parametrize("limit", [2, 3, 4])
def test_where_an_episode_ends_at_its_time_limit_both_flags_are_set(limit):
    actions = np.full((10, 1), RIGHT)  # from the middle of five states: out after three steps
    ours, theirs = both(random_walk(5), 1, limit, actions, np.full((11, 1), 0.5))
    assert_same(ours, theirs)
    first_end = min(limit, 3) - 1
    assert not (ours.terminated | ours.truncated)[:first_end].any()
    assert ours.terminated[first_end, 0] == (limit >= 3)
    assert ours.truncated[first_end, 0] == (limit <= 3)


def test_after_an_end_comes_one_reset_step_without_reward_and_the_time_begins_again():
    env = TabularVectorEnv(random_walk(5, right=7.0), 1, max_episode_steps=4)
    record = played(env, [[a] for a in [RIGHT, RIGHT, RIGHT, LEFT, RIGHT, LEFT, RIGHT, LEFT, LEFT, RIGHT]], seed=0)
    np.testing.assert_array_equal(record.obs[:, 0], [2, 3, 4, 5, 2, 3, 2, 3, 2, 2, 3])
    np.testing.assert_array_equal(record.rewards[:, 0], [0, 0, 7, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(np.flatnonzero(record.terminated), [2])
    np.testing.assert_array_equal(np.flatnonzero(record.truncated), [7])


@pytest.mark.parametrize("steps", [1, 3], ids=["in the midst of an episode", "after its end"])
def test_a_new_reset_begins_new_episodes_in_all_columns(steps):
    env = TabularVectorEnv(random_walk(5), 2, max_episode_steps=4)
    played(env, np.full((steps, 2), RIGHT), seed=0)
    record = played(env, np.full((3, 2), RIGHT), seed=0)
    np.testing.assert_array_equal(record.obs.T, [[2, 3, 4, 5]] * 2)
    np.testing.assert_array_equal(record.terminated.T, [[False, False, True]] * 2)
    assert not record.truncated.any()


def test_without_a_time_limit_nothing_is_truncated():
    actions = np.zeros((500, 3), dtype=int)
    assert not played(TabularVectorEnv(garnet(), 3), actions, seed=0).truncated.any()
    assert not played(TabularEnv(garnet()), actions[:, 0], seed=0).truncated.any()


@pytest.mark.parametrize("mdp", [garnet(termination=0.2), four_rooms()], ids=["garnet", "four rooms"])
def test_the_seed_decides_everything(mdp):
    actions = np.random.default_rng(0).integers(mdp.n_actions, size=(60, 3))
    once, again, other = (played(TabularVectorEnv(mdp, 3), actions, seed) for seed in (5, 5, 6))
    assert_same(once, again)
    assert (once.obs != other.obs).any()
    assert (once.obs[:, 0] != once.obs[:, 1]).any()  # and columns are not copies of each other


def test_what_the_vector_environment_hands_out_belongs_to_the_caller():
    mdp, actions = garnet(termination=0.2), np.random.default_rng(0).integers(3, size=(40, 4))
    expected = played(TabularVectorEnv(mdp, 4, 5), actions, seed=1)
    env = TabularVectorEnv(mdp, 4, 5)
    env.reset(seed=1)[0][:] = 99
    for t, action in enumerate(actions):
        given_ = env.step(action)[:4]
        for array, column in zip(given_, expected, strict=True):
            np.testing.assert_array_equal(array, column[t + (column is expected.obs)])
            array[:] = 1
    np.testing.assert_array_equal(actions, np.random.default_rng(0).integers(3, size=(40, 4)))


@given(problems(), st.integers(1, 4), limits)
def test_what_is_returned_lies_in_the_spaces(problem, n, limit):
    env = TabularVectorEnv(problem.mdp, n, limit)
    assert env.reset(seed=0)[0] in env.observation_space
    for _ in range(10):
        obs, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
        assert obs in env.observation_space
        assert rewards.dtype == np.float64
        assert rewards.shape == terminated.shape == truncated.shape == (n,)
        assert terminated.dtype == truncated.dtype == bool


@pytest.mark.filterwarnings("ignore:.*environment not having a spec")
@given(problems())
def test_gymnasiums_checker_passes_any_problem(problem):
    check_env(TabularEnv(problem.mdp))


# Successors


def inverse_distribution_function(p, u):
    """The first state of positive probability at which the distribution function reaches u."""
    support = np.flatnonzero(p)
    reached = np.cumsum(p[support])[:-1, None] < u  # whatever rounding made of the last, it reaches 1
    return support[reached.sum(axis=0)]


def drawn(mdp, u, s=None, a=None):
    """What uniforms u make of ρ_0, or of action a in state s."""
    rho0 = mdp.rho0 if s is None else np.eye(mdp.n_states)[s]
    env = TabularVectorEnv(TabularMDP(mdp.P, mdp.R, mdp.gamma, rho0), len(u))
    env.np_random = Replay([u, u])
    first, _ = env.reset()
    return first if s is None else env.step(np.full(len(u), a))[0]


def edges(rng):
    return np.concatenate([[0.0, np.nextafter(0, 1), 1e-300, 2.0**-53, BELOW_ONE], rng.random(50)])


@examples(200)
@given(problems())
def test_a_uniform_number_becomes_the_state_where_the_distribution_function_reaches_it(problem):
    mdp, u = problem.mdp, edges(problem.rng)
    np.testing.assert_array_equal(drawn(mdp, u), inverse_distribution_function(mdp.rho0, u))
    for s in np.flatnonzero(~mdp.terminal):
        a = int(problem.rng.integers(mdp.n_actions))
        np.testing.assert_array_equal(drawn(mdp, u, s, a), inverse_distribution_function(mdp.P[s, a], u))


@pytest.mark.parametrize("off", [-9e-10, 0.0, 9e-10])
def test_successors_of_probability_zero_are_never_drawn_whatever_the_rounding(off):
    """Rows within the tolerance of summing to one, zeros first, last and between, far down in the table."""
    rng = np.random.default_rng(0)
    n = 300
    P = rng.dirichlet(np.full(n, 0.1), size=(n, 2)) * (rng.random((n, 2, n)) < 0.1)
    P[:, :, [0, -1]] = 0
    P[np.arange(n), :, rng.integers(1, n - 1, n)] += 0.1
    P /= P.sum(axis=-1, keepdims=True)
    P[..., 5] *= 1e-13  # smaller than the spacing of the shifted distribution functions
    P *= (1 + off) / P.sum(axis=-1, keepdims=True)
    mdp = TabularMDP(P, np.zeros((n, 2)), 0.9, P[0, 0])
    u = np.concatenate([edges(rng), 1 - np.logspace(-16, -8, 20), np.logspace(-16, -8, 20)])
    assert (mdp.rho0[drawn(mdp, u)] > 0).all()
    for s in (0, 1, n // 2, n - 2, n - 1):
        for a in (0, 1):
            assert (mdp.P[s, a, drawn(mdp, u, s, a)] > 0).all()


def test_first_states_and_successors_have_the_frequencies_of_the_problem():
    mdp = garnet(5, 2, 3, termination=0.1, seed=3)
    rho0 = np.append(np.random.default_rng(1).dirichlet(np.ones(5)), 0)
    mdp = TabularMDP(mdp.P, mdp.R, mdp.gamma, rho0)
    traj = Collector(TabularVectorEnv(mdp, 100, 20), 0).collect(Uniform(2), Steps(3000), np.random.default_rng(0))
    valid = traj.valid
    assert 0.8 < valid.mean() < 1
    s, a, s2 = traj.obs[valid], traj.actions[valid], traj.next_obs[valid]
    np.testing.assert_array_equal(traj.rewards[valid], mdp.R[s, a])
    np.testing.assert_array_equal(traj.terminated[valid], mdp.terminal[s2])
    counts = np.zeros(mdp.P.shape)
    np.add.at(counts, (s, a, s2), 1)
    starts = np.bincount(traj.obs[valid & (traj.t == 0)], minlength=6)
    for count, p in ((counts[:5], mdp.P[:5]), (starts, rho0)):
        n = count.sum(axis=-1, keepdims=True)
        assert n.min() > 10_000
        random = (p > 0) & (p < 1)
        z = (count - n * p)[random] / np.sqrt(n * p * (1 - p))[random]
        assert np.abs(z).max() < 6  # some fifty frequencies, 2e-9 each
        np.testing.assert_array_equal(count[p == 0], 0)


# The collector


@examples(100)
@given(problems(episodic=True), st.integers(1, 4), st.integers(1, 8), st.integers(1, 6))
def test_collected_episodes_are_valid_trajectories(problem, n, limit, episodes):
    mdp = problem.mdp
    collector = Collector(TabularVectorEnv(mdp, n, limit), 3)
    traj = collector.collect(Uniform(mdp.n_actions), Episodes(episodes), problem.rng)
    v = traj.valid
    s, a, s2 = traj.obs[v], traj.actions[v], traj.next_obs[v]
    assert (mdp.P[s, a, s2] > 0).all()
    assert not mdp.terminal[s].any()
    np.testing.assert_array_equal(traj.rewards[v], reward(mdp, s, a, s2))
    np.testing.assert_array_equal(traj.terminated, mdp.terminal[traj.next_obs] & v)
    np.testing.assert_array_equal(traj.truncated, (traj.t == limit - 1) & v)
    for name in ("obs", "actions", "rewards", "next_obs", "t"):
        assert not getattr(traj, name)[~v].any()
    assert len(collector.finished) == len(traj.episode_returns()) == -(-episodes // n) * n
    for column in range(n):
        rows = np.flatnonzero(v[:, column])
        follows = traj.t[rows[1:], column] > 0
        np.testing.assert_array_equal(
            traj.obs[rows[1:], column][follows], traj.next_obs[rows[:-1], column][follows], strict=True
        )
        np.testing.assert_array_equal(follows, ~(traj.terminated | traj.truncated)[rows[:-1], column])


def test_the_first_reset_of_a_collection_is_a_function_of_the_seed():
    once, again, other = (
        Collector(TabularVectorEnv(four_rooms(), 3, 20), seed).collect(
            Uniform(4), Episodes(3), np.random.default_rng(0)
        )
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(once.obs, again.obs)
    assert not np.array_equal(once.obs[0], other.obs[0])


# Input


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_actions_of_any_integer_type_are_taken(dtype):
    actions = np.random.default_rng(0).integers(2, size=(20, 2))
    expected = played(TabularVectorEnv(garnet(), 2), actions, seed=0)
    assert_same(played(TabularVectorEnv(garnet(), 2), actions.astype(dtype), seed=0), expected)
    if np.can_cast(dtype, np.int64):  # otherwise no member of Gymnasium's Discrete
        expected = played(TabularEnv(garnet()), actions[:, 0].tolist(), seed=0)
        assert_same(played(TabularEnv(garnet()), actions[:, 0].astype(dtype), seed=0), expected)


def test_a_list_of_actions_is_taken():
    env = TabularVectorEnv(short_corridor(), 2)
    env.reset(seed=0)
    np.testing.assert_array_equal(env.step([RIGHT, LEFT])[0], [1, 0])


@pytest.mark.parametrize("action", [-1, 2, 0.0, 1.5, None, [0], "right"])
def test_an_action_that_the_scalar_environment_does_not_have_is_an_error(action):
    env = TabularEnv(short_corridor())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"^action must be an integer from 0 to 1, got"):
        env.step(action)


@pytest.mark.parametrize("actions", [[0], [0, 1, 0], 0, [[0, 1]], [0.0, 1.0], [True, False]])
def test_actions_of_another_shape_or_type_are_an_error(actions):
    env = TabularVectorEnv(short_corridor(), 2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"^actions must be 2 integers, got .* of shape"):
        env.step(actions)


@pytest.mark.parametrize("actions", [[0, 2], [-1, 0]])
def test_actions_out_of_range_are_an_error_also_in_a_column_that_is_being_reset(actions):
    env = TabularVectorEnv(short_corridor(), 2, max_episode_steps=1)
    env.reset(seed=0)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^actions must lie in 0, …, 1, got"):
            env.step(np.array(actions))
        env.step([0, 0])


def test_a_step_before_the_first_reset_is_an_error():
    for env, action in ((TabularEnv(garnet()), 0), (TabularVectorEnv(garnet(), 2), [0, 0])):
        with pytest.raises(RuntimeError, match="call reset before the first step"):
            env.step(action)


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
@pytest.mark.parametrize("name", ["num_envs", "max_episode_steps"])
def test_a_number_of_environments_or_of_steps_below_one_is_an_error_that_names_it(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be an integer of at least 1, got {value}"):
        TabularVectorEnv(garnet(), **{name: value})


def test_a_seed_is_one_integer():
    env = TabularVectorEnv(garnet(), 2)
    expected = np_random(3)[0].random(2)
    env.reset(seed=3)
    assert env.np_random.random() != expected[0]
    np.testing.assert_array_equal(env.reset(seed=3)[0], inverse_distribution_function(garnet().rho0, expected))
