"""Classic control N at a time: what Gymnasium's scalar environments do, in both autoreset modes, from any state."""

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from toy import contents

import npg
from npg.envs import make_vec
from npg.envs.lqr import LQREnv
from npg.envs.vector import TaskVectorEnv
from npg.lab.runs import Run

NEXT_STEP, SAME_STEP = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP
MODES = pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
CART_POLE, MOUNTAIN_CAR, CONTINUOUS = "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0"
ACROBOT, PENDULUM, LQR = "Acrobot-v1", "Pendulum-v1", "npg/LQR-v0"
CLASSIC = [CART_POLE, MOUNTAIN_CAR, CONTINUOUS, ACROBOT, PENDULUM]
EVERY = pytest.mark.parametrize("env_id", CLASSIC)
MATRICES = {"A": [[1.0, 0.1], [-0.2, 0.9]], "B": [[0.5], [1.0]], "Q": np.diag([2.0, 0.5]), "W": 0.1 * np.eye(2)}
VARIANTS = [
    *((env_id, {}) for env_id in CLASSIC),
    (CART_POLE, {"sutton_barto_reward": True}),
    (MOUNTAIN_CAR, {"goal_velocity": 0.02}),
    (CONTINUOUS, {"goal_velocity": 0.02}),
    (PENDULUM, {"g": 9.81}),
]
EVERY_VARIANT = pytest.mark.parametrize(("env_id", "settings"), VARIANTS, ids=str)

EPS32 = np.finfo(np.float32).eps
F32 = {"rtol": 2 * EPS32, "atol": 2 * EPS32}
"""A rounding to float32, and another one where it follows from numbers that differ in the last bit of float64."""


def scalar(env_id, **settings):
    return gymnasium.make(env_id, disable_env_checker=True, **settings)


def signed(rng, values):
    return values * rng.choice([-1, 1], np.shape(values))


def edges(env_id, rng, n):
    """States (k, n) close to where something changes: an end, a wall, a bound on the velocity, a whole turn."""
    near = partial(rng.normal, size=n)
    if env_id == CART_POLE:
        x, theta = signed(rng, 2.4 + near(scale=0.02)), signed(rng, np.radians(12) + near(scale=0.01))
        at_x = rng.random(n) < 0.5
        return np.array([np.where(at_x, x, near()), near(), np.where(at_x, near(scale=0.1), theta), near()])
    if env_id in (MOUNTAIN_CAR, CONTINUOUS):
        x = np.clip(rng.choice([-1.2, 0.45, 0.5, 0.6], n) + near(scale=0.02), -1.2, 0.6)
        return np.array([x, np.clip(rng.choice([-0.07, 0, 0.07], n) + near(scale=0.01), -0.07, 0.07)])
    if env_id == ACROBOT:
        theta = signed(rng, np.pi + rng.normal(scale=0.3, size=(2, n)))
        upright = np.array([signed(rng, np.pi - 1 + near(scale=0.1)), near(scale=0.1)])
        fast = signed(rng, np.array([[4 * np.pi], [9 * np.pi]]) - np.abs(rng.normal(size=(2, n))))
        return np.concatenate([np.where(rng.random(n) < 0.5, theta, upright), fast])
    return np.array([np.pi * rng.integers(-9, 10, n) + near(scale=0.1), signed(rng, 8 - np.abs(near(scale=0.3)))])


def interior(env_id, rng, n):
    """States (k, n) from anywhere."""
    high = {CART_POLE: (2.4, 3, 0.21, 3), ACROBOT: (np.pi, np.pi, 4 * np.pi, 9 * np.pi), PENDULUM: (20, 8)}
    if env_id in high:
        return rng.uniform(-1, 1, (len(high[env_id]), n)) * np.array(high[env_id])[:, None]
    return rng.uniform([[-1.2], [-0.07]], [[0.6], [0.07]], (2, n))


