"""What was interrupted, or disturbed, goes on as if it had not been, or is refused: never something else in silence."""

import json
from contextlib import suppress
from functools import cache, partial

import gymnasium
import numpy as np
import pytest
from encoding_env import BOX, DISCRETE, MODES
from gymnasium import spaces, wrappers
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from strategies import examples

import npg
from npg.envs import make_vec, normalized
from npg.lab import snapshots
from npg.lab.collect import Collector
from npg.lab.statistics import begin_statistics, load_statistics, statistics
from npg.trajectories import Episodes, Steps, Trajectories

NEXT_STEP, SAME_STEP, DISABLED = MODES


class Drift(gymnasium.Env):
    """Moves with a hidden velocity and noise of its own, and ends at random."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))

    def __init__(self, action_space=BOX, ends=0.15):
        self.action_space, self.ends = action_space, ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.v = self.np_random.normal(size=2)
        self.over = False
        return self.observe(), {}

    def observe(self):
        return np.array([self.x, 1.0], dtype=np.float32)

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        assert not self.over, "stepped after the end"
        self.v = 0.9 * self.v + 0.3 * float(np.sum(action)) + 0.1 * self.np_random.normal()
        self.x += self.v
        self.over = bool(self.np_random.random() < self.ends)
        return self.observe(), self.x - np.sum(action), self.over, False, {}


class Named(Drift):
    """Its observations have names."""

    observation_space = spaces.Dict(x=spaces.Box(-np.inf, np.inf, (1,)), parts=spaces.Tuple([spaces.Discrete(3)]))

    def observe(self):
        return {"x": np.array([self.x], dtype=np.float32), "parts": (int(self.x) % 3,)}


def drift(space=BOX, limit=7, **settings):
    return wrappers.TimeLimit(Drift(space, **settings), limit)


def sync(mode, make=drift, n=3):
    return SyncVectorEnv([make] * n, autoreset_mode=mode)


def halved(actions):
    return np.multiply(actions, 0.5, out=actions)


def both(env):
    return normalized(env, rewards=True, gamma=0.9)


vectors = wrappers.vector
ENVS = {}
for _name, _space in (("Box", BOX), ("Discrete", DISCRETE)):
    ENVS[f"scalar {_name}"] = partial(drift, _space)
    ENVS |= {f"{mode.value} {_name}": partial(sync, mode, partial(drift, _space)) for mode in MODES}


class Warmed(Drift):
    """Takes a few steps of its own before each episode."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        for _ in range(3):
            self.over = False
            obs = self.step(np.zeros(self.action_space.shape, self.action_space.dtype))[0]
        self.over = False
        return obs, {}


