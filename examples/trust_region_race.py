"""From REINFORCE to trust regions on CartPole, Acrobot and Pendulum: return in training against environment steps.

Each curve is the mean over runs, with a 95 % confidence band; a run's points are means over the episodes that ended
since the last point. All methods have the same policy: affine logits on CartPole and Acrobot, and on Pendulum a
Gaussian whose mean is linear in random Fourier features. Settings were tuned by hand on other seeds, with a handful of
trials for each method: another tuning may change the order. On CartPole, with four numbers to learn, nothing is gained
over REINFORCE with a baseline; on Pendulum, with 200 features of very different effect, much is. TRPO, NPG and dual
descent use whole batches, and PPO goes over each several times, so their first points come late.

    python examples/trust_region_race.py [--runs 10]      writes trust_region_race.png; about 12 minutes on one core
"""

from actor_critic_race import compute, draw, show

from npg.lab.plotting import arguments, save

ADAM = {"normalize": "standardize", "optimizer": "adam", "clip": None, "alpha": 0.03, "alpha_w": 1.0}
BASELINE = {"outer_discount": False, "normalize": "scale", "alpha": 0.3}
SCALE = {"scale": [2.4, 3.0, 0.21, 3.0]}
CARTPOLE_METHODS = {
    "REINFORCE": ("reinforce", 16, SCALE | {"outer_discount": False, "alpha": 0.4}),
    "A2C": ("a2c", 16, SCALE | {"n_steps": 32, "lam": 0.98, "alpha": 0.05, "alpha_w": 1.0}),
    "NPG": ("npg", 16, SCALE | {"n_steps": 256, "lam": 0.98, "damping": 0.01}),
    "TRPO": ("trpo", 16, SCALE | {"n_steps": 256, "lam": 0.98}),
    "PPO, clipped": ("ppo_clip", 16, SCALE),
    "PPO, penalty": ("ppo_penalty", 16, SCALE | {"target_kl": 0.003}),
    "dual descent": ("dual_descent", 16, SCALE),
}
ACROBOT_VALUES = {"kind": "random_fourier", "n_features": 200, "length_scale": 1.0, "seed": 1}
ACROBOT = {"scale": [1.0, 1.0, 1.0, 1.0, 6.0, 12.0]}
CRITIC = ACROBOT | {"value_features": ACROBOT_VALUES, "lam": 0.97}
ACROBOT_METHODS = {
    "REINFORCE": ("reinforce", 16, ACROBOT | BASELINE | {"baseline_features": ACROBOT_VALUES}),
    "A2C": ("a2c", 16, CRITIC | ADAM | {"n_steps": 32}),
    "NPG": ("npg", 16, CRITIC | {"n_steps": 256, "delta": 0.05}),
    "TRPO": ("trpo", 16, CRITIC | {"n_steps": 256, "delta": 0.05}),
    "PPO, clipped": ("ppo_clip", 16, CRITIC | {"target_kl": 0.05, "alpha": 0.03, "alpha_w": 1.0}),
    "PPO, penalty": ("ppo_penalty", 16, CRITIC | {"target_kl": 0.02, "alpha": 0.1}),
    "dual descent": ("dual_descent", 16, CRITIC | {"n_steps": 256, "epsilon": 0.05, "alpha": 0.03}),
}
POLICY = {"gamma": 0.95, "features": {"kind": "random_fourier", "n_features": 200, "length_scale": 0.5}}
PENDULUM_VALUES = {"kind": "random_fourier", "n_features": 300, "length_scale": 0.5, "seed": 1}
EPISODE = POLICY | {"value_features": PENDULUM_VALUES, "n_steps": 200}
PENDULUM_METHODS = {
    "REINFORCE": ("reinforce", 16, POLICY | BASELINE | {"baseline_features": PENDULUM_VALUES}),
    "A2C": ("a2c", 16, EPISODE | ADAM | {"n_steps": 25, "beta": 0.0}),
    "NPG": ("npg", 16, EPISODE | {"delta": 0.05}),
    "TRPO": ("trpo", 16, EPISODE | {"delta": 0.05}),
    "PPO, clipped": ("ppo_clip", 16, EPISODE | {"target_kl": 0.05, "alpha": 0.03, "alpha_w": 0.3}),
    "PPO, penalty": ("ppo_penalty", 16, EPISODE | {"target_kl": 0.05, "alpha": 0.1}),
    "dual descent": ("dual_descent", 16, EPISODE | {"epsilon": 0.05, "alpha": 0.1}),
}
RACES = {  # environment: its methods, environment steps, where it begins
    "CartPole-v1": (CARTPOLE_METHODS, 100_000, None),
    "Acrobot-v1": (ACROBOT_METHODS, 100_000, None),
    "Pendulum-v1": (PENDULUM_METHODS, 100_000, None),
}
LIMITS = {"CartPole-v1": (0, 520), "Acrobot-v1": (-510, -60), "Pendulum-v1": (-1600, -100)}


def main() -> None:
    args = arguments(__doc__, runs=(10, 2), seed=(0, 0))
    curves, seconds = compute(RACES, args.runs, args.seed)
    show(curves, seconds)
    picture, panels = draw(RACES, curves)
    for axes, env_id in zip(panels, RACES, strict=True):
        axes.set_ylim(LIMITS[env_id])
    panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save(picture, "trust_region_race")


if __name__ == "__main__":
    main()
