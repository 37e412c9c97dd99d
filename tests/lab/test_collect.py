"""Every field of ``Trajectories`` against a forecast from the script alone, and what the collector refuses."""

from itertools import islice

import gymnasium
import numpy as np
import pytest
from encoding_env import (
    BOX,
    DISCRETE,
    KINDS,
    MODES,
    CarelessResets,
    EncodingAgent,
    Episode,
    ReusingVectorEnv,
    choose,
    encode,
    features,
    make,
    reward_of,
)
from gymnasium import spaces, wrappers
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import npg
from npg.envs.spaces import normalizers
from npg.lab.collect import Collector
from npg.trajectories import DivergenceError, Episodes, Steps, Trajectories

NEXT_STEP, SAME_STEP, DISABLED = MODES
LAYOUTS = [("scalar", 1), *((mode, n) for mode in MODES for n in (1, 3))]
ENDS = [(True, False), (False, True), (True, True)]
SCRIPTS = [
    [Episode(2), Episode(1, False, True), Episode(3, True, True)],
    [Episode(1, True, True), Episode(4, False, True)],
    [Episode(3, False, True), Episode(1)],
]


class Forecast:
    """What each collection must contain, written down episode by episode from the scripts; nothing is stepped."""

    def __init__(self, kind, scripts, agent, discrete=False):
        self.kind, self.scripts, self.agent, self.discrete = kind, scripts, agent, discrete
        self.begun, self.streams, self.finished = [0] * len(scripts), None, []

    def row(self, column, number, episode, step):
        here, there = ((column, number, time) for time in (step, step + 1))
        action, last = choose(here, self.agent.action_space), step + 1 == episode.length
        sent = np.clip(action, BOX.low, BOX.high) if self.agent.action_space == BOX else action + DISCRETE.start
        x = features(np.array([here]), self.agent.x)
        return {
            "obs": encode(here, self.discrete),
            **{f"x{i}": part[0] for i, part in enumerate(x if isinstance(x, tuple) else (x,))},
            "actions": action,
            "rewards": reward_of(there, sent),
            "next_obs": encode(there, self.discrete),
            "terminated": last and episode.terminated,
            "truncated": last and episode.truncated,
            "valid": True,
            "t": step,
        }

    def stream(self, n):
        """What a column is from a reset on, without end: each row, None for a reset step, and (return, length) at the
        end of an episode. The next one has begun as soon as the environment has been reset."""
        script = self.scripts[n]
        self.begun[n] += 1
        while True:
            number, total = self.begun[n], 0.0
            episode = script[(number - 1) % len(script)]
            for step in range(episode.length):
                row = self.row(n + 1, number, episode, step)
                total += row["rewards"]
                last = step + 1 == episode.length
                self.begun[n] += last and self.kind is not NEXT_STEP
                yield row, (total, episode.length) if last else None
            if self.kind is NEXT_STEP:
                self.begun[n] += 1
                yield None, None

    def collect(self, request, cut=False):
        episodic, each = isinstance(request, Episodes), -(-request.n // len(self.scripts))
        if self.streams is None or episodic:
            self.streams = [self.stream(n) for n in range(len(self.scripts))]
        if episodic:
            columns = [[] for _ in self.scripts]
            for column, stream in zip(columns, self.streams, strict=True):
                while sum(end is not None for _, end in column) < each:
                    column.append(next(stream))
        else:
            columns = [list(islice(stream, request.n)) for stream in self.streams]
        length = max(map(len, columns))
        for column, stream in zip(columns, self.streams, strict=True):
            padding = length - len(column)
            list(islice(stream, padding))  # which the environment goes through
            column.extend([(None, None)] * padding)
        ends = [[end for _, end in column if end or not episodic] for column in columns]
        self.finished += [end for together in zip(*ends, strict=True) for end in together if end]
        blank = {name: np.zeros_like(value) for name, value in self.row(1, 1, Episode(1), 0).items()}
        table = [[column[t][0] or blank for column in columns] for t in range(length)]
        arrays = {name: np.array([[row[name] for row in rows] for rows in table]) for name in blank}
        if cut:
            arrays["truncated"][-1] |= arrays["valid"][-1] & ~arrays["terminated"][-1]
        if cut or episodic:
            self.streams = None
        if self.kind == "scalar" and episodic:
            self.begun[0] -= 1  # it is not reset after the last one
        return arrays


def fields(traj):
    parts = {name: part for name, part in traj.arrays().items() if name != "x"}
    return parts | {f"x{i}": part for i, part in enumerate(traj.x if isinstance(traj.x, tuple) else (traj.x,))}


def assert_same(traj, expected):
    """Equal in every field, in value, shape and dtype."""
    actual, expected = fields(traj), fields(expected) if isinstance(expected, Trajectories) else expected
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_array_equal(actual[name], value, strict=True, err_msg=name)


def collector_of(kind, scripts=SCRIPTS, seed=0, **settings):
    return Collector(make(kind, scripts, **settings), seed)


def collect(collector, agent=None, request=None, seed=0, **options):
    agent = agent or EncodingAgent(collector.action_space)
    return collector.collect(agent, request or Steps(12), np.random.default_rng(seed), **options)


@st.composite
def cases(draw, kind, n):
    """A collector on drawn scripts, its agent, and the forecast."""
    episodes = st.builds(lambda length, end: Episode(length, *end), st.integers(1, 4), st.sampled_from(ENDS))
    scripts = draw(st.lists(st.lists(episodes, min_size=1, max_size=3), min_size=n, max_size=n))
    agent = EncodingAgent(draw(st.sampled_from([BOX, DISCRETE])), draw(st.sampled_from(["array", "pair", "shared"])))
    discrete = draw(st.booleans())
    # Under SAME_STEP Gymnasium's own final_obs is lost if an environment writes its next observation over it.
    reuse = kind is not SAME_STEP and draw(st.booleans())
    env = make(kind, scripts, action_space=agent.action_space, discrete=discrete, reuse=reuse, copy=draw(st.booleans()))
    return Collector(env, draw(st.integers(0, 2**64))), agent, Forecast(kind, scripts, agent, discrete)


@pytest.mark.parametrize(("kind", "n"), LAYOUTS)
@given(data=st.data())
def test_every_field_of_successive_steps_is_as_the_script_foretells(kind, n, data):
    collector, agent, forecast = data.draw(cases(kind, n))
    requests = data.draw(st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=5))
    for length, cut in requests:
        traj = collect(collector, agent, Steps(length), cut=cut)
        assert_same(traj, forecast.collect(Steps(length), cut))
    assert collector.finished == forecast.finished


