"""The state of a vector environment: what it does next is all in it, and it takes back nothing else."""

import json

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import SyncVectorEnv, VectorEnv
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from strategies import examples

from npg.envs import make_vec
from npg.envs.state import get_state, has_state, set_state
from npg.envs.tabular import TabularVectorEnv
from npg.problems import random_walk


class Counter(VectorEnv):
    """One that gives its state and takes it back."""

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
    num_envs = 2
    single_observation_space, single_action_space = gymnasium.spaces.Discrete(10**6), gymnasium.spaces.Discrete(2)
    observation_space = action_space = gymnasium.spaces.MultiDiscrete([2, 2])

    def reset(self, *, seed=None, options=None):
        self.count = np.zeros(2, dtype=np.int64)
        return self.count.copy(), {}

    def step(self, actions):
        self.count += actions
        none = np.zeros(2, dtype=bool)
        return self.count.copy(), np.ones(2), none, none, {}

    def get_state(self):
        return {"count": self.count.copy()}

    def set_state(self, arrays):
        self.count = arrays["count"].copy()


ENVS = {
    "CartPole": lambda: CartPoleVectorEnv(2, max_episode_steps=9),
    "CartPole of npg": lambda: make_vec("CartPole-v1", 2, max_episode_steps=9),
    "walk": lambda: TabularVectorEnv(random_walk(3), 2, max_episode_steps=4),
    "own": Counter,
}
EVERY = pytest.mark.parametrize("make", ENVS.values(), ids=ENVS.keys())


def told(env, actions):
    return [[np.array(part) for part in env.step(action)[:4]] for action in actions]


@examples(100)
@given(st.sampled_from(sorted(ENVS)), st.integers(0, 30), st.integers(0, 9), st.integers(0, 2**31))
def test_an_environment_at_the_state_of_another_does_what_that_one_does(name, before, between, seed):
    rng = np.random.default_rng(seed)
    env, other = ENVS[name](), ENVS[name]()
    for which in (env, other):
        which.reset(seed=int(rng.integers(2**31)))
    told(env, rng.integers(2, size=(before, 2)))
    told(other, rng.integers(2, size=(between, 2)))
    state = get_state(env)
    kept = {key: array.copy() for key, array in state.items()}
    actions = rng.integers(2, size=(25, 2))
    expected = told(env, actions)
    for which in (other, env):
        set_state(which, state)
        for mine, its in zip(told(which, actions), expected, strict=True):
            for a, b in zip(mine, its, strict=True):
                assert_array_equal(a, b, strict=True)
    for key, array in kept.items():
        assert_array_equal(state[key], array, strict=True)


class Subclass(CartPoleVectorEnv):
    """Whose state nobody knows."""


class Half(Subclass):
    """Gives a state and takes none."""

    def get_state(self):
        return {}


@pytest.mark.parametrize(
    ("make", "has"),
    [
        *((make, True) for make in ENVS.values()),
        (lambda: Subclass(2), False),
        (lambda: Half(2), False),
        (lambda: SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")]), False),
    ],
)
def test_only_those_that_give_and_take_one_and_those_known_have_a_state(make, has):
    assert has_state(make()) is has


@EVERY
def test_other_arrays_are_refused_and_nothing_is_changed(make):
    env = make()
    env.reset(seed=0)
    told(env, np.ones((3, 2), dtype=int))
    state = get_state(env)
    damages = [{}, state | {"more": np.zeros(2)}]
    for name, array in state.items():
        damages.append({other: a for other, a in state.items() if other != name})
        damages += [
            state | {name: damaged}
            for damaged in (array[None], array[:-1], array[:0], array.astype(complex), array.astype(str), np.array(0))
        ]
        if array.dtype.kind == "f":
            damages += [state | {name: np.full_like(array, value)} for value in (np.nan, np.inf)]
    for damaged in damages:
        with pytest.raises(ValueError, match="the state of the environment must hold"):
            set_state(env, damaged)
    for name, array in get_state(env).items():
        assert_array_equal(array, state[name])


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("CartPole", "steps", -1),
        ("CartPole of npg", "_t", -1),
        ("walk", "_t", -1),
        ("walk", "_state", -1),
        ("walk", "_state", 5),
        ("walk", "_state", 10**9),
    ],
)
def test_what_is_no_count_and_no_state_is_refused(kind, name, value):
    env = ENVS[kind]()
    env.reset(seed=0)
    state = get_state(env)
    state[name][-1] = value
    with pytest.raises(ValueError, match=r"must (hold integers of at least|lie in) 0"):
        set_state(env, state)


def generator(words=None, **changes):
    """The bytes of the state of a generator."""
    state = {"state": 5, "inc": 7} | changes
    text = json.dumps({"bit_generator": "PCG64", "state": state, "has_uint32": 0, "uinteger": 0} | (words or {}))
    return np.frombuffer(text.ljust(400).encode(), np.uint8)


def test_a_generator_takes_back_a_state_written_by_hand():
    env = ENVS["walk"]()
    env.reset(seed=0)
    set_state(env, get_state(env) | {"np_random": generator()})
    assert env.np_random.bit_generator.state["state"] == {"state": 5, "inc": 7}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(400, np.uint8),
        np.full(400, ord(" "), np.uint8),
        np.full(400, ord("["), np.uint8),
        np.full(400, 255, np.uint8),
        generator({"bit_generator": "MT19937"}),
        generator({"state": None}),
        generator({"state": []}),
        generator({"uinteger": -1}),
        generator({"has_uint32": 0.5}),
        generator(state=-1),
        generator(state=2**128),
        generator(state=0.5),
        generator(state="5"),
        generator(inc=8),
        generator(inc=-7),
    ],
)
@pytest.mark.parametrize("kind", ["CartPole", "walk"])
def test_what_is_no_state_of_a_generator_is_refused(kind, array):
    env = ENVS[kind]()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="rng must be the state of a PCG64 generator, got"):
        set_state(env, get_state(env) | {"np_random": array})