def some_actions(space, rng, n):
    """Those of a Box often lie outside of it."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return rng.integers(space.n, size=n)
    return rng.normal(scale=1.5, size=(n, *space.shape)).astype(space.dtype) * space.high


def assert_same_transitions(env_id, settings, count, prepare=lambda env: None, **ours):
    """From states of which a third are first ones, a third at edges and a third from anywhere."""
    n = 1000
    env, reference = make_vec(env_id, n, **settings, **ours), scalar(env_id, **settings).unwrapped
    prepare(reference)
    rng, ends, pays = np.random.default_rng(0), 0, []
    for _ in range(count // n):
        env.reset(seed=int(rng.integers(2**31)))
        kept = env.get_state()
        s, first = kept["_state"], np.arange(n) % 3 == 0
        s[:, 1::3] = edges(env_id, rng, len(s[0, 1::3]))
        s[:, 2::3] = interior(env_id, rng, len(s[0, 2::3]))
        if env_id == CONTINUOUS:
            s[:, ~first] = s[:, ~first].astype(np.float32)
        env.set_state(kept | {"_state": s, "_t": np.where(first, 0, 1)})
        actions = some_actions(env.single_action_space, rng, n)
        obs, rewards, terminated, truncated, info = env.step(actions)
        after = env.get_state()["_state"]
        assert (obs.dtype, rewards.dtype, terminated.dtype) == (np.float32, np.float64, bool)
        assert not truncated.any()
        assert info == {}
        its = []
        for i, action in enumerate(actions):
            reference.reset()
            reference.state = s[:, i].astype(np.float32) if env_id == CONTINUOUS and not first[i] else s[:, i].copy()
            its.append((*reference.step(int(action) if action.ndim == 0 else action)[:3], np.array(reference.state)))
        its_obs, its_rewards, its_terminated, its_after = map(np.array, zip(*its, strict=True))
        assert_allclose(obs, its_obs, **F32)
        assert_allclose(rewards, its_rewards, **F32)
        assert_allclose(after.T, its_after, **F32)
        assert_array_equal(terminated, its_terminated)
        ends += terminated.sum()
        pays.append(rewards)
    assert (0.02 * count < ends < 0.9 * count) or env_id == PENDULUM
    return np.concatenate(pays)


@EVERY_VARIANT
def test_a_transition_is_that_of_the_scalar_environment(env_id, settings):
    assert_same_transitions(env_id, settings, 2000)


@pytest.mark.slow
@EVERY_VARIANT
def test_a_hundred_thousand_transitions_are_those_of_the_scalar_environment(env_id, settings):
    assert_same_transitions(env_id, settings, 100_000)


@EVERY
def test_twenty_thousand_transitions_are_those_of_the_scalar_environment(env_id):
    assert_same_transitions(env_id, {}, 20_000)


def test_the_cart_can_be_integrated_as_the_attribute_of_gymnasium_says():
    def prepare(env):
        env.kinematics_integrator = "semi-implicit euler"

    assert_same_transitions(CART_POLE, {}, 2000, prepare, kinematics_integrator="semi-implicit euler")
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_transitions(CART_POLE, {}, 1000, prepare)


def test_the_whole_action_is_paid_for_though_it_is_clipped():
    env = make_vec(CONTINUOUS, 3)
    env.reset(seed=0)
    _, rewards, *_ = env.step(np.array([[0.5], [-1.0], [3.0]], dtype=np.float32))
    assert_allclose(rewards, [-0.025, -0.1, -0.9])


def test_the_first_step_of_the_continuous_car_is_in_float64_and_the_others_in_float32():
    n = 300
    env, references = make_vec(CONTINUOUS, n), [scalar(CONTINUOUS).unwrapped for _ in range(n)]
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for s, reference in zip(env.get_state()["_state"].T, references, strict=True):
        reference.reset()
        reference.state = s.copy()
    for _ in range(10):
        actions = rng.uniform(-1, 1, (n, 1)).astype(np.float32)
        obs = env.step(actions)[0]
        its = [reference.step(action)[0] for reference, action in zip(references, actions, strict=True)]
        assert np.mean(obs == its) > 0.99  # a cosine may differ in its last bit


# Whole runs


def assert_same_steps(ours, theirs):
    for mine, its, tolerance in zip(ours[:4], theirs[:4], [{"rtol": 1e-5, "atol": 1e-6}] * 2 + [None] * 2, strict=True):
        if tolerance:
            assert_allclose(mine, its, **tolerance)
        else:
            assert_array_equal(mine, its, strict=True)
    assert ours[4].keys() == theirs[4].keys()
    for key in ours[4].keys() - {"final_info"}:
        assert (ours[4][key].dtype, ours[4][key].shape) == (theirs[4][key].dtype, theirs[4][key].shape)
        for mine, its in zip(ours[4][key], theirs[4][key], strict=True):
            assert (mine is None) == (its is None)
            assert mine is None or np.asarray(mine).dtype == np.asarray(its).dtype
            assert mine is None or np.allclose(mine, its, rtol=1e-5, atol=1e-6)


def swung(env_id, obs, rng):
    """Actions (N,) or (N, 1) that get somewhere: the cars to their goal, the links up."""
    if env_id == CART_POLE:
        return np.where(rng.random(len(obs)) < 0.2, rng.integers(2, size=len(obs)), 1 * (obs[:, 2] + obs[:, 3] > 0))
    if env_id == MOUNTAIN_CAR:
        return np.where(obs[:, 1] < 0, 0, 2)
    if env_id == ACROBOT:
        return np.where(rng.random(len(obs)) < 0.2, 1, np.where(obs[:, 5] < 0, 0, 2))
    push = np.sign(obs[:, -1:]) * rng.uniform(0.5, 1, (len(obs), 1))
    return push.astype(np.float64 if env_id == LQR else np.float32)


@MODES
@EVERY
def test_one_column_is_the_scalar_environment_with_the_same_seed_over_whole_episodes(env_id, mode):
    env = make_vec(env_id, 1, autoreset_mode=mode)
    sync = SyncVectorEnv([partial(scalar, env_id)], autoreset_mode=mode)
    rng = np.random.default_rng(1)
    obs, _ = env.reset(seed=5)
    assert_allclose(obs, sync.reset(seed=5)[0], **F32)
    lengths = [0]
    while len(lengths) < 4:
        actions = swung(env_id, obs, rng)
        ours = env.step(actions)
        assert_same_steps(ours, sync.step(actions))
        obs = ours[0]
        lengths[-1] += 1
        lengths += [0] * bool(ours[2][0] or ours[3][0])
    assert max(lengths) > 60
    assert min(lengths[:3]) < env.unwrapped.max_episode_steps or env_id == PENDULUM


def test_one_column_of_the_lqr_is_the_scalar_environment_with_the_same_seed():
    settings = MATRICES | {"max_episode_steps": 9}
    env = make_vec(LQR, 1, **settings, autoreset_mode="SameStep")
    sync = SyncVectorEnv([partial(scalar, LQR, **settings)], autoreset_mode=SAME_STEP)
    rng = np.random.default_rng(1)
    obs, _ = env.reset(seed=5)
    assert_allclose(obs, sync.reset(seed=5)[0], rtol=1e-12)
    for _ in range(40):
        actions = swung(LQR, obs, rng)
        ours, theirs = env.step(actions), sync.step(actions)
        assert_same_steps(ours, theirs)
        obs = ours[0]


def test_the_columns_of_the_lqr_are_those_of_the_scalar_environment_and_have_noise_of_their_own():
    settings = MATRICES | {"B": np.eye(2), "R": [[1.0, 0.2], [0.2, 2.0]]}
    n = 50_000
    env, still = make_vec(LQR, n, **settings), make_vec(LQR, n, **settings | {"W": None})
    reference = LQREnv(still.unwrapped.task.lqr)
    before, _ = still.reset(seed=0)
    actions = np.random.default_rng(0).normal(size=(n, 2))
    after, rewards, *_ = still.step(actions)
    reference.reset(seed=0)
    for i in range(100):
        reference._state = before[i]
        its = reference.step(actions[i])
        assert_allclose(after[i], its[0], rtol=1e-12)
        assert_allclose(rewards[i], its[1], rtol=1e-12)
    assert_array_equal(env.reset(seed=0)[0], before)
    assert_allclose(np.cov(before.T), np.eye(2), atol=5 * np.sqrt(2 / n))
    noise = env.step(actions)[0] - after
    assert_allclose(np.cov(noise.T), MATRICES["W"], atol=5 * 0.1 * np.sqrt(2 / n))


class Beginning(gymnasium.Wrapper):
    """Episodes begin in the state ``at``."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        env = self.unwrapped
        env.state = self.at.astype(np.float32) if hasattr(env, "_get_ob") else self.at
        see = getattr(env, "_get_obs", None) or getattr(env, "_get_ob", lambda: np.array(env.state, np.float32))
        return see(), {}