@pytest.mark.parametrize(("kind", "n"), LAYOUTS)
@given(data=st.data())
def test_every_field_of_episodes_is_as_the_script_foretells_and_padding_leaves_no_trace(kind, n, data):
    collector, agent, forecast = data.draw(cases(kind, n))
    before = data.draw(st.integers(0, 3))
    if before:
        collect(collector, agent, Steps(before))
        forecast.collect(Steps(before))
    for number in data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)):
        traj = collect(collector, agent, Episodes(number))
        expected = forecast.collect(Episodes(number))
        assert_same(traj, expected)
        by_column = [
            [rewards.sum() for rewards in np.split(reward[valid], np.flatnonzero(t[valid] == 0)[1:])]
            for reward, valid, t in zip(*(expected[name].T for name in ("rewards", "valid", "t")), strict=True)
        ]
        assert {len(returns) for returns in by_column} == {-(-number // n)}
        assert_array_equal(traj.episode_returns(), np.ravel(by_column, order="F"))
    assert collector.finished == forecast.finished


@pytest.mark.parametrize("kind", KINDS)
def test_playing_is_to_collect_episodes_and_keep_only_what_they_came_to(kind):
    played, collected = collector_of(kind), collector_of(kind)
    for number in (5, 3):
        assert played.play(EncodingAgent().act, number, np.random.default_rng(0)) is None
        collect(collected, request=Episodes(number))
        assert played.finished == collected.finished
    assert_same(*(collect(collector, request=Steps(6)) for collector in (played, collected)))


@pytest.mark.parametrize("mode", MODES)
def test_every_field_is_right_across_processes(mode):
    env = make(mode, SCRIPTS, vector=AsyncVectorEnv)
    try:
        collector, agent = Collector(env, 0), EncodingAgent()
        forecast = Forecast(mode, SCRIPTS, agent)
        for request in (Steps(1), Steps(6), Episodes(4), Episodes(6)):
            assert_same(collect(collector, agent, request), forecast.collect(request))
        assert collector.finished == forecast.finished
        seeds = np.array([[seed for seed in column if seed is not None] for column in env.get_attr("seeds")])
        assert len(np.unique(seeds)) == seeds.size == 9
        assert not np.isin(seeds[1:] - seeds[:1], [1, 2]).any()
    finally:
        env.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("request_", [Steps(10), Episodes(6)], ids=repr)
def test_next_obs_is_the_true_successor_also_where_an_episode_ends(kind, request_):
    traj = collect(collector_of(kind), request=request_)
    ends = (traj.terminated | traj.truncated) & traj.valid
    assert ends.any()
    assert_array_equal(traj.next_obs[traj.valid], traj.obs[traj.valid] + [0, 0, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_both_flags_on_one_step_are_kept_as_they_are(kind):
    collector = collector_of(kind, [[Episode(2, True, True)]])
    traj = collect(collector, request=Episodes(2))
    assert_array_equal(traj.terminated, traj.truncated)
    assert traj.terminated.sum() == 2
    assert len(collector.finished) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_cut_truncates_the_rows_still_open_and_the_next_collection_begins_anew(kind):
    scripts = [[Episode(9)], [Episode(3)], [Episode(3, False, True)], [Episode(2)]]
    scripts = scripts[:1] if kind == "scalar" else scripts
    open_, cut = (collect(collector_of(kind, scripts), request=Steps(3), cut=cut) for cut in (False, True))
    # The fourth column is one step into its second episode, or, under NEXT_STEP, on a reset step.
    expected = [True, False, True, kind is not NEXT_STEP][: len(scripts)]
    assert_array_equal(cut.truncated[-1], expected)
    for name, value in fields(open_).items():
        rows = slice(-1) if name == "truncated" else slice(None)
        assert_array_equal(fields(cut)[name][rows], value[rows])

    collector = collector_of(kind, scripts)
    collect(collector, request=Steps(3), cut=True)
    finished = len(collector.finished)
    traj = collect(collector, request=Steps(2))
    # Their next episodes; an environment that is not reset in a step of its own has begun one after the three steps.
    at_once = kind is not NEXT_STEP
    numbers = [2, 2 + at_once, 2 + at_once, 3]
    assert_array_equal(traj.obs[0], [[n + 1, numbers[n], 0] for n in range(len(scripts))])
    assert_array_equal(traj.t[0], 0)
    assert finished == sum(script[0].length <= 3 for script in scripts)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_after_episodes_begin_new_episodes(kind):
    collector = collector_of(kind)
    collect(collector, request=Episodes(3))
    traj = collect(collector, request=Steps(5))
    assert_array_equal(traj.t[traj.valid], traj.obs[traj.valid][:, 2])
    assert_array_equal(traj.next_obs[traj.valid], traj.obs[traj.valid] + [0, 0, 1])


class RandomAgent:
    """Chooses 0 or 1 at random; stops the collection after ``patience`` actions."""

    def __init__(self, patience=np.inf):
        self.patience = patience

    def act(self, obs, rng, explore=True):
        self.patience -= 1
        if self.patience < 0:
            raise KeyboardInterrupt
        return rng.integers(2, size=len(obs)), 2.0 * obs


def cart_pole(kind):
    if kind == "scalar":
        return gymnasium.make("CartPole-v1")
    if kind == "native":
        return gymnasium.make_vec("CartPole-v1", 3)
    settings = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": kind}}
    return gymnasium.make_vec("CartPole-v1", 3, **settings)


@pytest.mark.parametrize("kind", [*KINDS, "native"])
@pytest.mark.parametrize("request_", [Steps(40), Episodes(5)], ids=repr)
def test_a_collection_is_repeated_from_the_seed_and_its_number_whatever_came_before(kind, request_):
    collector = Collector(cart_pole(kind), 7)
    first = collect(collector, RandomAgent(), Episodes(4))
    with pytest.raises(KeyboardInterrupt):
        collect(collector, RandomAgent(patience=13), Episodes(4))
    collect(collector, RandomAgent(), Steps(30), cut=True)
    before = collector.state()
    traj = collect(collector, RandomAgent(), request_, seed=1, cut=True)
    collect(collector, RandomAgent(), Steps(30), cut=True)

    again = Collector(cart_pole(kind), 7)
    for other in (collector, again):
        other.load_state(before)
        assert_same(collect(other, RandomAgent(), request_, seed=1, cut=True), traj)
    assert not np.isin(first.obs[0], traj.obs[0]).any()
    assert len(np.unique(traj.obs[0], axis=0)) == collector.n_columns


class Spy(VectorWrapper):
    """Records what a vector environment is given."""

    def __init__(self, env):
        super().__init__(env)
        self.seeds, self.received = [], []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return super().reset(seed=seed, options=options)

    def step(self, actions):
        self.received.append(actions)
        return super().step(actions)


def spied(*args, **kwargs):
    return Spy(SyncVectorEnv(*args, **kwargs))


def scalars(env):
    return env.unwrapped.envs if isinstance(env, VectorEnv) else [env]


@given(seed=st.integers(0, 2**64), n=st.integers(2, 8), mode=st.sampled_from(MODES))
def test_episodes_are_seeded_apart_by_python_ints_and_never_by_seed_plus_i(seed, n, mode):
    env = make(mode, [[Episode(2)]] * n)
    collector = Collector(env, seed)
    for request in (Episodes(2 * n), Steps(7), Episodes(n)):
        collect(collector, request=request)
    seeds = np.array([column.seeds for column in scalars(env)])
    assert seeds.dtype == int
    assert all(type(s) is int for column in scalars(env) for s in column.seeds)
    assert len(np.unique(seeds)) == seeds.size >= 6 * n
    assert not np.isin(seeds, seed + np.arange(-n, n + 1, dtype=object)).any()
    for differences in (seeds[1:] - seeds[0], (seeds[:, 1:] - seeds[:, :1]).T):
        assert not (differences == np.arange(1, len(differences) + 1)[:, None]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_of_an_episode_depends_on_its_number_and_column_and_not_on_what_was_asked_for(kind):
    def seeds(seed, requests):
        env = make(kind, SCRIPTS)
        collector = Collector(env, seed)
        for request in requests:
            collect(collector, request=request, cut=isinstance(request, Steps))
        return [column.seeds for column in scalars(env)]

    for one, other, third in zip(
        seeds(3, [Steps(30)]), seeds(3, [Steps(4), Episodes(6), Steps(2)]), seeds(4, [Steps(30)]), strict=True
    ):
        n = min(len(one), len(other))
        assert n >= 4
        assert one[:n] == other[:n]
        assert not set(one) & set(third)


def test_a_native_vector_environment_is_seeded_by_a_python_int():
    collector = Collector(Spy(cart_pole("native")), 3)
    for _ in range(3):
        collect(collector, RandomAgent(), Episodes(3))
    seeds = collector.env.seeds
    assert len(seeds) == len(set(seeds)) == 3
    assert {type(seed) for seed in seeds} == {int}


def own_methods(env):
    """What stands in the place of reset and step, of each wrapper and environment within."""
    found = []
    for layer in scalars(env):
        while layer is not None:
            found.append({name: vars(layer)[name] for name in ("reset", "step") if name in vars(layer)})
            layer = layer.env if isinstance(layer, gymnasium.Wrapper) else None
    return found


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_collector_gives_the_environment_back_as_it_was(kind, normalised):
    env = cart_pole(kind)
    outer = scalars(env)[-1]
    outer.step = outer.step  # an attribute of somebody else
    if normalised and kind in ("scalar", NEXT_STEP):
        env = npg.envs.normalized(env, rewards=True)
    before = own_methods(env)
    with Collector(env, 0) as collector:
        during = own_methods(env)
        with pytest.raises(KeyboardInterrupt), Collector(env, 1) as inner:
            collect(inner, RandomAgent(patience=3), Steps(9))
        assert own_methods(env) == during != before
        collect(collector, RandomAgent(), Steps(3))
    assert own_methods(env) == before


@pytest.mark.parametrize("n", [1, 5])
def test_a_native_vector_environment_is_recorded_transition_by_transition(n):
    collector = Collector(gymnasium.make_vec("CartPole-v1", n, max_episode_steps=25), 0)
    assert not isinstance(collector.env, SyncVectorEnv)
    trajs = [
        collect(collector, RandomAgent(), request, seed) for seed, request in enumerate([*[Steps(70)] * 2, Episodes(9)])
    ]
    model = gymnasium.make("CartPole-v1").unwrapped
    model.reset(seed=0)
    for traj in trajs:
        assert traj.terminated.any()
        assert traj.truncated.any()
        for t, column in np.argwhere(traj.valid):
            obs, next_obs = traj.obs[t, column], traj.next_obs[t, column]
            model.state, model.steps_beyond_terminated = tuple(obs.astype(float)), None
            successor, reward, terminated, _, _ = model.step(int(traj.actions[t, column]))
            # Both rounded to float32 (half an ulp each), one Euler step apart, which amplifies less than twofold.
            bound = 2 * np.finfo(np.float32).eps * max(abs(obs).max(), abs(next_obs).max())
            assert abs(next_obs - successor).max() <= bound
            assert traj.rewards[t, column] == reward
            assert traj.terminated[t, column] == terminated
            assert traj.truncated[t, column] == (traj.t[t, column] == 24)
        ends = (traj.terminated | traj.truncated)[:-1]
        goes_on = traj.valid[:-1] & ~ends & traj.valid[1:]
        assert_array_equal(traj.obs[1:][goes_on], traj.next_obs[:-1][goes_on])
        assert_array_equal(traj.t[1:][goes_on], traj.t[:-1][goes_on] + 1)
        assert not traj.valid[1:][ends].any()
    assert_array_equal(trajs[0].next_obs[-1][trajs[1].t[0] > 0], trajs[1].obs[0][trajs[1].t[0] > 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("request_", [Steps(12), Episodes(6)], ids=repr)
def test_arrays_that_the_environment_uses_again_do_not_change_the_record(kind, request_):
    agent, scripts = EncodingAgent(), SCRIPTS[:1] if kind == "scalar" else SCRIPTS
    env = make(kind, scripts, vector=ReusingVectorEnv, copy=False, reuse=kind is not SAME_STEP)
    assert_same(collect(Collector(env, 0), agent, request_), Forecast(kind, scripts, agent).collect(request_))


def test_a_reward_and_flags_on_a_reset_step_count_for_nothing():
    agent = EncodingAgent()
    env = make(NEXT_STEP, SCRIPTS, vector=lambda *args, **kwargs: CarelessResets(SyncVectorEnv(*args, **kwargs)))
    collector, forecast = Collector(env, 0), Forecast(NEXT_STEP, SCRIPTS, agent)
    for request in (Steps(12), Episodes(6)):
        assert_same(collect(collector, agent, request), forecast.collect(request))
    assert collector.finished == forecast.finished


@pytest.mark.parametrize("kind", ["scalar", NEXT_STEP])
def test_integer_rewards_are_recorded_in_float64(kind):
    env = gymnasium.make("FrozenLake-v1") if kind == "scalar" else gymnasium.make_vec("FrozenLake-v1", 2)
    traj = collect(Collector(env, 0), RandomAgent())
    assert traj.rewards.dtype == np.float64
    assert traj.terminated.dtype == traj.truncated.dtype == bool


BOXES = {
    "(2,)": spaces.Box(-1, 1.5, (2,)),
    "(2, 2)": spaces.Box(-1, 1.5, (2, 2)),
    "()": spaces.Box(-1, 1.5, ()),
    "float64": spaces.Box(-1, 1.5, (2,), dtype=np.float64),
    "bounds of its own for each component": BOX,
    "unbounded": spaces.Box(-np.inf, np.inf, (2,)),
}


@pytest.mark.parametrize("space", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_is_stored_and_the_environment_gets_it_clipped_to_its_box(kind, space):
    env = make(kind, SCRIPTS, action_space=space, vector=spied)
    traj = collect(Collector(env, 0))
    n, m = traj.rewards.shape[1], int(np.prod(space.shape))
    assert_array_equal(np.shape(traj.actions), (12, n, m))
    samples = [[choose(place, space) for place in places] for places in traj.obs[traj.valid.all(axis=1)].astype(int)]
    assert_array_equal(traj.actions[traj.valid.all(axis=1)], samples)
    for sample, valid, received in zip(traj.actions, traj.valid, env.received, strict=True):
        assert isinstance(received, np.ndarray)
        assert received.dtype == space.dtype
        assert received.shape == (space.shape if kind == "scalar" else (n, *space.shape))
        clipped = np.clip(sample.reshape(n, *space.shape), space.low, space.high).astype(space.dtype)
        assert_array_equal(received.reshape(n, *space.shape)[valid], clipped[valid])


@pytest.mark.parametrize("start", [0, -1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_environment_gets_a_discrete_action_shifted_by_its_start(kind, start):
    space = spaces.Discrete(3, start=start)
    env = make(kind, SCRIPTS, action_space=space, vector=spied)
    traj = collect(Collector(env, 0))
    assert set(traj.actions[traj.valid]) == {0, 1, 2}
    for index, valid, received in zip(traj.actions, traj.valid, env.received, strict=True):
        assert_array_equal(np.atleast_1d(received)[valid], index[valid] + start)
        assert kind != "scalar" or type(received) is int


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("request_", [Steps(12), Episodes(6)], ids=repr)
def test_a_shared_pair_of_features_is_stored_once(kind, request_):
    traj = collect(collector := collector_of(kind), EncodingAgent(x="shared"), request_)
    assert traj.x[0] is traj.x[1]
    traj = collect(collector, EncodingAgent(x="pair"), request_)
    assert traj.x[0] is not traj.x[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("explore", [True, False])
def test_explore_is_passed_on_to_the_agent(kind, explore):
    agent = EncodingAgent()
    collect(collector_of(kind), agent, Steps(3), explore=explore)
    collect(collector_of(kind), agent, Episodes(1), explore=explore)
    assert len(agent.explored) > 3
    assert set(agent.explored) == {explore}


FAULTS = {
    "the first observation": (1, 0, "observation"),
    "an observation within an episode": (1, 1, "observation"),
    "the last observation of an episode": (1, 2, "observation"),
    "the first observation after a reset": (2, 0, "observation"),
    "a reward within an episode": (1, 1, "reward"),
    "the last reward of an episode": (1, 2, "reward"),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("episode", "step", "what"), FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_environment_returns_must_be_finite(kind, episode, step, what, value):
    scripts = [[Episode(4)], [Episode(2), Episode(3)]]
    faults = {(episode, step): (what, value)}
    for request in (Steps(5), Episodes(4)):
        collector = collector_of(kind, scripts[-1:] if kind == "scalar" else scripts, faults=faults)
        with pytest.raises(ValueError, match=f"environment returned an? {what} that is not finite"):
            collect(collector, request=request)


@pytest.mark.parametrize("value", [1e30, -1e38])
def test_a_large_observation_is_no_error_though_its_square_overflows(value):
    collector = collector_of("scalar", action_space=DISCRETE, faults={(1, 1): ("observation", value)})
    assert collect(collector, RandomAgent()).next_obs[0, 0, -1] == np.float32(value)


class FaultyAgent(EncodingAgent):
    """Its second action is not finite in the last column."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def act(self, obs, rng, explore=True):
        actions, x = super().act(obs, rng, explore)
        if len(self.explored) == 2:
            actions[-1, 1] = self.value
        return actions, x


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_an_action_that_is_not_finite_is_a_divergence_before_the_environment_sees_it(kind, value):
    env = make(kind, SCRIPTS, vector=spied)
    with pytest.raises(DivergenceError, match="action"):
        collect(Collector(env, 0), FaultyAgent(value))
    assert len(env.received) == 1


@pytest.mark.parametrize("metadata", [{}, {"autoreset_mode": None}, {"autoreset_mode": "NextStep"}])
def test_a_vector_environment_must_declare_its_autoreset_mode(metadata):
    env = make(NEXT_STEP, SCRIPTS)
    env.metadata = metadata
    with pytest.raises(ValueError, match="autoreset_mode"):
        Collector(env, 0)


@pytest.mark.parametrize("n", [0, -1])
@pytest.mark.parametrize("request_", [Steps, Episodes])
def test_at_least_one_step_or_episode_must_be_asked_for(request_, n):
    with pytest.raises(ValueError, match=f"{request_.__name__} must be an integer of at least 1, got {n}"):
        request_(n)


@pytest.mark.parametrize("x", ["array", "pair", "shared"])
@pytest.mark.parametrize(
    "columns",
    [
        1,
        np.int64(2),
        slice(0, 2),
        slice(None, None, -1),
        [2, 0],
        np.array([1]),
        [True, False, True],
        np.array([False] * 3),
    ],
    ids=str,
)
def test_slicing_by_column_gives_trajectories_of_those_columns(columns, x):
    traj = collect(collector_of(NEXT_STEP), EncodingAgent(x=x), Episodes(6))
    part = traj[columns]
    assert isinstance(part, Trajectories)
    kept = np.atleast_1d(np.arange(3)[columns])
    assert_same(part, {name: value[:, kept] for name, value in fields(traj).items()})


def test_the_returns_of_a_column_are_those_of_its_episodes_in_order():
    traj = collect(collector_of(NEXT_STEP), request=Episodes(6))
    assert_array_equal(traj.episode_returns().reshape(2, 3).T, [traj[n].episode_returns() for n in range(3)])


@pytest.mark.parametrize("kind", KINDS)
def test_episodes_are_numbered_in_the_order_in_which_columns_began_them(kind):
    traj = collect(collector_of(kind), request=Episodes(6 if kind != "scalar" else 3))
    numbers = [column[valid].tolist() for column, valid in zip(traj.episodes().T, traj.valid.T, strict=True)]
    lengths_2_1_3, three_columns = [[0, 0, 1, 2, 2, 2]], [[0, 0, 3], [1, 4, 4, 4, 4], [2, 2, 2, 5]]
    assert numbers == (lengths_2_1_3 if kind == "scalar" else three_columns)


def still_running(traj, column=1):
    last = np.flatnonzero(traj.valid[:, column])[-1]
    traj.terminated[last, column] = traj.truncated[last, column] = False


def from_the_middle_of_an_episode_to_that_of_another(traj):
    traj.t[0] = 7
    for column in range(3):
        still_running(traj, column)


def one_less_in_a_column(traj):
    second = np.flatnonzero(traj.valid[:, 1] & (traj.t[:, 1] == 0))[1]
    traj.valid[second:, 1] = False


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize(
    "spoil", [still_running, from_the_middle_of_an_episode_to_that_of_another, one_less_in_a_column]
)
def test_episodes_that_are_not_whole_or_not_as_many_in_each_column_are_refused(kind, spoil):
    traj = collect(collector_of(kind), request=Episodes(6))
    spoil(traj)
    for method in (traj.episodes, traj.episode_returns):
        with pytest.raises(ValueError, match="whole episodes, as many in each column: collect Episodes"):
            method()


def test_steps_are_not_episodes():
    collector = Collector(npg.make_vec("CartPole-v1", 4), 0)
    for n in (40, 5):
        with pytest.raises(ValueError, match="whole episodes"):
            collect(collector, RandomAgent(), Steps(n)).episodes()


def test_columns_of_a_shared_pair_are_still_one_array():
    collector = Collector(npg.make_vec("Pendulum-v1", 3), 0)
    features = npg.features.Affine(collector.observation_space)
    policy = npg.GaussianLinear(features, features, 1)
    agent = npg.algorithms.Reinforce(policy, features, baseline="none")
    agent.init(np.random.default_rng(0))
    traj = collector.collect(agent, Steps(2), np.random.default_rng(0))
    columns = traj[1:]
    assert columns.x[0] is columns.x[1]
    assert_array_equal(columns.x[0], traj.x[0][:, 1:])


class IntegerFlags(gymnasium.Env):
    """Flags as integers, and an integer Box of actions."""

    observation_space = BOX
    action_space = gymnasium.spaces.Box(0, 5, (1,), dtype=np.int64)

    def reset(self, *, seed=None, options=None):
        return np.zeros(BOX.shape, BOX.dtype), {}

    def step(self, action):
        self.action = action
        return np.zeros(BOX.shape, BOX.dtype), 0, 1, 0, {}


NO_FLAGS = {
    "None": None,
    "NaN": np.nan,
    "a word": "False",
    "two of them": np.array([True, False]),
    "a list": [True],
    "nothing": np.zeros(0, dtype=bool),
}


@pytest.mark.parametrize("name", ["terminated", "truncated"])
@pytest.mark.parametrize("flag", NO_FLAGS.values(), ids=NO_FLAGS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_flags_that_are_none_are_refused_by_name(kind, flag, name):
    scripts = SCRIPTS[:1] if kind == "scalar" else SCRIPTS[1:]
    collector = collector_of(kind, scripts, faults={(1, 2): (name, flag)})
    with pytest.raises(ValueError, match="the environment must return flags that are True or False"):
        collect(collector)


class Flags(VectorWrapper):
    """Returns flags of its own."""

    def __init__(self, env, terminated, truncated):
        super().__init__(env)
        self.flags = terminated, truncated

    def step(self, actions):
        obs, reward, _, _, info = super().step(actions)
        return obs, reward, *self.flags, info


NO_VECTOR_OF_FLAGS = NO_FLAGS | {
    "one for all": np.bool_(False),
    "numbers": np.zeros(3),
    "NaNs": np.full(3, np.nan),
    "Nones": [None] * 3,
    "a row too many": np.zeros((2, 3), dtype=bool),
    "words": ["False"] * 3,
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("flags", NO_VECTOR_OF_FLAGS.values(), ids=NO_VECTOR_OF_FLAGS.keys())
def test_flags_of_a_vector_environment_that_are_none_are_refused_by_name(flags, first):
    good = np.zeros(3, dtype=bool)
    env = Flags(cart_pole("native"), *((flags, good) if first else (good, flags)))
    with pytest.raises(ValueError, match="the environment must return 3 flags"):
        collect(Collector(env, 0), RandomAgent())


@pytest.mark.parametrize("make_flag", [bool, int, np.bool_, np.int64, np.uint8, np.array])
@pytest.mark.parametrize("kind", KINDS)
def test_flags_may_be_integers(kind, make_flag):
    faults = {(1, t): ("terminated", make_flag(t == 3)) for t in (1, 2, 3)}
    traj = collect(collector_of(kind, [[Episode(9), Episode(4)]], faults=faults), request=Episodes(2))
    assert_array_equal(np.flatnonzero(traj.terminated), [2, 6 + (kind is NEXT_STEP)])
    assert traj.terminated.dtype == bool


def test_flags_of_a_vector_environment_may_be_integers():
    flags = np.array([0, 1, 0]), [0, 0, 1]
    traj = collect(Collector(Flags(cart_pole("native"), *flags), 0), RandomAgent(), Steps(1))
    assert traj.terminated.dtype == traj.truncated.dtype == bool
    assert_array_equal(traj.terminated, [[False, True, False]])
    assert_array_equal(traj.truncated, [[False, False, True]])


class Constantly:
    def act(self, obs, rng, explore=True):
        return np.array([[2.9]]), np.zeros((1, 1))


def test_flags_become_boolean_and_actions_of_an_integer_box_are_rounded():
    env = IntegerFlags()
    traj = Collector(env, 0).collect(Constantly(), Steps(2), np.random.default_rng(0))
    assert traj.terminated.dtype == traj.truncated.dtype == bool
    assert env.action.dtype == np.int64
    assert env.action.tolist() == [3]


# Normalised observations and rewards


def given_by(env):
    """``env`` in a wrapper of its own kind, and the list of the (observation, reward) of its steps."""
    given = []

    class Listener(VectorWrapper if isinstance(env, VectorEnv) else gymnasium.Wrapper):
        def step(self, action):
            result = super().step(action)
            given.append(result[:2])
            return result

    return Listener(env), given


def gymnasiums(env):
    return wrappers.vector if isinstance(env, VectorEnv) else wrappers


@pytest.mark.parametrize(("kind", "n"), LAYOUTS)
@given(data=st.data(), gamma=st.sampled_from([0.0, 0.9, 1.0]))
def test_finished_returns_are_of_the_rewards_before_they_are_normalised_and_the_record_is_of_those_after(
    kind, n, data, gamma
):
    collector, agent, forecast = data.draw(cases(kind, n))
    inner = collector.env
    env, given = given_by(gymnasiums(inner).NormalizeReward(inner, gamma=gamma))
    collector = Collector(env, collector.seed)
    for request in (Steps(9), Episodes(4)):
        given.clear()
        actual, expected = fields(collect(collector, agent, request)), forecast.collect(request)
        rewards = np.array([reward for _, reward in given]).reshape(actual["rewards"].shape)
        assert_array_equal(actual.pop("rewards"), rewards * expected["valid"])
        expected.pop("rewards")
        for name, value in expected.items():
            assert_array_equal(actual[name], value, strict=True, err_msg=name)
    # A division, a root and a product are a few roundings for each of at most 13 positive rewards.
    assert_allclose(collector.finished, forecast.finished, rtol=1e-13)


@pytest.mark.parametrize("kind", ["scalar", NEXT_STEP])
def test_rewards_are_divided_by_the_deviation_at_that_step_and_not_at_a_later_one(kind):
    scripts = [[Episode(1), Episode(30)]]
    env = make(kind, scripts)
    collector = Collector(gymnasiums(env).NormalizeReward(env), 0)
    traj = collect(collector, request=Episodes(2))
    raw = collect(collector_of(kind, scripts), request=Episodes(2)).rewards
    factors = (traj.rewards / np.where(traj.valid, raw, 1))[traj.valid]
    assert factors.max() > 10 * factors.min()
    assert_allclose([total for total, _ in collector.finished], [raw[0, 0], raw[1:].sum()], rtol=1e-13)


@pytest.mark.parametrize("kind", ["scalar", NEXT_STEP])
def test_normalised_observations_are_recorded_as_the_agent_saw_them(kind):
    env = make(kind, SCRIPTS)
    env, given = given_by(gymnasiums(env).NormalizeObservation(env))
    traj = collect(Collector(env, 0), RandomAgentOf(env), Steps(12))
    obs = np.array([obs for obs, _ in given]).reshape(traj.next_obs.shape)
    assert_array_equal(traj.next_obs[traj.valid], obs[traj.valid])
    assert_array_equal(traj.x, traj.obs)
    assert traj.obs.dtype == np.float32


class RandomAgentOf:
    """Random actions on the observations as features."""

    def __init__(self, env):
        self.space = npg.lab.collect.single_spaces(env)[1]

    def act(self, obs, rng, explore=True):
        return rng.normal(size=(len(obs), *self.space.shape)), obs.copy()


@pytest.mark.parametrize("kind", ["scalar", NEXT_STEP])
def test_normalizers_are_found_among_other_wrappers(kind):
    env = make(kind, SCRIPTS)
    theirs = gymnasiums(env)
    assert normalizers(env) == {}
    assert normalizers(given_by(env)[0]) == {}
    rewards = theirs.NormalizeReward(given_by(env)[0])
    assert normalizers(rewards) == {"reward": rewards}
    observations = theirs.NormalizeObservation(given_by(rewards)[0])
    assert normalizers(given_by(observations)[0]) == {"reward": rewards, "observation": observations}


@pytest.mark.parametrize("name", ["NormalizeObservation", "NormalizeReward"])
@pytest.mark.parametrize("kind", ["scalar", NEXT_STEP])
def test_what_is_normalised_twice_is_refused(kind, name):
    env = make(kind, SCRIPTS)
    wrapper = getattr(gymnasiums(env), name)
    with pytest.raises(ValueError, match=f"{name.removeprefix('Normalize').lower()}s of env must be normalised once"):
        Collector(wrapper(wrapper(env)), 0)
