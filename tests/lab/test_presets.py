"""Agents by name: what decides their settings, and that their configuration rebuilds them."""

import json
from dataclasses import fields

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis import strategies as st
from toy import Toy, Walk

import npg
from npg.algorithms import ALGORITHMS, Agent
from npg.algorithms.base import choice, integer, number
from npg.distributions import Categorical, DiagonalGaussian
from npg.features import KINDS, Affine, Constant, Fourier, OneHot, Polynomial
from npg.lab.presets import PRESETS, Preset, preset
from npg.lab.runs import Run


class Spaces(gymnasium.Env):
    """An environment that is only its spaces."""

    def __init__(self, observation_space, action_space) -> None:
        self.observation_space, self.action_space = observation_space, action_space


BOX, UNBOUNDED = Box(-1, 1, (2,)), Box(-np.inf, np.inf, (2,))
OBSERVATIONS = [Discrete(5), Discrete(3, start=2), BOX, Box(0, 255, (2, 2), dtype=np.uint8)]
ACTIONS = [Discrete(3), Discrete(2, start=-1), Box(-2, 2, (1,)), Box(-1, 1, (2, 3))]


@pytest.mark.parametrize("action_space", ACTIONS, ids=str)
@pytest.mark.parametrize("observation_space", OBSERVATIONS, ids=str)
def test_the_spaces_choose_the_policy(observation_space, action_space):
    agent = npg.make_agent("reinforce", Spaces(observation_space, action_space))
    discrete = isinstance(action_space, Discrete)
    features = agent.policy.features if discrete else agent.policy.features.mean
    assert type(features) is (OneHot if isinstance(observation_space, Discrete) else Affine)
    assert type(agent.policy.distribution) is (Categorical if discrete else DiagonalGaussian)
    if not discrete:
        assert type(agent.policy.features.scale) is Constant
    agent.init(np.random.default_rng(0))
    action, _ = agent.act(np.array([observation_space.sample()]), np.random.default_rng(0))
    assert action.shape == (1,) if discrete else (1, int(np.prod(action_space.shape)))


def test_vector_and_scalar_environments_make_the_same_agent():
    for env_id in ("CartPole-v1", "Pendulum-v1", "FrozenLake-v1"):
        scalar, vector = (npg.make_agent("reinforce", env) for env in (npg.make_env(env_id), npg.make_vec(env_id, 3)))
        assert scalar.config == vector.config


settings_of_reinforce = st.fixed_dictionaries(
    {},
    optional={
        "gamma": st.floats(0, 1),
        "episodes": st.integers(2, 99),
        "returns": st.sampled_from(["to_go", "total"]),
        "outer_discount": st.booleans(),
        "baseline": st.sampled_from(["linear", "leave_one_out", "optimal", "none"]),
        "fit": st.sampled_from(["earlier", "same"]),
        "alpha_w": st.none() | st.floats(1e-12, 1e9),
        "ridge": st.floats(0, 1e9),
        "alpha": st.floats(0, 1e9),
        "features": st.sampled_from(["affine", {"kind": "fourier", "order": 2}, {"kind": "rbf", "width": 0.5}]),
        "baseline_features": st.sampled_from(["constant", {"kind": "random_fourier", "n_features": 7, "seed": 1}]),
        "scale_features": st.sampled_from(["polynomial", {"kind": "affine", "scale": [1.0, 2.5]}]),
        "scale": st.sampled_from([None, 2.0, [1.0, 3.0]]),
    },
)


