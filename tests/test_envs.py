"""Environments by name: always a time limit, natively vectorised where possible, a clear error otherwise."""

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import SyncVectorEnv, VectorEnv

from npg import make_vec
from npg.envs import DEFAULT_TIME_LIMIT, make_env


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
@pytest.mark.parametrize(("env_id", "kind"), [("CartPole-v1", CartPoleVectorEnv), ("Acrobot-v1", SyncVectorEnv)])
def test_make_vec_takes_the_native_vector_environment_where_there_is_one(env_id, kind, n):
    env = make_vec(env_id, n)
    assert isinstance(env, VectorEnv)
    assert isinstance(env.unwrapped, kind)
    assert env.num_envs == len(env.reset(seed=0)[0]) == n


def test_settings_reach_the_environment():
    slippery = make_env("FrozenLake-v1").unwrapped.P
    for env in (make_env("FrozenLake-v1", is_slippery=False), make_vec("FrozenLake-v1", 2, is_slippery=False).envs[1]):
        assert len(env.unwrapped.P[0][0]) == 1 < len(slippery[0][0])


@pytest.mark.parametrize("env_id", ["Nope-v0", "CartPole-v99", "CartPole", "", "no/such:Thing"])
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


@pytest.mark.parametrize("n", [0, -3])
def test_a_vector_has_at_least_one_environment(n):
    with pytest.raises(ValueError, match=f"n must be an integer of at least 1, got {n}"):
        make_vec("CartPole-v1", n)