@MODES
@EVERY
def test_columns_end_and_begin_as_those_of_gymnasiums_vector_of_scalar_environments(env_id, mode):
    n, limit = 5, 13
    env = make_vec(env_id, n, max_episode_steps=limit, autoreset_mode=mode)
    sync = SyncVectorEnv(
        [lambda: Beginning(scalar(env_id, max_episode_steps=limit))] * n, autoreset_mode=mode, copy=True
    )

    def begin():
        for column, its in zip(env.get_state()["_state"].T, sync.envs, strict=True):
            its.at = column.copy()

    rng = np.random.default_rng(2)
    obs, _ = env.reset(seed=3)
    begin()
    assert_allclose(obs, sync.reset(seed=3)[0], **F32)
    edge = edges(env_id, rng, n)
    state = env.get_state()
    t = np.arange(n)
    env.set_state(state | {"_state": edge, "_t": t})  # so that columns end at different times, some at their ends
    for column, its in enumerate(sync.envs):
        its.unwrapped.state = edge[:, column].copy()
        its.env._elapsed_steps = int(t[column])
    if env_id == CONTINUOUS:
        env.set_state(state | {"_state": edge.astype(np.float32).astype(float), "_t": t + 1})
        for its in sync.envs:
            its.unwrapped.state = its.unwrapped.state.astype(np.float32)
            its.env._elapsed_steps += 1
    seen = np.zeros(3)
    for _ in range(4 * limit):
        actions = some_actions(env.single_action_space, rng, n)
        ours = env.step(actions)
        begin()
        assert_same_steps(ours, sync.step(actions))
        seen += ours[2].any(), ours[3].any(), ours[2].any() and not ours[2].all()
    assert seen[1] > 3
    assert env_id in (PENDULUM, ACROBOT) or seen[0] > 0


