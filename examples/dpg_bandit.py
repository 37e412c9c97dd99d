"""Deterministic and stochastic actor–critic on the bandit of Silver et al. (2014): cost against number of actions.

There are no states; the reward of a ∈ R^m is −(a − a*)ᵀC(a − a*), C diagonal with entries 1 and 0.1, half each, and
a* = (4, …, 4). Actions are θ + σξ, at first with σ = 0.5. To each batch of 2m actions a compatible critic is fitted by
least squares, and the actor makes one step. (The experiment as recalled; the paper's stochastic method learns σ.)

- Deterministic (COPDAC): θ ← θ + αw, with the slope w of the critic, Eq. (13.9), which has a constant as well.
- Stochastic: θ ← θ + α times the mean of score × critic, with the same critic and the same σ.
- Stochastic, σ learned: the critic has the score of log σ as a feature too, and log σ is ascended as θ is.
- Stochastic, no constant: the same as the second with a critic that is wᵀδ alone.

α of each method and m is the best of one grid by the mean cost over all actions, for the worst of 50 runs with seeds of
their own, of this α and of the next larger one: by the mean of the runs alone now and then one of the others diverges.

Where the gain comes from: not from determinism. On the actions of its own fit, score × critic is the same as score ×
(r − c), REINFORCE with the fitted constant as its baseline, and w is this vector divided by the second moment of ξ as
it was in the batch instead of by I. So the mean over actions is carried out, as far as the reward is linear in them,
and w is rid of a variance of (m + 1)‖g‖² for each action, Eq. (13.24). The natural gradient of the stochastic policy,
fitted in this way, is σ²w, and would have the curve of the deterministic method.

And with this σ it is small. (m + 1)‖g‖² grows with m, but so do the batches: their mean has ½‖g‖² of it for every m.
Far from a* the deterministic actor is ahead, and to 1 % of the first cost the stochastic one with the fitted constant
takes up to a quarter more actions. At the end, where g is small, it has the lower cost, because w from 2m actions has
up to twice the variance that it has from many. The wide gap that the paper is known for is here one to methods that
learn σ too, or have no baseline.

    python examples/dpg_bandit.py [--runs 20] [--actions 10000] [--seed 0]

prints the table and writes dpg_bandit.png; 20 runs take about 12 seconds.
"""

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from npg.lab.plotting import arguments, band, figure, mean_and_interval, save

SIZES = (10, 25, 50)
SIGMA, TARGET = 0.5, 4.0
ALPHAS = 10.0 ** np.arange(-3.5, 0.05, 0.125)
TUNING = 50  # runs for the choice of α
METHODS = ("deterministic", "stochastic", "stochastic, σ learned", "stochastic, no constant")


class Curves(NamedTuple):
    """What one method does in dimension m with the step size that was best on other seeds."""

    alpha: float
    actions: np.ndarray  # (n,)
    cost: np.ndarray  # −r(θ): (runs, n)


def entries(m: int) -> np.ndarray:
    """The diagonal of C: (m,)."""
    return np.where(np.arange(m) % 2, 0.1, 1.0)


def cost(theta: np.ndarray) -> np.ndarray:
    """−r(θ) of θ (…, m)."""
    return (theta - TARGET) ** 2 @ entries(theta.shape[-1])


