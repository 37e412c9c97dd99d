"""Plain and natural gradient of a linear-quadratic problem over (k, σ): the figure of Peters & Schaal (2008).

The problem of S. Levine's lecture (CS 285): a ~ N(k s, σ²), s' = s + a, r = −s² − a², here with γ = 0.9 and E s_0² = 1,
Eq. (4.25); the lecture shows θ = (k, σ) on the two axes and gives neither dynamics nor γ. Everything is exact. Grey is
log(J* − J), the star the optimum k* = −0.588, σ → 0. (a) ∇J in (k, σ) points almost wholly at less exploration: curves
fall to σ ≈ 0 far from k*. (b) F⁻¹∇J leads to k*, and is the same field whether θ is (k, σ) or (k, log σ), Eq. (9.15).
(c) ∇J in (k, log σ), drawn over (k, σ), is another field than (a). (d) the curves from k = −1.3, σ = 0.5, on a
logarithmic axis.

Every step has the same length in the metric of the Fisher matrix, ½ΔᵀFΔ = δ, Eq. (9.7): methods and parametrisations
differ in direction only, and σ > 0 needs no guard, as |Δσ| ≤ σ √(δ(1 − γ)). F is that of the unnormalised visitation,
so that the mean KL divergence of a step is about (1 − γ) δ. In that measure (a) all but stops, while (c) arrives at k*
and may zigzag across it, with σ falling slowly. Steps of fixed Euclidean length, the last line printed, creep on from
(a) along σ ≈ 0 and do arrive: exact gradients need no exploration, sampled ones would.

    python examples/lqr_vector_field.py        prints the table and writes lqr_vector_field.png, in about 5 seconds

``--steps`` steps of radius δ = ``--delta`` are made.
"""

import numpy as np
from matplotlib.axes import Axes

from npg.lab.plotting import arguments, figure, save
from npg.lqr import LQR
from npg.optimizers import kl_step

PROBLEM = LQR()
BEST = PROBLEM.optimal_gain().item()
J_BEST = PROBLEM.J(np.array([[BEST]]), np.array([1e-12]))
K, SIGMA = np.linspace(-1.95, -0.05, 20), np.linspace(0.05, 1, 14)  # where the arrows are
START = (-1.3, 0.5)
LENGTH = 0.01
STARTS = (START, (-1.85, 0.3), (-1.75, 0.85), (-1.0, 0.95), (-0.2, 0.85), (-0.1, 0.3))
FIELDS = {  # (natural, log σ)
    "plain, (k, σ)": (False, False),
    "natural, (k, σ)": (True, False),
    "natural, (k, log σ)": (True, True),
    "plain, (k, log σ)": (False, True),
}
TITLES = {
    "plain, (k, σ)": "(a) plain gradient in (k, σ)",
    "natural, (k, σ)": "(b) natural gradient, in (k, σ) or (k, log σ)",
    "plain, (k, log σ)": "(c) plain gradient in (k, log σ)",
}
COLORS = dict(zip(FIELDS, ("C3", "C0", "C9", "C1"), strict=True))


def direction(k: float, sigma: float, natural: bool, log_sigma: bool) -> tuple[np.ndarray, np.ndarray]:
    """∇J or F⁻¹∇J in (k, σ) or (k, log σ): (2,); and F: (2, 2)."""
    policy = np.array([[k]]), np.array([sigma])
    g, F = PROBLEM.gradient(*policy, log_sigma=log_sigma), PROBLEM.fisher(*policy, log_sigma=log_sigma)
    return (np.linalg.solve(F, g) if natural else g), F


def field(k: float, sigma: float, natural: bool, log_sigma: bool) -> np.ndarray:
    """How (k, σ) moves along the direction, to first order: (2,)."""
    u, _ = direction(k, sigma, natural, log_sigma)
    return u * [1, sigma if log_sigma else 1]


def ascend(k: float, sigma: float, natural: bool, log_sigma: bool, delta: float, n: int) -> np.ndarray:
    """(k, σ) before and after each of n steps of radius δ: (n + 1, 2)."""
    path = [(k, sigma)]
    for _ in range(n):
        u, F = direction(k, sigma, natural, log_sigma)
        step = kl_step(u, F @ u, delta)
        k, sigma = k + step[0], sigma * np.exp(step[1]) if log_sigma else sigma + step[1]
        path.append((k, sigma))
    return np.array(path)


def ascend_euclidean(k: float, sigma: float, length: float, target: float) -> tuple[int, float, float]:
    """Plain steps of that length in (k, σ), each halved until σ stays positive, that bring k within 0.01 of the target.

    Also k and σ then. At most 10,000 steps are made.
    """
    n = 0
    while abs(k - target) >= 0.01 and n < 10_000:
        n += 1
        u, _ = direction(k, sigma, natural=False, log_sigma=False)
        step = length * u / np.linalg.norm(u)
        while sigma + step[1] <= 0:
            step /= 2
        k, sigma = k + step[0], sigma + step[1]
    return n, k, sigma