def test_a_step_that_resets_has_reward_0_no_flags_and_ignores_its_action():
    runs = []
    for action in (0, 1):
        env = make_vec(CART_POLE, 3, max_episode_steps=2)
        env.reset(seed=0)
        env.step(np.ones(3, int))
        *_, truncated, _ = env.step(np.ones(3, int))
        assert truncated.all()
        runs.append(env.step(np.full(3, action)))
        assert env.step(np.ones(3, int))[1].all()
    assert_array_equal(runs[0][0], runs[1][0])
    assert (np.abs(runs[0][0]) <= 0.05).all()
    assert not np.any(runs[0][1:4])


# First states


@EVERY
def test_first_states_have_the_distribution_of_the_scalar_environment_at_resets_and_later(env_id):
    n = 3000
    reference = scalar(env_id).unwrapped
    its = []
    for seed in range(n):
        reference.reset(seed=seed)
        its.append(reference.state)
    env = make_vec(env_id, n, max_episode_steps=1, autoreset_mode=SAME_STEP)
    env.reset(seed=0)
    at_reset = env.get_state()["_state"]
    env.step(some_actions(env.single_action_space, np.random.default_rng(0), n))
    later = env.get_state()["_state"]
    for ours in (at_reset, later):
        for mine, theirs in zip(ours, np.array(its, dtype=float).T, strict=True):
            assert stats.ks_2samp(mine, theirs).pvalue > 1e-6
        assert np.abs(np.corrcoef(ours[ours.std(axis=1) > 0]) - np.eye((ours.std(axis=1) > 0).sum())).max() < 0.1
    assert not np.array_equal(at_reset, later)


