"""Agents by name: tuned settings for known pairs of method and environment, sensible ones otherwise."""

from dataclasses import dataclass, field, fields
from typing import Any

from gymnasium import spaces

from .. import features
from ..algorithms import ALGORITHMS, Agent
from ..envs.spaces import Env, normalizers, single_spaces
from ..policies import make_policy


@dataclass(frozen=True)
class Preset:
    """What ``npg train`` and ``make_agent`` take where nothing else is said.

    Attributes
    ----------
    num_envs : int
        Parallel environments; 0 for one scalar environment.
    steps : int
        Environment steps of a run.
    settings : dict
        Of the agent; ``scale`` goes to all features of a Box that have none of their own.
    env_settings : dict
        Of the environment: of those that ``npg train`` makes, and for ``make_env`` and ``make_vec``.
    """

    num_envs: int = 0
    steps: int = 100_000
    settings: dict[str, Any] = field(default_factory=dict)
    env_settings: dict[str, Any] = field(default_factory=dict)


_CARTPOLE_SCALE = [2.4, 3.0, 0.21, 3.0]
_MOUNTAIN_CAR_TILES = {"kind": "tile", "n_tilings": 8, "n_tiles": 8}
_OFF_PAC_TILES = {"kind": "tile", "n_tilings": 10, "n_tiles": 10}
_PENDULUM_TILES = {"kind": "tile", "n_tilings": 16, "n_tiles": [4, 4, 6]}

_DETERMINISTIC_PENDULUM: dict[str, Any] = {
    "features": _PENDULUM_TILES,
    "value_features": _PENDULUM_TILES,
    "gamma": 0.98,
    "sigma": 2.0,
    "alpha_v": 0.4 / 16,
}
_COPDAC_PENDULUM = _DETERMINISTIC_PENDULUM | {"natural": True, "alpha": 0.001 / 16, "alpha_w": 0.03 / 16 / 2**2}

PRESETS: dict[tuple[str, str], Preset] = {
    ("reinforce", "CartPole-v1"): Preset(
        16, 300_000, {"scale": _CARTPOLE_SCALE, "outer_discount": False, "alpha": 0.2}
    ),
    ("a2c", "CartPole-v1"): Preset(
        16, 300_000, {"scale": _CARTPOLE_SCALE, "n_steps": 32, "lam": 0.98, "alpha": 0.02, "alpha_w": 1.0}
    ),
    **{
        (algorithm, "CartPole-v1"): Preset(16, 200_000, {"scale": _CARTPOLE_SCALE})
        for algorithm in ("ppo_clip", "dual_descent")
    },
    ("ppo_penalty", "CartPole-v1"): Preset(16, 200_000, {"scale": _CARTPOLE_SCALE, "target_kl": 0.003}),
    ("npg", "CartPole-v1"): Preset(
        16, 200_000, {"scale": _CARTPOLE_SCALE, "n_steps": 256, "lam": 0.98, "damping": 0.01}
    ),
    ("trpo", "CartPole-v1"): Preset(16, 200_000, {"scale": _CARTPOLE_SCALE, "n_steps": 256, "lam": 0.98}),
    ("trpo", "Pendulum-v1"): Preset(
        16,
        256_000,
        {
            "features": {"kind": "random_fourier", "n_features": 200, "length_scale": 0.5},
            "value_features": {"kind": "random_fourier", "n_features": 300, "length_scale": 0.5, "seed": 1},
            "gamma": 0.95,
            "n_steps": 200,
            "lam": 0.9,
            "delta": 0.03,
        },
    ),
    ("trpo", "Acrobot-v1"): Preset(
        16,
        400_000,
        {
            "scale": [1.0, 1.0, 1.0, 1.0, 6.0, 12.0],
            "value_features": {"kind": "random_fourier", "n_features": 200, "length_scale": 1.0, "seed": 1},
            "n_steps": 256,
            "lam": 0.97,
            "delta": 0.02,
        },
    ),
    ("trpo", "MountainCar-v0"): Preset(
        # Values begin at 0, above all returns, and hold on to that where the car has not been: that is what sends it
        # there. Small batches: what only curiosity taught is soon forgotten, what the goal teaches is not.
        16,
        600_000,
        {
            "features": {"kind": "rbf", "n_centres": 8},
            "value_features": {"kind": "fourier", "order": 7},
            "n_steps": 100,
            "lam": 0.97,
            "ridge": 3.0,
            "delta": 0.01,
        },
    ),
    ("actor_critic_lambda", "MountainCar-v0"): Preset(
        steps=60_000,
        settings={
            "features": _MOUNTAIN_CAR_TILES,
            "value_features": _MOUNTAIN_CAR_TILES,
            "gamma": 1.0,
            "alpha": 0.02 / 8,
            "alpha_w": 0.1 / 8,
        },
    ),
    ("actor_critic_lambda", "Pendulum-v1"): Preset(
        settings={
            "features": _PENDULUM_TILES,
            "scale_features": _PENDULUM_TILES,
            "value_features": _PENDULUM_TILES,
            "gamma": 0.98,
            "lam_theta": 0.7,
            "lam_w": 0.7,
            "alpha": 0.0002,
            "alpha_w": 0.04,
        }
    ),
    ("off_pac", "MountainCar-v0"): Preset(
        # The behaviour is uniform, and so ρ ≤ 3: traces grow where λ > 1 / 3. Values begin near what random actions are
        # worth, so that no optimism explores. The limit of 200 steps would end most episodes of the behaviour.
        steps=500_000,
        settings={
            "features": _OFF_PAC_TILES,
            "value_features": _OFF_PAC_TILES,
            "lam": 0.0,
            "v0": -100.0,
            "alpha_u": 0.05 / 10,
            "alpha_v": 0.5 / 10,
            "alpha_w": 1e-4 / 10,
        },
        env_settings={"max_episode_steps": 5000},
    ),
    ("copdac_q", "Pendulum-v1"): Preset(settings=_COPDAC_PENDULUM),
    ("copdac_gq", "Pendulum-v1"): Preset(settings=_COPDAC_PENDULUM | {"alpha_u": 0.005 / 16}),
    ("dpg_sarsa", "Pendulum-v1"): Preset(
        settings=_DETERMINISTIC_PENDULUM | {"alpha": 0.0008, "alpha_w": 0.06 / 16 / 2**2}
    ),
    ("replay_actor_critic", "CartPole-v1"): Preset(
        # α_v moves q̂ by 8 α_v of the mean error, which is more than all of it while the buffer holds one state or two.
        settings={
            "scale": _CARTPOLE_SCALE,
            "value_features": {"kind": "tile", "n_tilings": 8, "n_tiles": 6, "scale": _CARTPOLE_SCALE},
            "alpha_u": 0.015,
            "alpha_v": 0.5,
        }
    ),
    ("reinforce", "npg/ShortCorridor-v0"): Preset(
        # The step sizes of Sutton & Barto (2018), figure 13.2. The most probable action never ends an episode:
        # evaluate with sampled ones. θ = 0 is already near the best policy; the figure begins far from it.
        steps=20_000,
        settings={
            "features": "constant",
            "baseline_features": "constant",
            "gamma": 1.0,
            "episodes": 1,
            "optimizer": "ascent",
            "alpha": 2**-9,
            "alpha_w": 2**-6,
        },
    ),
    ("reinforce", "npg/LQR-v0"): Preset(
        settings={
            "features": {"kind": "affine", "scale": 1.0, "bias": False},
            "baseline_features": {"kind": "polynomial", "scale": 3.0},
            "gamma": 0.9,
        }
    ),
}