def show(fields: dict[str, np.ndarray], paths: dict[str, list[np.ndarray]], delta: float) -> None:
    one, other = fields["natural, (k, σ)"], fields["natural, (k, log σ)"]
    print(f"natural fields of (k, σ) and (k, log σ): largest relative difference {np.abs(one / other - 1).max():.1g}")
    plain, plain_log = (np.arctan2(*np.moveaxis(fields[name], 2, 0)) for name in ("plain, (k, σ)", "plain, (k, log σ)"))
    angle = np.degrees(np.abs(plain - plain_log))
    print(f"plain fields: up to {angle.max():.0f}° apart over (k, σ), on average {angle.mean():.0f}°")
    steps = len(paths["plain, (k, σ)"][0]) - 1
    print(f"after {steps} steps of ½ΔᵀFΔ = {delta:g}; optimum k* = {BEST:.4f}, σ → 0, J* = {J_BEST:.4f}")
    print(f"{'k, σ from':<14}" + "".join(f"{name:>23}" for name in FIELDS))
    for i, (k, sigma) in enumerate(STARTS):
        ends = (paths[name][i][-1] for name in FIELDS)
        print(f"{f'{k:g}, {sigma:g}':<14}" + "".join(f"{f'{k:.4f}, {sigma:.1e}':>23}" for k, sigma in ends))
    n, k, sigma = ascend_euclidean(*START, LENGTH, BEST)
    print(f"steps of ‖Δ‖ = {LENGTH:g} instead, plain, (k, σ), from {START[0]:g}, {START[1]:g}: ", end="")
    print(f"{k:.4f}, {sigma:.1e} after {n} steps")


def draw_path(axes: Axes, path: np.ndarray, color: str, label: str = "", **style: object) -> None:
    """A ring where it begins, a dot where it ends."""
    axes.plot(*path.T, color=color, linewidth=2, clip_on=False, label=label, **style)
    axes.plot(*path[0], "o", color=color, markerfacecolor="white", markersize=7, zorder=4)
    axes.plot(*path[-1], "o", color=color, markersize=7, clip_on=False, zorder=4)


def draw(fields: dict[str, np.ndarray], paths: dict[str, list[np.ndarray]]) -> None:
    picture, (*panels, last) = figure(14, 9.5, 2, 2)
    k, sigma = np.linspace(-2, 0, 81), np.linspace(0.005, 1.05, 60)
    gap = [[J_BEST - PROBLEM.J(np.array([[a]]), np.array([b])) for a in k] for b in sigma]
    for axes, (name, title) in zip(panels, TITLES.items(), strict=True):
        grey = axes.contourf(k, sigma, np.log10(gap), levels=24, cmap="Greys", alpha=0.3)
        arrows = np.moveaxis(fields[name] / np.linalg.norm(fields[name], axis=2, keepdims=True), 2, 0)
        axes.quiver(K, SIGMA, *arrows, angles="xy", pivot="mid", scale=34, width=0.0022, color="0.25")
        for path in paths[name]:
            draw_path(axes, path, COLORS[name])
        axes.plot(BEST, 0, "*", color="gold", markeredgecolor="black", markersize=18, clip_on=False, zorder=5)
        axes.set(title=title, xlim=(-2, 0), ylim=(0, 1.05))
        axes.grid(visible=False)
    picture.colorbar(grey, ax=picture.axes, aspect=60, label="log₁₀(J* − J) in (a), (b), (c)")
    for name in FIELDS:
        style = {"linestyle": "--", "zorder": 3} if name == "natural, (k, log σ)" else {}
        draw_path(last, paths[name][0], COLORS[name], name, **style)
    last.axvline(BEST, color="black", linestyle=":", linewidth=1, label="k*")
    title = f"(d) {len(paths[name][0]) - 1} steps from k = {START[0]:g}, σ = {START[1]:g}".replace("-", "−")
    last.set(title=title, yscale="log")
    last.legend(loc="lower left")
    for axes in (*panels, last):
        axes.set(xlabel="gain θ₁ = k", ylabel="standard deviation σ")
    picture.suptitle("rings: first policies; dots: last ones; star: optimum", fontsize="medium")
    save(picture, "lqr_vector_field")


def main() -> None:
    args = arguments(__doc__, steps=(300, 1, 3000), delta=(0.01, 1e-6, 0.02))
    fields = {name: np.array([[field(k, s, *how) for k in K] for s in SIGMA]) for name, how in FIELDS.items()}
    paths = {name: [ascend(*start, *how, args.delta, args.steps) for start in STARTS] for name, how in FIELDS.items()}
    show(fields, paths, args.delta)
    draw(fields, paths)


if __name__ == "__main__":
    main()