BOUNDS = {env_id: {"low": -0.55, "high": -0.5} for env_id in CLASSIC} | {PENDULUM: {"x_init": 0.3, "y_init": 0.2}}


@EVERY
def test_options_of_a_reset_are_those_of_the_scalar_environment_and_last_for_one(env_id):
    n, options = 400, BOUNDS[env_id]
    env = make_vec(env_id, n, max_episode_steps=1, autoreset_mode=SAME_STEP)
    env.reset(seed=0, options=options)
    s = env.get_state()["_state"]
    s = s[s.std(axis=1) > 0]
    if env_id == PENDULUM:
        low, high = np.array([[-0.3], [-0.2]]), np.array([[0.3], [0.2]])
    else:
        low, high = np.float32(-0.55) - 1e-7, -0.5
    assert ((s >= low) & (s <= high)).all()
    assert (np.ptp(s, axis=1) > 0.9 * np.ravel(high - low)).all()
    env.step(some_actions(env.single_action_space, np.random.default_rng(0), n))
    s = env.get_state()["_state"]
    assert not ((s >= low) & (s <= high)).all()
    one, its = make_vec(env_id, 1), scalar(env_id)
    assert_allclose(one.reset(seed=3, options=options)[0][0], its.reset(seed=3, options=options)[0], **F32)


@EVERY
def test_options_of_no_use_are_refused(env_id):
    env = make_vec(env_id, 2)
    for name in BOUNDS[env_id]:
        with pytest.raises(ValueError, match="could not be converted to a float"):
            env.reset(options={name: "much"})
    if env_id != PENDULUM:
        with pytest.raises(ValueError, match="must be lower than higher bound"):
            env.reset(options={"low": 1.0, "high": 0.0})
    env.reset(options={"unknown": 1})


def test_one_integer_seeds_all_columns():
    env = make_vec(PENDULUM, 4)
    first, again, other = (env.reset(seed=seed)[0] for seed in (7, 7, 8))
    assert_array_equal(first, again)
    assert not (first == other).any()
    assert len(np.unique(first[:, 2])) == 4


def test_environments_have_spaces_of_their_own():
    env, other = make_vec(PENDULUM, 2), make_vec(PENDULUM, 2)
    for space in ("single_action_space", "action_space", "single_observation_space", "observation_space"):
        assert not np.array_equal(getattr(env, space).sample(), getattr(other, space).sample())


# What is handed out and what is taken


@MODES
@pytest.mark.parametrize("env_id", [*CLASSIC, LQR])
def test_an_environment_at_the_state_of_another_has_its_future(env_id, mode):
    env, other = (make_vec(env_id, 3, max_episode_steps=11, autoreset_mode=mode) for _ in range(2))
    rng = np.random.default_rng(0)
    other.reset(seed=1)
    env.reset(seed=0)
    for _ in range(40):
        state = env.get_state()
        kept = {name: array.copy() for name, array in state.items()}
        actions = [some_actions(env.single_action_space, rng, 3).astype(env.single_action_space.dtype)] * 13
        if env_id == LQR:
            actions = [rng.normal(size=(3, 1))] * 13
        expected = [env.step(action)[:4] for action in actions]
        for which in (other, env):
            which.set_state(state)
            for action, step in zip(actions, expected, strict=True):
                for mine, its in zip(which.step(action), step, strict=False):
                    assert_array_equal(mine, its, strict=True)
        for name, array in kept.items():
            assert_array_equal(state[name], array, strict=True)
        env.set_state(state)
        env.step(actions[0])


def test_a_column_cannot_be_still_to_be_reset_in_mode_same_step():
    env = make_vec(PENDULUM, 2, autoreset_mode=SAME_STEP)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="no column may be still to be reset"):
        env.set_state(env.get_state() | {"_done": np.array([True, False])})