SCALARS = {
    "stepped in its reset": Warmed,
    "normalised": lambda: both(drift()),
    "normalised Discrete": lambda: both(drift(DISCRETE)),
    "normalised observations": lambda: normalized(drift()),
    "normalised rewards": lambda: normalized(drift(), observations=False, rewards=True),
    "normalised within a time limit": lambda: wrappers.TimeLimit(both(Drift()), 7),
    "normalised behind other wrappers": lambda: wrappers.RescaleAction(
        wrappers.TransformReward(both(drift()), lambda reward: reward**2), np.float32(0), np.float32(1)
    ),
    "actions changed in place in it": lambda: wrappers.TransformAction(drift(), halved, BOX),
    "normalised frames": lambda: both(wrappers.FrameStackObservation(drift(), 3)),
    "normalised with names": lambda: wrappers.FlattenObservation(
        normalized(wrappers.TimeLimit(Named(), 7), observations=False, rewards=True)
    ),
    "frames and sticky actions": lambda: wrappers.FrameStackObservation(wrappers.StickyAction(drift(), 0.4), 3),
}
VECTORS = {
    "normalised vector": lambda: both(sync(NEXT_STEP)),
    "normalised Discrete vector": lambda: both(sync(NEXT_STEP, partial(drift, DISCRETE))),
    "rescaled actions": lambda: vectors.RescaleAction(sync(NEXT_STEP), np.float32(3), np.float32(5)),
    "rescaled actions, normalised": lambda: vectors.RescaleAction(both(sync(NEXT_STEP)), np.float32(3), np.float32(5)),
    "actions changed in place": lambda: vectors.TransformAction(sync(SAME_STEP), halved),
    "actions changed each": lambda: vectors.VectorizeTransformAction(
        sync(DISABLED), wrappers.TransformAction, func=lambda action: action / 2, action_space=BOX
    ),
    "names": lambda: vectors.FlattenObservation(sync(NEXT_STEP, lambda: wrappers.TimeLimit(Named(), 7))),
    "counted": lambda: vectors.RecordEpisodeStatistics(sync(NEXT_STEP)),
    "one column": lambda: sync(SAME_STEP, n=1),
}
NATIVES = {
    "CartPole": lambda: make_vec("CartPole-v1", 3, max_episode_steps=11),
    "CartPole of Gymnasium": lambda: CartPoleVectorEnv(3, max_episode_steps=11),
    "Pendulum": lambda: make_vec("Pendulum-v1", 3, max_episode_steps=7, autoreset_mode=SAME_STEP),
    "normalised CartPole": lambda: both(make_vec("CartPole-v1", 3, max_episode_steps=11)),
    "walk": lambda: make_vec("npg/RandomWalk-v0", 3, n_states=3, max_episode_steps=5),
    "normalised walk": lambda: normalized(make_vec("npg/RandomWalk-v0", 3, n_states=5), False, True),
}
ENVS |= SCALARS | VECTORS | NATIVES
EVERY = pytest.mark.parametrize("make", ENVS.values(), ids=ENVS.keys())


class Chance:
    """Acts at random, often outside of a Box; stops the collection after ``patience`` actions."""

    def __init__(self, env, patience=np.inf):
        self.space = env.single_action_space if isinstance(env, VectorEnv) else env.action_space
        self.patience = patience

    def act(self, obs, rng, explore=True):
        self.patience -= 1
        if self.patience < 0:
            raise KeyboardInterrupt
        if isinstance(self.space, spaces.Discrete):
            return rng.integers(self.space.n, size=len(obs)), np.ones((len(obs), 1))
        return 2 * rng.normal(size=(len(obs), *self.space.shape)), np.ones((len(obs), 1))


def collector_of(make, seed=0):
    env = make()
    begin_statistics(env)
    return Collector(env, seed)


def resumed(make, state, gathered, seed=0):
    """A new collector on a new environment, at a saved state."""
    collector = collector_of(make, seed)
    load_statistics(collector.env, gathered)
    collector.load_state(state)
    return collector


def place(collector):
    return collector.state(), statistics(collector.env)


def collect(collector, request=None, number=0, cut=False):
    return collector.collect(Chance(collector.env), request or Steps(1), np.random.default_rng(number), cut=cut)


