"""The deterministic policy gradient as the limit of the stochastic one: their distance against σ, chapter 13.

The policy is Gaussian with a covariance σ²I, the stochastic gradient is that of the parameters of its mean, and the
deterministic gradient, Eq. (13.3), that of the mean as the policy. Both are exact, Eq. (13.6).

(a) On the noise-free regulator of the chapter the distance is cσ² with c = 6.963 for every σ, Eq. (13.8); it is due to
the states that noise leads to, and the mean slope of action values does not depend on σ. On a random finite problem,
whose rewards and transitions are sines of an action in R², it is O(σ²), Eq. (13.7): a line of slope 2 for small σ. For
large σ the noise averages all sines away, and the distance is the length of the deterministic gradient.

(b) What sampled actions cost, on the finite problem: the standard deviation of an estimate from one state, drawn by its
visitation, and one action, by quadrature and of samples (points). Score × q grows like 1/σ as σ → 0. With v(s) as a
baseline it stays bounded, unless returns are noisy, here with standard deviation 0.2: see "What the variance is" in the
chapter. The mean over actions given the state, the slope of the smoothed q, has none of this; only the state is random.

    python examples/dpg_limit.py [--samples 20000] [--seed 1]

prints the table and writes dpg_limit.png, in about 2 seconds. ``--seed`` is that of the finite problem.
"""

from typing import NamedTuple

import numpy as np

from npg.lab.plotting import arguments, figure, save
from npg.lqr import LQR

REGULATOR = LQR(A=np.array([[1, 0.3], [-0.2, 0.9]]), B=np.array([[0.0], [1]]), Q=np.eye(2), R=np.eye(1))
K = np.array([[-0.3, -0.6]])
SIGMA = np.logspace(-3, 0.5, 36)
SAMPLED = SIGMA[::5]
S, M = 4, 2  # states, and components of an action
GAMMA = 0.9
NODES, WEIGHTS = (np.ravel(part) for part in np.polynomial.hermite_e.hermegauss(40))
XI = np.stack([grid.ravel() for grid in np.meshgrid(NODES, NODES)], axis=1)  # nodes of a standard normal vector: (Q, m)
WEIGHT = np.outer(WEIGHTS, WEIGHTS).ravel() / WEIGHTS.sum() ** 2
ESTIMATES = {"score × q": (0.0, 0.0), "score × (q − v)": (1.0, 0.0), "score × (q − v), noisy": (1.0, 0.2)}
SLOPE = "slope, no action sampled"
COLORS = dict(zip(ESTIMATES, ("C3", "C0", "C1"), strict=True))


class Waves(NamedTuple):
    """Rewards h sin(gᵀa + c), and P a mixture of two matrices by a sine; a sine of noisy actions is a smaller sine."""

    start: np.ndarray  # (S,)
    h: np.ndarray  # (S,)
    g: np.ndarray  # (S, m)
    c: np.ndarray  # (S,)
    P: np.ndarray  # where the sine is 1 or −1: (2, S, S)
    share: np.ndarray  # (S,)
    f: np.ndarray  # (S, m)
    b: np.ndarray  # (S,)

    def smoothed(self, sigma: float) -> "Waves":
        """The process that adds σξ to every action."""
        R, P = (np.exp(-(sigma**2) * (k**2).sum(axis=1) / 2) for k in (self.g, self.f))
        return self._replace(h=self.h * R, share=self.share * P)

    def reward(self, a: np.ndarray) -> np.ndarray:
        """R(s, a) of an action for each state (…, S, m): (…, S)."""
        return self.h * np.sin((self.g * a).sum(axis=-1) + self.c)

    def transitions(self, a: np.ndarray) -> np.ndarray:
        """P(s'|s, a): (…, S, S)."""
        sine = (self.share * np.sin((self.f * a).sum(axis=-1) + self.b))[..., None]
        return (1 + sine) / 2 * self.P[0] + (1 - sine) / 2 * self.P[1]

    def value(self, a: np.ndarray) -> np.ndarray:
        """v, Eq. (4.2): (S,)."""
        return np.linalg.solve(np.eye(S) - GAMMA * self.transitions(a), self.reward(a))

    def visitation(self, a: np.ndarray) -> np.ndarray:
        """Discounted and not normalised, Eq. (4.4): (S,)."""
        return np.linalg.solve(np.eye(S) - GAMMA * self.transitions(a).T, self.start)

    def slopes(self, a: np.ndarray) -> np.ndarray:
        """∇_a q at a = μ(s): (S, m)."""
        of_R = (self.h * np.cos((self.g * a).sum(axis=1) + self.c))[:, None] * self.g
        of_sine = (self.share * np.cos((self.f * a).sum(axis=1) + self.b))[:, None] * self.f
        return of_R + GAMMA * of_sine * ((self.P[0] - self.P[1]) / 2 @ self.value(a))[:, None]

    def gradient(self, X: np.ndarray, W: np.ndarray) -> np.ndarray:
        """∇J by Eq. (13.3) of μ(s) = W x(s), row by row: (m d,)."""
        a = X @ W.T
        return np.einsum("s,sm,sd->md", self.visitation(a), self.slopes(a), X).ravel()


