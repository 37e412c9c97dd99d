"""Environments by name: always a time limit, natively vectorised where possible, a clear error otherwise."""

import json
import re

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from toy import contents

import npg
from npg import make_vec, problems
from npg.envs import DEFAULT_TIME_LIMIT, MAX_ENVS, make_env, normalized
from npg.envs.lqr import LQREnv
from npg.envs.tabular import TabularEnv, TabularVectorEnv
from npg.envs.vector import TaskVectorEnv
from npg.lab.runs import Run
from npg.lqr import LQR


def steps_until_truncation(env, action):
    """Steps of a fixed action after which the (last) environment is cut."""
    env.reset(seed=0)
    for step in range(1, 10_000):
        _, _, terminated, truncated, _ = env.step(action)
        assert not np.any(terminated)
        if np.any(truncated):
            return step
    return np.inf


UP = 0  # against CliffWalking's upper wall: an episode of its own would never end


@pytest.mark.parametrize(("settings", "limit"), [({}, DEFAULT_TIME_LIMIT), ({"max_episode_steps": 7}, 7)])
def test_an_environment_without_a_time_limit_gets_the_default_one_unless_told(settings, limit):
    assert steps_until_truncation(make_env("CliffWalking-v1", **settings), UP) == limit
    assert steps_until_truncation(make_vec("CliffWalking-v1", 2, **settings), np.full(2, UP)) == limit


@pytest.mark.parametrize(("settings", "limit"), [({}, 200), ({"max_episode_steps": 7}, 7)])
def test_an_environment_keeps_its_own_time_limit_unless_told(settings, limit):
    action = np.zeros(1, dtype=np.float32)
    assert steps_until_truncation(make_env("Pendulum-v1", **settings), action) == limit
    assert steps_until_truncation(make_vec("Pendulum-v1", 2, **settings), np.zeros((2, 1), np.float32)) == limit


def test_a_native_vector_environment_has_the_time_limit_of_the_scalar_one():
    assert make_vec("CartPole-v1", 2).unwrapped.max_episode_steps == make_env("CartPole-v1").spec.max_episode_steps
    assert make_vec("CartPole-v1", 2, max_episode_steps=7).unwrapped.max_episode_steps == 7


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("env_id", "kind"),
    [
        ("CartPole-v0", CartPoleVectorEnv),
        ("CartPole-v1", TaskVectorEnv),
        ("Acrobot-v1", TaskVectorEnv),
        ("FrozenLake-v1", SyncVectorEnv),
    ],
)
def test_make_vec_takes_the_native_vector_environment_where_there_is_one(env_id, kind, n):
    env = make_vec(env_id, n)
    assert isinstance(env, VectorEnv)
    assert isinstance(env.unwrapped, kind)
    assert env.num_envs == len(env.reset(seed=0)[0]) == n


def test_settings_reach_the_environment():
    slippery = make_env("FrozenLake-v1").unwrapped.P
    for env in (make_env("FrozenLake-v1", is_slippery=False), make_vec("FrozenLake-v1", 2, is_slippery=False).envs[1]):
        assert len(env.unwrapped.P[0][0]) == 1 < len(slippery[0][0])


@pytest.mark.parametrize("env_id", ["Nope-v0", "CartPole-v99", "CartPole", "", "gymnasium:Nope-v0"])
def test_an_unknown_environment_is_an_error_that_names_it(env_id):
    for make in (make_env, lambda env_id: make_vec(env_id, 2)):
        with pytest.raises(ValueError, match="not registered") as caught:
            make(env_id)
        assert repr(env_id) in str(caught.value)


def test_an_environment_that_cannot_be_made_is_an_error_that_names_it_and_says_why(monkeypatch):
    def entry_point(**kwargs):
        raise gymnasium.error.DependencyNotInstalled("run `pip install simulator`")

    spec = gymnasium.envs.registration.EnvSpec("NeedsSimulator-v0", entry_point)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    for make in (make_env, lambda env_id: make_vec(env_id, 2)):
        with pytest.raises(ValueError, match=r"NeedsSimulator-v0.*pip install simulator"):
            make(spec.id)