def learn(method: str, m: int, alphas: np.ndarray, runs: int, actions: int, seed: np.random.SeedSequence) -> np.ndarray:
    """−r(θ) before and after each batch, of all step sizes at once, with the same ξ: (n + 1, runs, K)."""
    rng, C, N, learned = np.random.default_rng(seed), entries(m), 2 * m, method.endswith("learned")
    theta, log_sigma = np.zeros((runs, len(alphas), m)), np.full((runs, len(alphas)), np.log(SIGMA))
    costs = [cost(theta)]
    for batch in range(actions // N):
        xi, sigma = rng.normal(size=(runs, N, m)), np.exp(log_sigma)
        columns = [xi, (xi**2).sum(axis=2, keepdims=True) - m, np.ones((runs, N, 1))]
        constant = not method.endswith("no constant")
        phi = np.concatenate(columns[: 1 + learned] + columns[2:] * constant, axis=2)
        phi_T = np.swapaxes(phi, 1, 2)
        # −(θ + σξ − a*)ᵀC(θ + σξ − a*), as a polynomial in σ: (runs, N, K)
        linear = xi @ np.swapaxes(C * (theta - TARGET), 1, 2)
        r = -(costs[-1][:, None] + 2 * sigma[:, None] * linear + sigma[:, None] ** 2 * (xi**2 @ C)[..., None])
        w = np.linalg.solve(phi_T @ phi, phi_T @ r)  # (runs, features, K)
        if method == "deterministic":
            step = w[:, :m]
        else:
            n = m + learned
            step = phi_T[:, :n] @ (phi[..., :n] @ w[:, :n]) / N  # of [θ/σ, log σ]
            same = batch > 0 or np.allclose(step, phi_T[:, :n] @ (r - (w[:, -1:] if constant else 0)) / N)
            assert same, "score × critic is REINFORCE with the fitted constant as its baseline"
        theta = theta + (alphas / sigma)[..., None] * np.swapaxes(step[:, :m], 1, 2)
        if learned:
            log_sigma = log_sigma + alphas * step[:, m]
        costs.append(cost(theta))
    return np.array(costs)


def compute(runs: int, actions: int, seed: int) -> dict[tuple[int, str], Curves]:
    """Curves of each m and method."""
    curves = {}
    for m, method in tqdm([(m, method) for m in SIZES for method in METHODS], unit="method"):
        tuning, final = np.random.SeedSequence([seed, m]).spawn(2)
        with np.errstate(all="ignore"):  # step sizes that are too large
            worst = learn(method, m, ALPHAS, TUNING, actions, tuning).mean(axis=0).max(axis=0)
        worst = np.where(np.isfinite(worst), worst, np.inf)
        alpha = ALPHAS[:-1][np.maximum(worst[:-1], worst[1:]).argmin()]
        of_runs = learn(method, m, np.array([alpha]), runs, actions, final)[..., 0].T
        curves[m, method] = Curves(alpha, 2 * m * np.arange(of_runs.shape[1]), of_runs)
    return curves


def show(curves: dict[tuple[int, str], Curves]) -> None:
    runs = len(next(iter(curves.values())).cost)
    print(f"cost −r(θ) of the mean, {runs} runs ± 95 % confidence; actions until the mean is 1 % of the first cost")
    head = f"{'first cost':>12}{'last cost':>22}{'actions to 1 %':>16}"
    print(f"{'m':<5}{'method':<26}{'α':>8}{head}")
    for (m, method), curve in curves.items():
        mean, half = mean_and_interval(curve.cost)
        below = np.flatnonzero(mean <= 0.01 * mean[0])
        arrival = f"{curve.actions[below[0]]}" if len(below) else f"> {curve.actions[-1]}"
        last = f"{mean[-1]:.3g} ± {half[-1]:.1g}"
        print(f"{m:<5}{method:<26}{curve.alpha:>8.2g}{mean[0]:>12.4g}{last:>22}{arrival:>16}")
    print(
        "tr Cov for one action at θ = 0, Eq. (13.24): score × (r − E r), and regression, whose limit for large N it is"
    )
    for m in SIZES:
        C = entries(m)
        regression = 2 * (m + 4) * SIGMA**2 * (C**2).sum()
        score = regression + (m + 1) * ((2 * C * TARGET) ** 2).sum()
        print(f"{m:<5}{score:>12.2f}{regression:>12.2f}")


def draw(curves: dict[tuple[int, str], Curves]) -> None:
    picture, panels = figure(16, 5, columns=3)
    for axes, m in zip(panels, SIZES, strict=True):
        for color, method in zip(("C0", "C3", "C1", "C2"), METHODS, strict=True):
            curve = curves[m, method]
            band(axes, curve.actions, curve.cost, f"{method}, α = {curve.alpha:.2g}", color=color)
        axes.set(title=f"m = {m}, batches of {2 * m}", xlabel="actions", yscale="log", ylim=(0.03, 1000))
        axes.set_ylabel("cost −r(θ) of the mean action")
        axes.legend(fontsize="small")
    save(picture, "dpg_bandit")


def main() -> None:
    args = arguments(__doc__, runs=(20, 2), actions=(10_000, 200), seed=(0, 0))
    curves = compute(args.runs, args.actions, args.seed)
    show(curves)
    draw(curves)


if __name__ == "__main__":
    main()