class Problem(NamedTuple):
    """With features x(s) (S, d) and W (m, d)."""

    waves: Waves
    X: np.ndarray
    W: np.ndarray


def drawn(rng: np.random.Generator) -> Problem:
    h, c, b = rng.normal(size=(3, S))
    g, f = rng.normal(size=(2, S, M))
    waves = Waves(rng.dirichlet(np.ones(S)), h, g, c, rng.dirichlet(np.ones(S), (2, S)), rng.uniform(size=S), f, b)
    return Problem(waves, rng.normal(size=(S, 2)), 0.7 * rng.normal(size=(M, 2)))


def estimates(problem: Problem, sigma: float, xi: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of each state (S,); ψ of actions μ(s) + σξ, (n, S, m d); and q less v of the policy, and v: (2, n, S)."""
    waves, mu = problem.waves, problem.X @ problem.W.T
    smooth = waves.smoothed(sigma)
    v, d = smooth.value(mu), smooth.visitation(mu)
    a = mu + sigma * xi[:, None]
    psi = np.einsum("nm,sd->nsmd", xi / sigma, problem.X).reshape(len(xi), S, -1)
    q = waves.reward(a) + GAMMA * waves.transitions(a) @ v
    return d, psi, np.array([q - v, np.broadcast_to(v, q.shape)])


def stochastic(problem: Problem, sigma: float) -> tuple[np.ndarray, list[float]]:
    """∇J_σ by quadrature, Eq. (13.6), and standard deviations: of each of ``ESTIMATES`` and of the slope."""
    d, psi, (advantage, v) = estimates(problem, sigma, XI)
    weight, n = WEIGHT[:, None] * d / d.sum(), d.sum()
    g = n * np.einsum("ns,nsk,ns->k", weight, psi, advantage)
    of_state = n**2 * ((WEIGHT @ (psi * advantage[..., None]).reshape(len(XI), -1)) ** 2).reshape(S, -1).sum(axis=1)
    square = (psi**2).sum(axis=2)
    deviations = []
    for of_v, noise in ESTIMATES.values():
        second = n**2 * (weight * square * ((advantage + (1 - of_v) * v) ** 2 + noise**2)).sum()
        deviations.append(float(np.sqrt(second - g @ g)))
    return g, [*deviations, float(np.sqrt(d / n @ of_state - g @ g))]


def sampled(problem: Problem, sigma: float, n: int, rng: np.random.Generator) -> list[float]:
    """The same standard deviations from n samples."""
    d, psi, (advantage, v) = estimates(problem, sigma, rng.normal(size=(n, M)))
    s, row = rng.choice(S, size=n, p=d / d.sum()), np.arange(n)
    noise = rng.normal(size=n)
    deviations = []
    for of_v, size in ESTIMATES.values():
        X = d.sum() * psi[row, s] * (advantage[row, s] + (1 - of_v) * v[row, s] + size * noise)[:, None]
        deviations.append(float(np.sqrt(X.var(axis=0).sum())))
    return deviations


def show(gaps: dict[str, np.ndarray], deviations: np.ndarray, points: np.ndarray) -> None:
    print("‖stochastic − deterministic gradient‖, and the standard deviation of an estimate (of samples)")
    head = "".join(f"{name:>31}" for name in ESTIMATES)
    print(f"{'σ':<9}{'regulator':>11}{'/ σ²':>9}{'finite':>11}{'/ σ²':>9}{head}{SLOPE:>27}")
    for i, sigma in enumerate(SAMPLED):
        of_gaps = "".join(f"{gap[5 * i]:>11.3g}{gap[5 * i] / sigma**2:>9.4g}" for gap in gaps.values())
        cells = (
            f"{exact:.4g} ({of_samples:.4g})" for exact, of_samples in zip(deviations[5 * i], points[i], strict=False)
        )
        print(f"{sigma:<9.3g}{of_gaps}" + "".join(f"{cell:>31}" for cell in cells) + f"{deviations[5 * i, -1]:>27.4g}")
    for name, gap in gaps.items():
        print(f"slope of the {name} for σ ≤ 0.1: {np.polyfit(np.log(SIGMA[:21]), np.log(gap[:21]), 1)[0]:.4f}")


def draw(gaps: dict[str, np.ndarray], deviations: np.ndarray, points: np.ndarray) -> None:
    picture, (of_gap, of_deviation) = figure(13, 5.2, columns=2)
    for (name, gap), marker in zip(gaps.items(), "os", strict=True):
        of_gap.plot(SIGMA, gap, marker=marker, markersize=3, label=name)
    of_gap.plot(SIGMA, SIGMA**2, color="black", linestyle=":", label="σ²")
    of_gap.set(title="(a) ‖stochastic − deterministic gradient‖", ylabel="distance, exact")
    for name, exact, of_samples in zip(ESTIMATES, deviations.T, points.T, strict=False):
        of_deviation.plot(SIGMA, exact, color=COLORS[name], label=name)
        of_deviation.plot(SAMPLED, of_samples, "o", color=COLORS[name], markersize=4)
    of_deviation.plot(SIGMA, deviations[:, -1], color="C2", label=SLOPE)
    of_deviation.plot(SIGMA, 1 / SIGMA, color="black", linestyle=":", label="1/σ")
    of_deviation.set(title="(b) one state, one action, finite problem: lines exact, points sampled")
    of_deviation.set_ylabel("standard deviation of the estimate")
    for axes in of_gap, of_deviation:
        axes.set(xscale="log", yscale="log", xlabel="σ, standard deviation of the actions")
        axes.legend()
    save(picture, "dpg_limit")


def main() -> None:
    args = arguments(__doc__, samples=(20_000, 100), seed=(1, 0))
    rng = np.random.default_rng(args.seed)
    problem = drawn(rng)
    exact = [stochastic(problem, sigma) for sigma in SIGMA]
    limit = problem.waves.gradient(problem.X, problem.W)
    for sigma, (g, _) in zip(SIGMA, exact, strict=True):
        smooth = problem.waves.smoothed(sigma).gradient(problem.X, problem.W)
        assert np.allclose(g, smooth, rtol=0, atol=1e-9), "both forms of Eq. (13.6) are the same vector"
    of_regulator = [REGULATOR.gradient(K, np.array([sigma]))[:2] for sigma in SIGMA]
    differences = {
        "regulator": of_regulator - REGULATOR.deterministic_gradient(K),
        "finite problem": np.array([g for g, _ in exact]) - limit,
    }
    gaps = {name: np.linalg.norm(difference, axis=1) for name, difference in differences.items()}
    deviations = np.array([each for _, each in exact])
    points = np.array([sampled(problem, sigma, args.samples, rng) for sigma in SAMPLED])
    show(gaps, deviations, points)
    draw(gaps, deviations, points)


if __name__ == "__main__":
    main()