MODULE = """
import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

gymnasium.register("{name}/Pole-v0", CartPoleEnv)
"""


@pytest.mark.parametrize("module", ["a_module_of_mine", "a_package_of_mine.envs"])
def test_a_module_before_a_colon_is_imported_first_and_stays_part_of_the_id(module, tmp_path, monkeypatch):
    name = module.partition(".")[0]
    path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(MODULE.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    with pytest.raises(ValueError, match="not registered"):
        make_env(f"{name}/Pole-v0")
    env_id = f"{module}:{name}/Pole-v0"
    for env in (make_env(env_id), make_vec(env_id, 2).envs[0]):
        assert isinstance(env.unwrapped, gymnasium.envs.classic_control.cartpole.CartPoleEnv)
        assert env.spec.max_episode_steps == DEFAULT_TIME_LIMIT
    for env in (make_env(env_id), make_vec(env_id, 2)):
        assert env.unwrapped.spec.id == env_id


@pytest.mark.parametrize("env_id", ["no/such:Thing", "a:b:Thing", "os;sys:Thing", ".envs:Thing", "os.:CartPole-v1"])
def test_what_stands_before_a_colon_must_be_the_name_of_a_module(env_id):
    for make in (make_env, lambda env_id: make_vec(env_id, 2)):
        with pytest.raises(ValueError, match="must be an id, perhaps behind the name of a module") as caught:
            make(env_id)
        assert repr(env_id) in str(caught.value)


@pytest.mark.parametrize("env_id", [None, 3, b"CartPole-v1", ["CartPole-v1"]])
def test_an_id_is_a_string(env_id):
    for make in (make_env, lambda env_id: make_vec(env_id, 2)):
        with pytest.raises(TypeError, match="env_id must be the id of an environment, a string, got"):
            make(env_id)


@pytest.mark.parametrize("n", [0, -3, MAX_ENVS + 1, 10**30, 2.0, None, True])
def test_a_vector_has_at_least_one_environment_and_no_more_than_can_be_meant(n):
    message = f"n must be an integer of at least 1 and at most 100,000, got {n!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_vec("CartPole-v1", n)


# The problems of this package

LIMITS = {
    "npg/ShortCorridor-v0": 1000,
    "npg/RandomWalk-v0": 10_000,
    "npg/TwoState-v0": 100,
    "npg/FourRooms-v0": 200,
    "npg/Garnet-v0": 100,
    "npg/Baird-v0": 1000,
    "npg/Collision-v0": 100,
    "npg/Imani-v0": 100,
    "npg/ContinuousImani-v0": 100,
    "npg/LQR-v0": 100,
}
CLASSIC = {"CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1", "Pendulum-v1"}
EVERY_ID = pytest.mark.parametrize("env_id", LIMITS)
FINITE = {
    "npg/ShortCorridor-v0": (problems.short_corridor, {"gamma": 0.8}),
    "npg/RandomWalk-v0": (problems.random_walk, {"n_states": 5, "left": 0.0, "right": 2.0}),
    "npg/TwoState-v0": (problems.two_state, {"gamma": 0.5}),
    "npg/FourRooms-v0": (problems.four_rooms, {"goal": (1, 1), "slip": 0.1}),
    "npg/Garnet-v0": (problems.garnet, {"n_states": 6, "n_actions": 2, "branching": 2, "termination": 0.1, "seed": 4}),
}
FINITE |= {
    "npg/Baird-v0": (problems.baird, {"gamma": 0.9}),
    "npg/Collision-v0": (problems.collision, {}),
    "npg/Imani-v0": (problems.imani, {}),
}
EVERY_FINITE = pytest.mark.parametrize(("env_id", "make", "kwargs"), [(k, *v) for k, v in FINITE.items()], ids=FINITE)


def assert_same_problem(a, b):
    for name in ("P", "R", "gamma", "rho0"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_every_problem_of_the_package_is_registered():
    assert {env_id for env_id in gymnasium.registry if env_id.startswith("npg/")} == {
        *LIMITS,
        *(f"npg/{name}" for name in CLASSIC),
    }


@pytest.mark.filterwarnings("ignore:.*Box")  # the states and actions of an LQR have no bounds
@EVERY_ID
def test_gymnasiums_checker_passes_every_problem(env_id):
    check_env(make_env(env_id).unwrapped)
    check_env(gymnasium.make(env_id).unwrapped)


@EVERY_ID
def test_every_problem_has_its_time_limit_in_both_interfaces(env_id):
    assert make_env(env_id).spec.max_episode_steps == LIMITS[env_id]
    assert make_env(env_id, max_episode_steps=7).spec.max_episode_steps == 7
    for settings, limit in (({}, LIMITS[env_id]), ({"max_episode_steps": 7}, 7)):
        env = make_vec(env_id, 2, **settings)
        inner = env.envs[0].spec if isinstance(env, SyncVectorEnv) else env.unwrapped
        assert inner.max_episode_steps == limit


@pytest.mark.parametrize("env_id", ["npg/TwoState-v0", "npg/Garnet-v0"])
def test_a_finite_problem_is_cut_at_its_time_limit(env_id):
    assert steps_until_truncation(make_env(env_id), 0) == 100
    assert steps_until_truncation(make_vec(env_id, 2), np.zeros(2, dtype=int)) == 100
    assert steps_until_truncation(make_vec(env_id, 2, max_episode_steps=7), np.zeros(2, dtype=int)) == 7


@EVERY_FINITE
def test_arguments_reach_the_finite_problem_in_both_interfaces(env_id, make, kwargs):
    for given, expected in (({}, make()), (kwargs, make(**kwargs))):
        scalar, vector = make_env(env_id, **given).unwrapped, make_vec(env_id, 3, **given).unwrapped
        assert isinstance(scalar, TabularEnv)
        assert isinstance(vector, TabularVectorEnv)
        assert vector.num_envs == 3
        assert_same_problem(scalar.mdp, expected)
        assert_same_problem(vector.mdp, expected)


def test_arguments_reach_the_lqr():
    matrices = {name: np.diag([0.5, 0.25]) for name in ("A", "Q", "S0")} | {"B": [[1.0], [2.0]], "gamma": 0.7}
    expected = LQR(**matrices, R=np.eye(1))
    one, many = make_env("npg/LQR-v0", **matrices).unwrapped, make_vec("npg/LQR-v0", 2, **matrices).unwrapped.task
    assert isinstance(one, LQREnv)
    for lqr in (one.lqr, many.lqr):
        for name in ("A", "B", "Q", "R", "W", "S0", "gamma"):
            np.testing.assert_array_equal(getattr(lqr, name), getattr(expected, name))


@pytest.mark.parametrize("make", [make_env, lambda env_id, **kwargs: make_vec(env_id, 2, **kwargs)])
def test_an_error_of_a_problem_is_part_of_the_error(make):
    with pytest.raises(
        ValueError, match=r"'npg/Garnet-v0' cannot be made: .*branching must be at most n_states = 10, got"
    ):
        make("npg/Garnet-v0", branching=11)
    with pytest.raises(ValueError, match=r"'npg/FourRooms-v0' cannot be made: .*n_rooms"):
        make("npg/FourRooms-v0", n_rooms=5)


def trained(env_id, steps, num_envs, **settings):
    """The exact J before and after a run of REINFORCE, and its history."""
    env = make_vec(env_id, num_envs) if num_envs else make_env(env_id)
    agent, mdp = npg.make_agent("reinforce", env, **settings), env.unwrapped.mdp
    history = npg.train(agent, env, steps=steps, seed=0)
    return mdp.J(agent.policy, np.zeros(agent.policy.n_params)), mdp.J(agent.policy, agent.theta), history


@pytest.mark.parametrize("num_envs", [0, 8])
def test_reinforce_finds_the_best_blind_policy_of_the_short_corridor(num_envs):
    settings = {"features": "constant", "baseline_features": "constant", "gamma": 1.0, "episodes": 16}
    settings |= {"optimizer": "adam", "alpha": 0.02, "alpha_w": None}
    before, after, history = trained("npg/ShortCorridor-v0", 40_000, num_envs, **settings)
    best = -(6 + 4 * np.sqrt(2))
    assert before == pytest.approx(-12)
    assert best - 0.1 < after < best
    assert (history["mean_return"] < -3).all()


@pytest.mark.parametrize("num_envs", [0, 8])
def test_reinforce_reaches_the_goal_of_the_four_rooms(num_envs):
    """The best policy has J = 0.33, and the uniform one, J = 0.03, reaches it within the time limit in 4 of 10."""
    settings = {"outer_discount": False, "gamma": 0.95, "alpha": 0.2}
    before, after, history = trained("npg/FourRooms-v0", 40_000, num_envs, **settings)
    assert after > 0.2 > 0.05 > before
    returns = history["mean_return"]
    assert ((returns >= 0) & (returns <= 1)).all()
    assert returns[:2].mean() < 0.8 < 0.95 < returns[-10:].mean()


GARNET = FINITE["npg/Garnet-v0"][1]


def garnet(num_envs, **more):
    kwargs = GARNET | more
    return make_vec("npg/Garnet-v0", num_envs, **kwargs) if num_envs else make_env("npg/Garnet-v0", **kwargs)


@pytest.mark.parametrize("num_envs", [0, 3])
def test_a_run_on_a_garnet_keeps_its_arguments_and_is_resumed_from_them(num_envs, tmp_path):
    def run(name, steps, env, **options):
        agent = npg.make_agent("reinforce", env, episodes=4)
        npg.train(agent, env, steps=steps, seed=1, out=tmp_path / name, record_every=100, **options)

    run("whole", 800, garnet(num_envs))
    run("half", 400, garnet(num_envs))
    half = Run(tmp_path / "half")
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["env"]["id"] == "npg/Garnet-v0"
    assert config["env"]["num_envs"] == num_envs
    assert GARNET.items() <= config["env"]["kwargs"].items()
    assert config["env"]["kwargs"]["max_episode_steps"] == LIMITS["npg/Garnet-v0"]
    again = half.make_env()
    assert_same_problem(again.unwrapped.mdp, problems.garnet(**GARNET))
    agent = half.new_agent(again)
    npg.train(agent, again, steps=800, seed=1, out=half.path, resume=True)
    assert contents(tmp_path / "half") == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"kwargs must be .*'seed': 4"):
        run("half", 800, garnet(num_envs, seed=5), resume=True)


def test_a_run_on_an_lqr_is_rebuilt_from_its_matrices(tmp_path):
    kwargs = {"A": np.diag([0.5, 0.25]), "B": np.ones((2, 1)), "Q": np.eye(2), "W": 0.1 * np.eye(2)}
    env = make_vec("npg/LQR-v0", 2, **kwargs, max_episode_steps=10)
    agent = npg.make_agent("reinforce", env, scale=1.0, episodes=4)
    npg.train(agent, env, steps=200, out=tmp_path / "run")
    again = Run(tmp_path / "run").make_env()
    for name, value in kwargs.items():
        np.testing.assert_array_equal(getattr(again.unwrapped.task.lqr, name), value)
    npg.train(Run(tmp_path / "run").new_agent(again), again, steps=400, out=tmp_path / "run", resume=True)


# Normalisation

SCALAR_OR_VECTOR = pytest.mark.parametrize(
    ("make", "theirs"), [(make_env, wrappers), (lambda env_id: make_vec(env_id, 3), wrappers.vector)]
)


@pytest.mark.parametrize("rewards", [True, False])
@pytest.mark.parametrize("observations", [True, False])
@SCALAR_OR_VECTOR
def test_what_is_asked_is_normalised_by_the_wrapper_of_gymnasium_and_nothing_else(make, theirs, observations, rewards):
    env = make("Pendulum-v1")
    wrapped = normalized(env, observations, rewards, gamma=0.8)
    kinds = []
    while wrapped is not env:
        kinds.append(type(wrapped))
        assert not rewards or getattr(wrapped, "gamma", 0.8) == 0.8
        wrapped = wrapped.env
    assert kinds == [theirs.NormalizeReward] * rewards + [theirs.NormalizeObservation] * observations


@SCALAR_OR_VECTOR
def test_observations_alone_are_normalised_by_default(make, theirs):
    assert type(normalized(make("Pendulum-v1"))) is theirs.NormalizeObservation
    assert normalized(make("Pendulum-v1"), False, True).gamma == 0.99


@SCALAR_OR_VECTOR
def test_the_statistics_are_those_of_every_observation_so_far(make, theirs):
    env = normalized(make("MountainCar-v0"))
    env.action_space.seed(0)
    seen = []

    def see(obs):
        seen.append(np.atleast_2d(obs * np.sqrt(env.obs_rms.var + env.epsilon) + env.obs_rms.mean))

    see(env.reset(seed=0)[0])
    for _ in range(300):
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        see(obs)
        if not isinstance(env, VectorEnv) and (terminated or truncated):
            see(env.reset()[0])
    # Gymnasium begins with the weight 1e-4 on (0, 1); observations are in float32.
    seen = np.concatenate(seen)
    np.testing.assert_allclose(env.obs_rms.mean, seen.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(env.obs_rms.var, seen.var(axis=0), rtol=1e-2)


@pytest.mark.parametrize(("observations", "rewards"), [(True, False), (False, True)])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED, None])
def test_a_vector_environment_of_another_autoreset_mode_is_refused(mode, observations, rewards):
    env = make_vec("Acrobot-v1", 2)
    env.metadata = {"autoreset_mode": mode}
    with pytest.raises(ValueError, match=f"env must be of autoreset mode NEXT_STEP to be normalised, got {mode}"):
        normalized(env, observations, rewards)
    assert normalized(env, False, False) is env


