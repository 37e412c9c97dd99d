"""What the presets reach from the command line, over seeds they were not tuned on, with the signal and without it."""

import tracemalloc

import gymnasium
import numpy as np
import pytest
from scipy.stats import t

import npg
from npg.lab.cli import main

SEEDS = range(10)


def results(capsys, tmp_path, algorithm: str, env_id: str, *options: str) -> np.ndarray:
    """Mean return of 100 sampled evaluation episodes, for each seed, as ``npg train`` prints it."""
    means = []
    for seed in SEEDS:
        command = ["train", algorithm, env_id, *options, "--seed", str(seed), "--out", str(tmp_path / str(seed))]
        assert main([*command, "--sample"]) == 0
        means.append(float(capsys.readouterr().out.split("mean return ")[1].split(" ")[0]))
    half = t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
    print(f"{algorithm} {env_id}: {np.mean(means):.4g} ± {half:.2g} (95 %), {means}")
    return np.array(means)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:another policy acts")
@pytest.mark.parametrize(
    ("algorithm", "env_id", "least", "of_ten"),
    [
        ("a2c", "CartPole-v1", 475, 9),
        ("actor_critic_lambda", "MountainCar-v0", -125, 8),
        ("actor_critic_lambda", "Pendulum-v1", -175, 8),
        ("npg", "CartPole-v1", 475, 9),
        ("trpo", "CartPole-v1", 475, 9),
        ("ppo_clip", "CartPole-v1", 475, 9),
        ("ppo_penalty", "CartPole-v1", 475, 9),
        ("dual_descent", "CartPole-v1", 475, 9),
        ("trpo", "Pendulum-v1", -175, 9),
        ("trpo", "Acrobot-v1", -90, 9),
        ("trpo", "MountainCar-v0", -120, 8),
        ("off_pac", "MountainCar-v0", -130, 9),
        ("replay_actor_critic", "CartPole-v1", 475, 8),
        ("copdac_q", "Pendulum-v1", -175, 8),
        ("copdac_gq", "Pendulum-v1", -175, 8),
        ("dpg_sarsa", "Pendulum-v1", -175, 8),
    ],
)
def test_presets_learn(capsys, tmp_path, algorithm, env_id, least, of_ten):
    assert (results(capsys, tmp_path, algorithm, env_id) >= least).sum() >= of_ten


class NoGoal(gymnasium.Wrapper):
    """The goal does not end the episode, so nothing tells it from the rest."""

    def step(self, action):
        obs, reward, _, truncated, info = self.env.step(action)
        return obs, reward, False, truncated, info


class NoSignal(gymnasium.RewardWrapper):
    """Every step has the same reward."""

    def reward(self, reward):
        return -5.0


class Noise(gymnasium.vector.VectorRewardWrapper):
    """Rewards have nothing to do with what happens."""

    def rewards(self, rewards):
        return self.np_random.normal(size=self.num_envs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm", ["a2c", "npg", "trpo", "ppo_clip", "ppo_penalty", "dual_descent", "replay_actor_critic"]
)
def test_methods_learn_from_the_rewards_of_cartpole_and_not_from_noise(algorithm):
    means = []
    for seed in range(5):
        preset = npg.lab.presets.preset(algorithm, "CartPole-v1")
        env = npg.make_vec("CartPole-v1", preset.num_envs or 1)
        agent = npg.make_agent(algorithm, env)
        npg.train(agent, Noise(env), steps=preset.steps, seed=seed)
        means.append(npg.evaluate(agent, env, episodes=100, seed=seed, deterministic=False).mean())
    print(f"{algorithm} CartPole-v1 with noise for rewards: {means}")
    assert np.mean(means) < 200


def without_signal(algorithm: str, env_id: str, wrapper: type[gymnasium.Wrapper], seed: int) -> float:
    """Sampled evaluation on the real environment after training with the preset on one without its signal."""
    preset = npg.lab.presets.preset(algorithm, env_id)
    if preset.num_envs:
        env = npg.make_vec(env_id, preset.num_envs)
        blind = npg.make_vec(env_id, preset.num_envs, wrappers=(wrapper,))
    else:
        env = npg.make_env(env_id, **preset.env_settings)
        blind = wrapper(env)
    agent = npg.make_agent(algorithm, env)
    npg.train(agent, blind, steps=preset.steps, seed=seed)
    return float(npg.evaluate(agent, env, episodes=100, seed=seed, deterministic=False).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "env_id", "wrapper", "most", "learned"),
    [
        # Zero values are optimistic: leaving no state unvisited reaches the goal too, for a while.
        ("actor_critic_lambda", "MountainCar-v0", NoGoal, -130, -125),
        ("actor_critic_lambda", "Pendulum-v1", NoSignal, -400, -175),
        ("trpo", "MountainCar-v0", NoGoal, -130, -120),
        ("trpo", "Acrobot-v1", NoGoal, -95, -90),
        ("trpo", "Pendulum-v1", NoSignal, -400, -175),
        ("copdac_q", "Pendulum-v1", NoSignal, -400, -175),
        ("off_pac", "MountainCar-v0", NoGoal, -1000, -130),  # of a limit of 5000 steps
    ],
)
def test_without_the_signal_the_same_settings_fail(algorithm, env_id, wrapper, most, learned):
    means = np.array([without_signal(algorithm, env_id, wrapper, seed) for seed in range(5)])
    print(f"{algorithm} {env_id} without its signal: {means}")
    assert means.mean() < most
    assert (means >= learned).sum() <= 1  # of 5: learning is 8 or 9 of 10