def preset(algorithm: str, env_id: str | None) -> Preset:
    """The preset of a pair, or the defaults.

    Raises
    ------
    ValueError
        For an unknown algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
    return PRESETS.get((algorithm, env_id or ""), Preset(num_envs=ALGORITHMS[algorithm].num_envs))


def make_agent(algorithm: str, env: Env, **settings: Any) -> Agent:
    """An agent for an environment.

    Parameters
    ----------
    algorithm : str
        A key of ``npg.algorithms.ALGORITHMS``.
    env : gymnasium.Env or gymnasium.vector.VectorEnv
        Its spaces choose the policy; its id, if it has one, the preset.
    **settings
        Fields of the algorithm's class; ``features`` of the policy and ``scale_features`` of its log σ, each features,
        a kind (``"fourier"``) or a dict (``{"kind": "fourier", "order": 5}``); ``scale``, the half-width of the range
        of each component of the observation, for all features that have none of their own.

    Raises
    ------
    ValueError, TypeError
        For an unknown algorithm, setting or value, or an unsupported space.
    """
    observation_space, action_space = single_spaces(env)
    defaults = preset(algorithm, env.spec.id if env.spec else None).settings
    if "observation" in normalizers(env):
        defaults = {name: value for name, value in defaults.items() if name != "scale"}  # that of raw observations
    settings = defaults | settings
    cls = ALGORITHMS[algorithm]

    scale = settings.pop("scale", None)
    own = {f.name for f in fields(cls)} - {"policy"}
    specs: dict[str, Any] = {"features": features.default_kind(observation_space)}
    for f in fields(cls):
        if "features" in f.metadata:
            specs[f.name] = features.default_kind(observation_space, f.metadata["features"])
    if isinstance(action_space, spaces.Box):
        specs["scale_features"] = "constant"
    for name in settings:
        if name not in own | specs.keys():
            known = ", ".join(sorted(own | specs.keys() | {"scale"}))
            raise ValueError(f"{algorithm} has no setting {name!r} here; it has {known}")
    if not isinstance(observation_space, spaces.Box | spaces.Discrete):
        raise TypeError(f"observation space must be Box or Discrete, got {observation_space}")
    if scale is not None and not isinstance(observation_space, spaces.Box):
        raise ValueError(f"scale must be left out where observations are not a Box, got {scale!r}")
    made: dict[str, Any] = {}
    for name, spec in specs.items():
        new = features.make(settings.pop(name, spec), observation_space, scale)
        made[name] = next((f for f in made.values() if f == new), new)  # equal features are computed once
    policy_features = {name: made.pop(name) for name in ("features", "scale_features") if name in made}
    policy = make_policy(observation_space, action_space, **policy_features)
    return cls(policy, **made, **settings)