@given(settings=settings_of_reinforce)
def test_an_agent_is_rebuilt_from_its_configuration(settings):
    env = Spaces(BOX, Box(-1, 1, (1,)))
    agent = npg.make_agent("reinforce", env, **settings)
    config = json.loads(json.dumps(agent.config))
    again = npg.make_agent(env=env, **config)
    assert config["algorithm"] == "reinforce"
    assert again.config == agent.config == config
    assert all(config[name] == value for name, value in settings.items() if "features" not in name and name != "scale")
    obs = np.array([[0.1, -0.7], [0.9, 0.3]])
    for x, y in zip(agent.policy.features(obs), again.policy.features(obs), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(agent.baseline_features(obs), again.baseline_features(obs))


def test_numbers_of_numpy_are_settings_like_any_other(tmp_path):
    env = Walk()
    settings = {"gamma": np.float32(0.5), "episodes": np.int64(2), "alpha": np.float64(0.1)}
    agent = npg.make_agent("reinforce", env, **settings)
    npg.train(agent, env, steps=10, out=tmp_path)
    config = Run(tmp_path).config["agent"]
    assert {name: config[name] for name in settings} == {"gamma": 0.5, "episodes": 2, "alpha": 0.1}
    assert npg.make_agent(env=env, **config).config == config


def test_a_scale_goes_to_all_features_of_a_box_that_have_none_of_their_own():
    env = Spaces(UNBOUNDED, Box(-1, 1, (1,)))
    agent = npg.make_agent(
        "reinforce",
        env,
        scale=2.0,
        features={"kind": "fourier", "order": 1, "scale": [3.0, 4.0]},
        scale_features={"kind": "polynomial", "degree": 1},
    )
    mean, log_sigma = agent.policy.features.mean, agent.policy.features.scale
    assert (mean, log_sigma) == (Fourier(UNBOUNDED, 1, scale=[3.0, 4.0]), Polynomial(UNBOUNDED, 1, scale=2.0))
    assert agent.baseline_features.scale == 2.0


def test_a_preset_is_what_is_taken_where_nothing_else_is_said():
    env = npg.make_vec("CartPole-v1", 2)
    values = PRESETS["reinforce", "CartPole-v1"].settings
    config = npg.make_agent("reinforce", env).config
    assert config["features"]["scale"] == config["baseline_features"]["scale"] == values["scale"]
    assert all(config[name] == value for name, value in values.items() if name != "scale")
    assert npg.make_agent("reinforce", env, alpha=0.5, scale=3.0).config["alpha"] == 0.5
    assert npg.make_agent("reinforce", env, scale=3.0).config["features"]["scale"] == 3.0
    assert preset("reinforce", "FrozenLake-v1") == preset("reinforce", None) == Preset()


def test_the_short_corridor_is_learned_as_in_the_book():
    env = npg.make_env("npg/ShortCorridor-v0")
    agent = npg.make_agent("reinforce", env)
    x = agent.policy.features(np.arange(3))
    assert (x == x[0]).all(), "the states must not be told apart"
    assert (agent.policy.n_params, agent.collect, preset("reinforce", env.spec.id).num_envs) == (2, npg.Episodes(1), 0)
    book = {"gamma": 1, "optimizer": "ascent", "alpha": 2**-9, "baseline": "linear", "alpha_w": 2**-6}
    assert agent.config | book == agent.config


def test_every_preset_makes_its_agent():
    for algorithm, env_id in PRESETS:
        p = preset(algorithm, env_id)
        assert p.steps > 0
        env = npg.make_vec(env_id, p.num_envs) if p.num_envs else npg.make_env(env_id)
        assert isinstance(npg.make_agent(algorithm, env), ALGORITHMS[algorithm])


def test_a_method_is_configured_under_the_name_it_is_found_by(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "toy", Toy)
    agent = npg.make_agent("toy", Walk(), n=4)
    assert agent.config["algorithm"] == "toy"
    assert npg.make_agent(env=Walk(), **agent.config).config == agent.config


@pytest.mark.parametrize("name", ["", "Reinforce", "ppo", None, 3])
def test_an_unknown_algorithm_is_named(name):
    for function in (preset, npg.make_agent):
        with pytest.raises(ValueError, match=f"^algorithm must be one of reinforce, all_actions, .*, got {name!r}$"):
            function(name, None) if function is preset else function(name, Walk())


@pytest.mark.parametrize("setting", ["gama", "policy", "learned", "scale_features", "collect"])
def test_an_unknown_setting_is_named_with_those_that_exist(setting):
    with pytest.raises(ValueError, match=f"no setting '{setting}' here; it has alpha, .*scale$"):
        npg.make_agent("reinforce", Walk(), **{setting: 1})


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Tuple([Discrete(2)]),
        gymnasium.spaces.Dict(a=BOX),
        gymnasium.spaces.MultiDiscrete([2, 2]),
        gymnasium.spaces.MultiBinary(3),
        gymnasium.spaces.Text(4),
    ],
    ids=lambda space: type(space).__name__,
)
def test_an_unsupported_space_is_named(space):
    kind = type(space).__name__
    with pytest.raises(TypeError, match=f"^observation space must be Box or Discrete, got {kind}"):
        npg.make_agent("reinforce", Spaces(space, Discrete(2)))
    with pytest.raises(TypeError, match=f"^action space must be Box or Discrete, got {kind}"):
        npg.make_agent("reinforce", Spaces(BOX, space))