@pytest.mark.parametrize("make", [make_env, lambda env_id: make_vec(env_id, 2)])
def test_discrete_observations_are_refused_but_their_rewards_are_not(make):
    with pytest.raises(TypeError, match=r"observation space must be Box to be normalised, got Discrete\(16\)"):
        normalized(make("FrozenLake-v1"))
    normalized(make("FrozenLake-v1"), observations=False, rewards=True)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, np.nan, "0.9", None, True])
def test_a_bad_gamma_of_the_rewards_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\], got"):
        normalized(make_env("CartPole-v1"), rewards=True, gamma=gamma)


def test_the_continuous_counterexample_goes_and_pays_by_the_logistic_function():
    env = make_env("npg/ContinuousImani-v0")
    for a in (-1.5, 0.0, np.log(3)):
        first, pays = 1 / (1 + np.exp(a)), {}
        env.reset(seed=0)
        visits = []
        for _ in range(4000):
            s, reward, *ends, _ = env.step([a])
            assert (reward, *ends) == (0, False, False)
            _, pays[s], terminated, *_ = env.step([a])
            assert terminated
            visits.append(s == 1)
            env.reset()
        assert abs(np.mean(visits) - first) < 4 * np.sqrt(first * (1 - first) / 4000)
        assert pays == pytest.approx({1: 2 * first, 2: 1 - first})
    env.step([a]), env.step([a])
    with pytest.raises(RuntimeError, match="call reset"):
        env.unwrapped.step([a])