@MODES
@EVERY
def test_arrays_that_are_handed_out_stay_as_they_are(env_id, mode):
    env = make_vec(env_id, 3, max_episode_steps=2, autoreset_mode=mode)
    rng = np.random.default_rng(0)
    given = [env.reset(seed=0)[0]]
    copies = [given[0].copy()]
    for _ in range(6):
        actions = some_actions(env.single_action_space, rng, 3)
        sent = actions.copy()
        given += env.step(actions)[:4]
        copies += [array.copy() for array in given[len(copies) :]]
        assert_array_equal(actions, sent)
    for array, copy in zip(given, copies, strict=True):
        assert_array_equal(array, copy)


@pytest.mark.parametrize("actions", [[0, 1], [[0], [1], [1]], [0.0, 1.0, 1.0], [True, False, True], 1, None, ["0"] * 3])
def test_discrete_actions_of_another_shape_or_dtype_are_refused(actions):
    env = make_vec(CART_POLE, 3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be integers of shape \(3,\), got .* of shape"):
        env.step(actions)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.uint64])
def test_discrete_actions_of_any_integers_do_the_same(dtype):
    for env_id in (CART_POLE, MOUNTAIN_CAR, ACROBOT):
        env = make_vec(env_id, 2)
        seen = []
        for kind in (dtype, int):
            env.reset(seed=0)
            seen.append(env.step(np.array([0, 1], kind))[0])
        assert_array_equal(*seen)


@pytest.mark.parametrize(("env_id", "bad"), [(CART_POLE, 2), (MOUNTAIN_CAR, 3), (ACROBOT, -1), (CART_POLE, -1)])
def test_discrete_actions_out_of_range_are_refused_and_nothing_moves(env_id, bad):
    env = make_vec(env_id, 3)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(ValueError, match=rf"actions must lie in 0, …, \d, got \[ *0 +{bad} +1\]"):
        env.step(np.array([0, bad, 1]))
    for name, array in env.get_state().items():
        assert_array_equal(array, before[name])