def test_an_unbounded_box_needs_a_scale():
    with pytest.raises(ValueError, match=r"infinite bounds.*give scale"):
        npg.make_agent("reinforce", Spaces(UNBOUNDED, Discrete(2)))
    npg.make_agent("reinforce", Spaces(UNBOUNDED, Discrete(2)), scale=1.0)


def test_features_of_ones_own_train_but_cannot_be_kept_in_a_run_directory(tmp_path):
    def own(obs):
        return np.stack([obs == 3, obs > 3, obs < 3], axis=1) * 1.0

    env = Walk()
    policy = npg.Policy(own, npg.SoftmaxLinear(OneHot(3), 2).model, Categorical(2))
    agent = ALGORITHMS["reinforce"](policy, OneHot(7), episodes=2)
    npg.train(agent, env, steps=20)
    with pytest.raises((ValueError, TypeError), match="features"):
        npg.train(agent, env, steps=20, out=tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


class Settings:
    """One field of each kind, outside any method."""

    in_range = number(0.5, 0, 1, doc="A.")
    unbounded = number(0.0, doc="B.")
    count = integer(3, 1, doc="C.")
    word = choice("a", "b", doc="D.")
    flag = choice(False, True, doc="E.")
    allows = staticmethod(lambda setting, value: setting.metadata["allowed"](value))


@given(value=st.floats(allow_nan=True, allow_infinity=True))
def test_a_number_is_finite_and_in_its_range(value):
    for kind in (float, np.float64):
        assert Settings.allows(Settings.in_range, kind(value)) == (0 <= value <= 1)
        assert Settings.allows(Settings.unbounded, kind(value)) == bool(np.isfinite(value))


@given(value=st.integers(-5, 5))
def test_an_integer_is_at_least_its_least(value):
    for kind in (int, np.int64):
        assert Settings.allows(Settings.count, kind(value)) == (value >= 1)
    assert not Settings.allows(Settings.count, float(value))


@pytest.mark.parametrize("value", [True, "1", None, [1], np.array([0.5]), 0.5j])
def test_what_is_not_a_number_is_no_number(value):
    assert not Settings.allows(Settings.in_range, value)
    assert not Settings.allows(Settings.count, value)


def test_a_choice_is_one_of_its_options_and_of_their_type():
    assert [Settings.allows(Settings.flag, value) for value in (True, False, 1, 0, "True", None)] == [True] * 2 + [
        False
    ] * 4
    assert [Settings.allows(Settings.word, value) for value in ("a", "b", "c", ["a"])] == [True] * 2 + [False] * 2
    assert (Settings.flag.default, Settings.word.default, Settings.count.default) == (False, "a", 3)


@pytest.mark.parametrize("cls", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_setting_of_every_method_is_checked_by_name(cls):
    (name,) = [name for name, other in ALGORITHMS.items() if other is cls]
    checked = [f for f in fields(cls) if f.name != "policy" and not f.name.endswith("features")]
    assert checked
    for f in checked:
        with pytest.raises(ValueError, match=rf"^{f.name} must be {f.metadata['expected'][:5]}.*, got <object"):
            npg.make_agent(name, Walk(), **{f.name: object()})


def test_every_kind_of_features_can_be_asked_for_by_name():
    for kind, cls in KINDS.items():
        env = Walk() if kind in ("onehot", "table") else Spaces(BOX, Discrete(2))
        asked = {"kind": kind, "table": [[1, 0]] * env.observation_space.n} if kind == "table" else kind
        agent = npg.make_agent("reinforce", env, features=asked)
        assert type(agent.policy.features) is cls
        assert agent.config["features"]["kind"] == kind


def test_a_method_that_defines_nothing_says_so():
    with pytest.raises(TypeError, match=r"collect.*update"):
        Agent(npg.make_policy(BOX, Discrete(2)))


def test_equal_features_of_mean_and_scale_are_computed_once():
    policy = npg.make_agent("reinforce", npg.make_env("Pendulum-v1"), scale_features="affine").policy
    x_mu, x_sigma = policy.features(np.zeros((2, 3)))
    assert x_mu is x_sigma