@pytest.mark.slow
def test_off_pac_does_not_learn_without_ratios():
    env = npg.make_env("MountainCar-v0", **npg.lab.presets.preset("off_pac", "MountainCar-v0").env_settings)
    means = []
    for seed in range(3):
        agent = npg.make_agent("off_pac", env)
        agent.behaviour_log_prob = lambda x, a, agent=agent: agent.policy.log_prob(agent.theta, x, a)  # so that ρ = 1
        npg.train(agent, env, steps=200_000, seed=seed)
        means.append(npg.evaluate(agent, env, episodes=10, seed=seed, deterministic=False).mean())
    print(f"off_pac MountainCar-v0 with ratios of 1: {means}")
    assert max(means) < -500


DELAYED_ID = "delayed:Delayed-v0"
DELAYED = {
    # An episode moves θ by α(R − v̂)z, where R deviates by 1/√2500 from v̂, and z has a norm of about √1250; v̂ is to keep
    # up with R, and moves by α_w 1250 of the error.
    "actor_critic_lambda": (0, {"lam_theta": 1, "lam_w": 1, "alpha": 0.06, "alpha_w": 0.00056}),
    # A batch is an episode of each environment and the step that resets it. Its baseline is the return of the batch
    # before, so that δ has to be small: a step changes the return by √(2δ) at most, not by much more than it deviates.
    "trpo": (2, {"lam": 1, "n_steps": 2501, "delta": 0.0005}),
}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", DELAYED)
def test_the_actions_of_2500_steps_are_learned_from_one_reward_at_the_end(capsys, tmp_path, algorithm):
    num_envs, settings = DELAYED[algorithm]
    options = ["--num-envs", str(num_envs), "--steps", "300000", "--set", "gamma=1"]
    options += [option for name, value in settings.items() for option in ("--set", f"{name}={value}")]
    assert (results(capsys, tmp_path, algorithm, DELAYED_ID, *options) >= 0.6).sum() >= 9


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", DELAYED)
def test_nothing_is_learned_from_a_reward_at_the_end_that_no_action_changes(algorithm):
    num_envs, settings = DELAYED[algorithm]
    means = []
    for seed in range(5):
        env, blind = (
            npg.make_vec(DELAYED_ID, num_envs, signal=signal) if num_envs else npg.make_env(DELAYED_ID, signal=signal)
            for signal in (True, False)
        )
        agent = npg.make_agent(algorithm, env, gamma=1, **settings)
        npg.train(agent, blind, steps=300_000, seed=seed)
        means.append(npg.evaluate(agent, env, episodes=4, seed=seed, deterministic=False).mean())
    print(f"{algorithm} {DELAYED_ID} without its signal: {means}")
    assert abs(np.mean(means)) < 0.4
    assert (np.array(means) >= 0.6).sum() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "settings"), [("reinforce", {"episodes": 1}), ("actor_critic_lambda", {})])
def test_episodes_of_100_000_steps_reach_their_time_limit(tmp_path, algorithm, settings):
    env = npg.make_env(DELAYED_ID, length=200_000, max_episode_steps=100_000)
    history = npg.train(npg.make_agent(algorithm, env, **settings), env, steps=200_000, out=tmp_path / "run")
    assert (history["mean_length"][-1], history["episodes"][-1]) == (100_000, 2)


@pytest.mark.parametrize("num_envs", [0, 2])
def test_evaluation_keeps_none_of_the_steps_of_long_episodes(num_envs):
    env = npg.make_vec(DELAYED_ID, num_envs) if num_envs else npg.make_env(DELAYED_ID)
    agent = npg.make_agent("reinforce", env)
    agent.init(np.random.default_rng(0))
    tracemalloc.start()
    npg.evaluate(agent, env, episodes=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # those of 10,000 steps would take twice as much