@pytest.mark.parametrize("actions", [np.zeros(3), np.zeros((2, 1)), np.zeros((3, 2)), np.zeros((3, 1), int), 0.0, None])
def test_actions_of_a_box_of_another_shape_or_dtype_are_refused(actions):
    env = make_vec(PENDULUM, 3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be floats of shape \(3, 1\), got .* of shape"):
        env.step(actions)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("env_id", [PENDULUM, CONTINUOUS])
def test_actions_that_are_not_finite_are_refused(env_id, bad):
    env = make_vec(env_id, 2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must be finite"):
        env.step(np.array([[0.0], [bad]], np.float32))


def test_a_step_before_the_first_reset_is_refused():
    with pytest.raises(RuntimeError, match="call reset before the first step"):
        make_vec(CART_POLE, 2).step(np.zeros(2, int))


@pytest.mark.parametrize(
    ("env_id", "settings", "says"),
    [
        (CART_POLE, {"kinematics_integrator": "leapfrog"}, "kinematics_integrator must be .*'leapfrog'"),
        (CART_POLE, {"autoreset_mode": "Disabled"}, "autoreset_mode must be NEXT_STEP or SAME_STEP"),
        (CART_POLE, {"autoreset_mode": "never"}, "'never' is not a valid AutoresetMode"),
        (PENDULUM, {"g": np.nan}, "g must be a finite number, got nan"),
        (CONTINUOUS, {"goal_velocity": "fast"}, "goal_velocity must be a finite number, got 'fast'"),
        (PENDULUM, {"max_episode_steps": 0}, "max_episode_steps must be an integer of at least 1, got 0"),
        (PENDULUM, {"gravity": 3}, "unexpected keyword argument 'gravity'"),
    ],
)
def test_settings_of_no_use_are_refused(env_id, settings, says):
    for name in (env_id, f"npg/{env_id}"):
        with pytest.raises(ValueError, match=says):
            make_vec(name, 2, **settings)


# By name


@EVERY
@pytest.mark.parametrize("prefix", ["", "npg/", "npg.envs:npg/"])
def test_the_id_that_was_asked_for_is_kept_with_the_spaces_and_the_time_limit_of_gymnasium(env_id, prefix):
    env, its = make_vec(f"{prefix}{env_id}", 3), scalar(env_id)
    assert isinstance(env.unwrapped, TaskVectorEnv)
    assert env.spec.id == f"{prefix}{env_id}"
    assert env.unwrapped.max_episode_steps == env.spec.max_episode_steps == its.spec.max_episode_steps
    assert env.single_observation_space == its.observation_space
    assert env.single_action_space == its.action_space
    assert env.observation_space == gymnasium.vector.utils.batch_space(its.observation_space, 3)
    assert env.metadata == {"render_modes": [], "autoreset_mode": NEXT_STEP}
    assert env.observation_space.contains(env.reset(seed=0)[0])


@EVERY
def test_any_user_of_gymnasium_can_make_them_both_ways_and_its_own_ids_are_left_alone(env_id):
    env = gymnasium.make_vec(f"npg.envs:npg/{env_id}", num_envs=3)
    assert isinstance(env, TaskVectorEnv)
    assert env.max_episode_steps == gymnasium.spec(env_id).max_episode_steps
    assert gymnasium.make_vec(f"npg/{env_id}", num_envs=3, max_episode_steps=7).max_episode_steps == 7
    one = gymnasium.make(f"npg.envs:npg/{env_id}")
    assert type(one.unwrapped) is type(scalar(env_id).unwrapped)
    assert one.spec.max_episode_steps == env.max_episode_steps
    assert not isinstance(gymnasium.make_vec(env_id, num_envs=2), TaskVectorEnv)


@pytest.mark.parametrize(
    "settings",
    [
        {"vectorization_mode": "sync"},
        {"render_mode": "rgb_array"},
        {"wrappers": (lambda env: gymnasium.wrappers.TransformReward(env, abs),)},
        {"vector_kwargs": {"autoreset_mode": SAME_STEP}},
    ],
)
def test_with_settings_that_only_gymnasium_takes_the_environment_is_gymnasiums(settings):
    env = make_vec(PENDULUM, 2, **settings)
    assert isinstance(env, SyncVectorEnv)
    assert env.spec.id == PENDULUM


def test_an_id_that_somebody_else_has_registered_anew_is_theirs(monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec(PENDULUM, "gymnasium.envs.classic_control.acrobot:AcrobotEnv")
    monkeypatch.setitem(gymnasium.registry, PENDULUM, spec)
    assert make_vec(PENDULUM, 2).single_action_space == gymnasium.spaces.Discrete(3)


def test_settings_of_a_registration_reach_the_task(monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec(PENDULUM, gymnasium.spec(PENDULUM).entry_point, kwargs={"g": 3.0})
    monkeypatch.setitem(gymnasium.registry, PENDULUM, spec)
    assert make_vec(PENDULUM, 2).unwrapped.task.g == 3
    assert make_vec(PENDULUM, 2, g=4.0).unwrapped.task.g == 4


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [
        (PENDULUM, {"g": 9.0}),
        (PENDULUM, {"autoreset_mode": SAME_STEP, "max_episode_steps": 30}),
        (CONTINUOUS, {"max_episode_steps": 25}),
        ("npg.envs:npg/Pendulum-v1", {}),
        (LQR, {}),
    ],
)
def test_a_run_is_resumed_from_its_directory_as_if_it_had_not_stopped(env_id, settings, tmp_path):
    def agent_of(env):
        return npg.make_agent("trpo", env, n_steps=64, scale=8.0)

    env = make_vec(env_id, 4, **settings)
    npg.train(agent_of(env), env, steps=2048, seed=3, out=tmp_path / "whole", record_every=256)
    env = make_vec(env_id, 4, **settings)
    npg.train(agent_of(env), env, steps=1024, seed=3, out=tmp_path / "half", record_every=256)
    half = Run(tmp_path / "half")
    again = half.make_env("npg.envs" if ":" in env_id else None)
    assert isinstance(again, TaskVectorEnv)
    assert (str(again), again.spec.kwargs | {"autoreset_mode": again.mode}) == (
        str(env),
        env.spec.kwargs | {"autoreset_mode": env.mode},
    )
    npg.train(half.new_agent(again), again, steps=2048, seed=3, out=half.path, record_every=256, resume=True)
    assert contents(tmp_path / "half") == contents(tmp_path / "whole")