def assert_same_arrays(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert_array_equal(a[name], b[name], strict=True, err_msg=name)


def assert_same(a, b):
    assert_same_arrays(*({name: getattr(traj, name) for name in Trajectories.__slots__} for traj in (a, b)))


def copied(arrays):
    return {name: array.copy() for name, array in arrays.items()}


def told(collector, requests):
    """What is collected, and where the collector is before each request and at the end, with copies of that."""
    places, trajs = [place(collector)], []
    for number, (request, cut) in enumerate(requests):
        trajs.append(collect(collector, request, number, cut))
        places.append(place(collector))
    return trajs, places


def assert_goes_on(collector, requests, k, trajs, places):
    """A collector at place k collects what another one did from there, by all places that that one came through."""
    for number in range(k, len(requests)):
        assert_same(collect(collector, requests[number][0], number, requests[number][1]), trajs[number])
        for mine, its in zip(place(collector), places[number + 1], strict=True):
            assert_same_arrays(mine, its)


# Interruptions


@EVERY
def test_a_collection_interrupted_after_any_step_goes_on_in_a_new_environment_as_if_it_had_not_been(make):
    requests = [(Steps(1), False)] * 24
    collector = collector_of(make)
    assert collector.restorable
    trajs, places = told(collector, requests)
    for k, (state, gathered) in enumerate(places):
        assert_goes_on(resumed(make, state, gathered), requests, k, trajs, places)
    t, terminated, truncated, valid = (
        np.concatenate([getattr(traj, name) for traj in trajs]) for name in ("t", "terminated", "truncated", "valid")
    )
    assert ((terminated | truncated) & valid)[:-1].any()
    assert (t > 1).any()
    assert collector.mode is not NEXT_STEP or not valid.all()


@EVERY
def test_an_episode_longer_than_the_distance_of_interruptions_is_whole(make):
    requests = [(Steps(2), False)] * 15
    trajs, places = told(collector_of(make), requests)
    collector, lengths = collector_of(make), []
    for k, at in enumerate(places[:-1]):
        collector = resumed(make, *at if k == 0 else place(collector))
        assert_same(collect(collector, requests[k][0], k), trajs[k])
        for mine, its in zip(place(collector), places[k + 1], strict=True):
            assert_same_arrays(mine, its)
        lengths = [length for _, length in collector.finished]
    assert max(lengths) > 2


steps, episodes = st.integers(1, 6).map(Steps), st.integers(1, 4).map(Episodes)
asked = st.lists(st.tuples(steps, st.booleans()) | st.tuples(steps | episodes, st.just(False)), min_size=1, max_size=6)


@examples(200)
@given(st.sampled_from(sorted(ENVS)), asked, st.integers(0, 2**64), st.data())
def test_whatever_was_asked_for_an_interrupted_collection_goes_on_with_the_same(name, requests, seed, data):
    make = ENVS[name]
    trajs, places = told(collector_of(make, seed), requests)
    k = data.draw(st.integers(0, len(requests)))
    assert_goes_on(resumed(make, *places[k], seed), requests, k, trajs, places)


@EVERY
def test_a_collector_goes_back_on_its_own_environment_too_even_from_the_middle_of_a_collection(make):
    requests = [(Steps(5), False), (Steps(4), False), (Episodes(2), False)]
    collector = collector_of(make)
    trajs, places = told(collector, requests)
    for k, (state, gathered) in enumerate(places):
        for request in (Steps(9), Episodes(4)):
            with pytest.raises(KeyboardInterrupt):
                collector.collect(Chance(collector.env, patience=3), request, np.random.default_rng(5))
            load_statistics(collector.env, gathered)
            collector.load_state(state)
            assert_goes_on(collector, requests, k, trajs, places)


@EVERY
def test_a_state_is_a_copy_and_is_copied(make):
    collector = collector_of(make)
    collect(collector, Steps(6))
    places = place(collector)
    before = [*map(copied, places)]
    for other in (collector, resumed(make, *places)):
        collect(other, Steps(9))
        for mine, its in zip(places, before, strict=True):
            assert_same_arrays(mine, its)


# Disturbances


def least(space):
    """The least action that there is."""
    return space.low.copy() if isinstance(space, spaces.Box) else int(space.start) if space.shape == () else space.start


def use(env, n=3, **options):
    """A reset and steps."""
    env.reset(**options)
    for _ in range(n):
        _, _, terminated, truncated, _ = env.step(least(env.action_space))
        if np.any(terminated | truncated):
            return


def step(env):
    """A step from where the environment is, if it is anywhere."""
    with suppress(gymnasium.error.ResetNeeded, AttributeError, AssertionError, RuntimeError):
        env.step(least(env.action_space))


def nested(env, request):
    with Collector(env, 3) as collector:
        collect(collector, request)


def left_behind(env):
    collect(Collector(env, 3), Steps(9))


def evaluated(env):
    agent = npg.make_agent("reinforce", env, features="constant", baseline_features="constant")
    agent.init(np.random.default_rng(0), 1)
    npg.evaluate(agent, env, episodes=4, deterministic=False)


def twice(env):
    use(env)
    evaluated(env)


USES = {
    "reset": use,
    "seeded reset": lambda env: use(env, seed=3),
    "step": step,
    "unwrapped": lambda env: use(env.unwrapped),
    "one of the vector": lambda env: use(getattr(env.unwrapped, "envs", [env])[0]),
    "collector": lambda env: nested(env, Steps(9)),
    "collector of episodes": lambda env: nested(env, Episodes(3)),
    "collector never released": left_behind,
    "evaluation": evaluated,
    "several": twice,
}


@pytest.mark.parametrize("disturb", USES.values(), ids=USES.keys())
@EVERY
def test_whatever_is_done_to_the_environment_meanwhile_the_collection_goes_on_as_if_it_had_not_been(make, disturb):
    requests = [(Steps(4), False), (Steps(1), False), (Steps(6), False), (Episodes(2), False), (Steps(3), True)] * 2
    trajs, places = told(collector_of(make), requests)
    collector = collector_of(make)
    for number, (request, cut) in enumerate(requests):
        with collector.kept():
            disturb(collector.env)
        assert_same(collect(collector, request, number, cut), trajs[number])
        for mine, its in zip(place(collector), places[number + 1], strict=True):
            assert_same_arrays(mine, its)


# Environments that do not come back


class Tired(Drift):
    """Every step of its life makes the rewards less."""

    steps = 0

    def step(self, action):
        self.steps += 1
        obs, reward, *rest = super().step(action)
        return obs, reward - self.steps, *rest


class Curriculum(Drift):
    """The more episodes there were, the more the end is worth; nothing else says how many."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward + self.episodes * terminated, terminated, truncated, info


class Cued(Curriculum):
    """Shows the number of the episode at its beginning, and never rewards it."""

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed, options=options)
        return obs + np.float32([0, self.episodes]), info

    def step(self, action):
        return Drift.step(self, action)


class Glimpsed(Curriculum):
    """Shows the number of the episode after its first step, and never rewards it."""

    def step(self, action):
        obs, *rest = Drift.step(self, action)
        self.steps = self.steps + 1
        return obs + np.float32([0, self.episodes * (self.steps == 1)]), *rest

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return super().reset(seed=seed, options=options)


class Haphazard(Drift):
    """Moves with noise that no seed sets."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rng = np.random.default_rng(0)

    def step(self, action):
        self.x += self.rng.normal()
        return super().step(action)


ENDS = 0.3
FORGETFUL = pytest.mark.parametrize("env_type", [Tired, Curriculum, Cued, Glimpsed, Haphazard])
LAYERS = {
    "scalar": lambda make: make(),
    "normalised": lambda make: both(make()),
    "normalised vector": lambda make: both(sync(NEXT_STEP, make)),
    **{mode.value: partial(sync, mode) for mode in MODES},
}
EVERY_LAYER = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
DOES_NOT_COME_BACK = "the environment does not come back to where it was"


@EVERY_LAYER
@FORGETFUL
def test_an_environment_whose_episodes_cannot_be_played_again_is_refused_at_every_step_of_the_third_and_later(
    env_type, layer
):
    make = partial(layer, partial(env_type, ends=ENDS))
    collector, later = collector_of(make), 0
    for number in range(40):
        collect(collector, number=number)
        first = collector.state()["episode"][0]
        if first >= 3:
            later += 1
            with pytest.raises(ValueError, match=DOES_NOT_COME_BACK):
                resumed(make, *place(collector))
    assert later > 9


@EVERY_LAYER
@FORGETFUL
def test_an_environment_that_was_disturbed_and_does_not_come_back_is_refused_and_one_that_was_not_goes_on(
    env_type, layer
):
    make = partial(layer, partial(env_type, ends=ENDS))
    requests = [(Steps(10), False)] * 3
    trajs, places = told(collector_of(make), requests)
    collector = collector_of(make)
    for number, (request, _) in enumerate(requests):
        with collector.kept():
            pass
        assert_same(collect(collector, request, number), trajs[number])
    assert_same_arrays(collector.state(), places[-1][0])
    with pytest.raises(ValueError, match=DOES_NOT_COME_BACK), collector.kept():
        use(collector.env)


class Unknown(VectorWrapper):
    """Somebody's own, which may remember anything."""


class UnknownToo(vectors.TransformReward):
    """As the one of Gymnasium, or not."""


class OwnCartPole(CartPoleVectorEnv):
    """Perhaps with a state of its own."""


class OwnSync(SyncVectorEnv):
    """Perhaps with a state of its own."""


class WithState(OwnCartPole):
    """One that gives its state and takes it back."""

    def get_state(self):
        return npg.envs.state.read(self, ("state", "steps", "prev_done"))

    def set_state(self, arrays):
        npg.envs.state.write(self, ("state", "steps", "prev_done"), arrays)


def around(env):
    return UnknownToo(env, lambda reward: reward)


NO_WAY_BACK = {
    "unknown wrapper": lambda: Unknown(sync(NEXT_STEP)),
    "unknown wrapper below another": lambda: both(Unknown(sync(NEXT_STEP))),
    "unknown wrapper above another": lambda: Unknown(both(sync(NEXT_STEP))),
    "kind of a wrapper of Gymnasium": lambda: around(sync(SAME_STEP)),
    "unknown wrapper of native": lambda: Unknown(make_vec("CartPole-v1", 3)),
    "kind of CartPole": lambda: OwnCartPole(3, max_episode_steps=11),
    "kind of SyncVectorEnv": lambda: OwnSync([drift] * 3),
}


def assert_only_between_episodes(make):
    requests = [(Episodes(3), False), (Steps(4), True), (Steps(3), False), (Steps(4), False)]
    undisturbed = collector_of(make)
    assert not undisturbed.restorable
    trajs = [collect(undisturbed, request, number, cut) for number, (request, cut) in enumerate(requests)]

    collector, between = collector_of(make), ()
    for number, (request, cut) in enumerate(requests):
        if number < 3:
            between = place(collector)
            with collector.kept():
                use(collector.env)
        else:
            for method in (use, lambda env: use(env, seed=3), lambda env: use(env.unwrapped), USES["collector"]):
                with pytest.raises(ValueError, match="is being trained on, and has no way back"), collector.kept():
                    method(collector.env)
            with collector.kept():
                pass
        assert_same(collect(collector, request, number, cut), trajs[number])

    collector = resumed(make, *between)
    for number in (2, 3):
        assert_same(collect(collector, requests[number][0], number), trajs[number])
    with pytest.raises(ValueError, match=r"the state must be between episodes, because .* has no way back"):
        resumed(make, between[0] | {"obs": trajs[2].obs[0]}, between[1])


@pytest.mark.parametrize("make", NO_WAY_BACK.values(), ids=NO_WAY_BACK.keys())
def test_what_may_remember_anything_is_saved_and_disturbed_between_episodes_only(make):
    assert_only_between_episodes(make)


@pytest.mark.parametrize("mode", MODES)
def test_environments_in_other_processes_are_saved_and_disturbed_between_episodes_only(mode):
    made = []

    def make():
        made.append(AsyncVectorEnv([drift] * 2, autoreset_mode=mode))
        return made[-1]

    try:
        assert_only_between_episodes(make)
    finally:
        for env in made:
            env.close()


def test_an_environment_of_ones_own_that_gives_its_state_goes_on():
    make = partial(WithState, 3, max_episode_steps=11)
    requests = [(Steps(3), False)] * 9
    trajs, places = told(collector_of(make), requests)
    for k, at in enumerate(places):
        assert_goes_on(resumed(make, *at), requests, k, trajs, places)


# Damaged states


class Bomb:
    """What must not be touched."""

    def explode(self, *args):
        raise AssertionError("used")

    __array__ = __float__ = __int__ = __bool__ = __eq__ = __lt__ = __reduce__ = __str__ = __repr__ = explode
    __hash__ = None


def bombs(array):
    damaged = np.empty(array.shape, dtype=object)
    damaged.fill(Bomb())
    return damaged


def with_first(value):
    def change(array):
        damaged = array.copy()
        damaged.flat[0] = value
        return damaged

    return change


ANY = {
    "a list of it": lambda a: a[None],
    "complex": lambda a: a.astype(complex),
    "words": lambda a: a.astype(str),
    "another precision": lambda a: a.astype(np.float32 if a.dtype != np.float32 else np.float64),
    "objects": bombs,
    "a structure": lambda a: np.zeros(a.shape, [("x", int)]),
    "nothing": lambda a: np.zeros(0),
}
FLOATS = ANY | {"NaN": with_first(np.nan), "infinite": with_first(-np.inf)}
INTEGERS = ANY | {"negative": with_first(-1), "least": lambda a: with_first(np.iinfo(a.dtype).min)(a)}
TALLIED = ("resets", "episode", "last.episode", "t", "lengths", "env.steps", "env._t", "env._state")


def generic(state):
    """Each array damaged in each way that leaves no doubt."""
    for name, array in state.items():
        yield f"no {name}", {other: a for other, a in state.items() if other != name}
        changes = FLOATS if array.dtype.kind == "f" else INTEGERS if name in TALLIED else ANY
        for what, change in changes.items():
            if array.size or what in ANY:
                yield f"{name}: {what}", state | {name: change(array)}
    yield "more", state | {"more": np.zeros(3)}


def plus(name, index, value):
    """A state with a value added at an index of one of its arrays."""

    def damage(state):
        array = state[name].copy()
        array[index] += value
        return state | {name: array}

    return damage


def longer(state, column=-1):
    """With an action too many."""
    more = np.insert(state["actions"], state["lengths"].cumsum()[column], state["actions"][0], axis=0)
    t, lengths = state["t"].copy(), state["lengths"].copy()
    t[column] += 1
    lengths[column] += 1
    return state | {"actions": more, "lengths": lengths, "t": t}


def shorter(state):
    """With an action too few, from where most are."""
    column = state["lengths"].argmax()
    fewer = np.delete(state["actions"], state["lengths"].cumsum()[column] - 1, axis=0)
    t, lengths = state["t"].copy(), state["lengths"].copy()
    t[column] -= 1
    lengths[column] -= 1
    return state | {"actions": fewer, "lengths": lengths, "t": t}


def all_reset(state):
    """As if every column were about to be reset."""
    return state | {"resetting": np.ones_like(state["resetting"]), "t": np.zeros_like(state["t"])}


WITHIN_EPISODES = {
    "a length that is not whole": plus("finished", (0, 1), 0.5),
    "a length below 0": plus("finished", (0, 1), -1e6),
    "an episode that was not": plus("episode", 0, -1e6),
    "one that was not of the last": plus("episode", -1, -1e6),
    "another episode": plus("episode", -1, 1),
    "the episode before": plus("episode", 0, -1),
    "an episode before of another number": plus("last.episode", (), -1),
    "an episode before that is to come": plus("last.episode", (), 9),
    "no episode before": lambda s: s | {"last.actions": s["last.actions"][:0]},
    "none though there are actions": lambda s: s | {"last.episode": np.array(0)},
    "an episode before without its end": lambda s: s | {"last.actions": s["last.actions"][:-1]},
    "an episode before with more": lambda s: s | {"last.actions": np.repeat(s["last.actions"], 2, axis=0)},
    "other observations": plus("obs", -1, 1),
    "another observation before": plus("last.digest", (), 1),
    "other observations on the way": plus("digests", -1, 1),
    "a time ahead": plus("t", -1, 1),
    "a time behind": lambda s: s | {"t": np.zeros_like(s["t"])},
    "a length ahead": plus("lengths", -1, 1),
    "lengths that are too large to add": lambda s: s | {"lengths": s["lengths"] + 2**62},
    "no actions": lambda s: s | {"actions": s["actions"][:0]},
    "an action too many": longer,
    "an action too few": shorter,
    "many actions too many": lambda s: longer(longer(longer(longer(longer(longer(longer(s))))))),
    "an action too many in the first": lambda s: longer(s, 0),
    "other actions": plus("actions", slice(None, None, 2), 1),
    "all columns to be reset": all_reset,
    "no column to be reset": lambda s: s | {"resetting": ~s["resetting"]},
}
BETWEEN_EPISODES = (
    "a length that is not whole",
    "a length below 0",
    "an episode that was not",
    "one that was not of the last",
    "an episode before of another number",
    "an episode before that is to come",
    "no episode before",
    "none though there are actions",
    "an episode before without its end",
    "an episode before with more",
    "another observation before",
)
OUT_OF_RANGE = {
    "above": plus("actions", ..., 3),
    "below": plus("actions", 0, -3),
    "far above": plus("actions", -1, 10**9),
    "above before": plus("last.actions", ..., 3),
    "below before": plus("last.actions", 0, -3),
}


def generator(**changes):
    state = {"state": 5, "inc": 7} | changes
    return json.dumps({"bit_generator": "PCG64", "state": state, "has_uint32": 0, "uinteger": 0})


NO_GENERATORS = {
    "empty": "",
    "nothing": "{}",
    "no words": "\0",
    "deep": "[" * 400,
    "of another kind": generator().replace("PCG64", "MT19937"),
    "negative": generator(state=-1),
    "negative increment": generator(inc=-7),
    "even increment": generator(inc=8),
    "too large": generator(state=2**128),
    "fractional": generator(state=0.5),
    "no state": generator(state=None),
    "a list": json.dumps([1, 2]),
    "endless": '{"state": 1e999}',
}


def refused(make, at, damages):
    """Which of the damaged states are not refused by ``ValueError``, and what became of them instead."""
    wrong = {}
    for name, state in damages:
        try:
            resumed(make, state, at[1])
            wrong[name] = "accepted"
        except ValueError:
            pass
        except Exception as error:
            wrong[name] = repr(error)
    return wrong


def eventful(make):
    """A place with much to damage: episodes before, under way and, where there are such, about to be reset."""
    collector = collector_of(make)
    for number in range(100):
        collect(collector, number=number)
        state, gathered = place(collector)
        ready = len(state["finished"]) and state["t"].max() >= 2 and state.get("last.episode", 1) > 0
        if ready and (state["resetting"].any() or collector.mode is not NEXT_STEP) and state["t"][-1] > 0:
            return state, gathered
    raise AssertionError("no such place")


@EVERY
def test_a_state_of_which_an_array_is_missing_or_of_another_kind_is_refused(make):
    state, gathered = eventful(make)
    assert refused(make, (state, gathered), generic(state)) == {}
    resumed(make, state, gathered)


@EVERY
def test_a_state_between_episodes_that_is_damaged_is_refused(make):
    collector = collector_of(make)
    collect(collector, Episodes(7))
    state, gathered = place(collector)
    damages = dict(generic(state))
    for name in BETWEEN_EPISODES if "episode" in state else BETWEEN_EPISODES[:2]:
        damages[name] = WITHIN_EPISODES[name](state)
    assert refused(make, (state, gathered), damages.items()) == {}
    resumed(make, state, gathered)


REPLAYED = {name: make for name, make in ENVS.items() if name not in NATIVES}


@pytest.mark.parametrize("make", REPLAYED.values(), ids=REPLAYED.keys())
def test_a_state_that_does_not_agree_with_itself_or_with_what_is_played_again_is_refused(make):
    state, gathered = eventful(make)
    damages = {name: damage(state) for name, damage in WITHIN_EPISODES.items()}
    if state["actions"].ndim == 1:
        damages |= {name: damage(state) for name, damage in OUT_OF_RANGE.items()}
    assert refused(make, (state, gathered), damages.items()) == {}


@pytest.mark.parametrize("make", NATIVES.values(), ids=NATIVES.keys())
def test_a_state_of_a_native_environment_that_cannot_be_is_refused(make):
    state, gathered = eventful(make)
    damages = {name: WITHIN_EPISODES[name](state) for name in list(WITHIN_EPISODES)[:2]}
    for name, text in NO_GENERATORS.items():
        array = np.frombuffer(text.ljust(400).encode(), np.uint8)
        damages[name] = state | {"env.np_random": array}
    damages["a generator of nothing"] = state | {"env.np_random": np.zeros(400, np.uint8)}
    if state["resetting"].any():
        damages["a time in a reset"] = state | {"t": state["t"] + 1}
    if state["sent"].dtype.kind == "i":
        damages["no such action"] = plus("sent", 0, 9)(state)
    if state["obs"].dtype.kind == "i":
        damages["no such state"] = plus("env._state", 0, 10**6)(state)
        damages["no such observation"] = plus("obs", 0, 10**6)(state)
    assert refused(make, (state, gathered), damages.items()) == {}


@cache
def event(name):
    """An eventful place, and what comes after it."""
    at = eventful(ENVS[name])
    collector = resumed(ENVS[name], *at)
    return at, [collect(collector, Steps(5), number) for number in range(3)]


CHECKED = [
    "episode",
    "last.episode",
    "last.actions",
    "last.digest",
    "obs",
    "t",
    "resetting",
    "sent",
    "actions",
    "lengths",
    "digests",
]


@examples(200)
@given(st.sampled_from(sorted(REPLAYED)), st.sampled_from(CHECKED), st.integers(0), st.integers(-100, 100), st.data())
def test_a_state_in_which_any_one_number_is_another_is_refused_or_means_the_same(name, array_name, index, more, data):
    (state, gathered), trajs = event(name)
    array = state[array_name].copy()
    index = np.unravel_index(index % array.size, array.shape)
    array[index] = ~array[index] if array.dtype == bool else array[index] + more
    try:
        collector = resumed(ENVS[name], state | {array_name: array}, gathered)
    except ValueError:
        return
    for number, traj in enumerate(trajs):
        assert_same(collect(collector, Steps(5), number), traj)


# Episodes without end


@EVERY_LAYER
def test_an_episode_without_end_is_truncated_with_a_warning_and_one_that_ends_by_itself_is_not_spoken_of(
    layer, monkeypatch
):
    monkeypatch.setattr(snapshots, "LONGEST", 20)
    make = partial(layer, partial(Drift, ends=0))
    collector = collector_of(make)
    with pytest.warns(UserWarning, match="an episode was truncated after 20 steps: give it a time limit") as caught:
        traj = collect(collector, Steps(50))
    assert_array_equal(traj.truncated, traj.valid & (traj.t == 19))
    assert traj.truncated.sum() == len(caught) == 2 * collector.n_columns
    assert not traj.terminated.any()
    assert [length for _, length in collector.finished] == [20] * len(caught)
    again = resumed(make, *place(collector))
    assert_same(*(collect(other, Steps(5)) for other in (collector, again)))
    collect(collector_of(partial(layer, partial(drift, limit=20, ends=0))), Steps(50))
