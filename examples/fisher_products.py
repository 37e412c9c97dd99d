"""What a Fisher-vector product costs, beside one policy gradient on the same batch: medians over repeats.

Softmax policies with two actions on dense features, n parameters and B rows. A single product computes the logits
first; where there are several, as in conjugate gradient, they are computed once, Eq. (10.15). Time should grow in
proportion to B and to n, so that the column of nanoseconds for each row and parameter stays level; peak memory is what
a call allocates beyond the features, which are B n / 2 numbers. The last table is one whole step: the damped system
solved by conjugate gradient or by Cholesky, Eq. (10.16), and how far apart they are.

    python examples/fisher_products.py [--repeats 7]        prints the tables, in about a minute on one core
"""

import time
import tracemalloc
from collections.abc import Callable, Iterable

import numpy as np

import npg
from npg.distributions import Categorical
from npg.lab.plotting import arguments
from npg.models import Linear
from npg.solvers import CGResult, cholesky_solve, conjugate_gradient

ACTIONS = 2
SIZES = [(1_000, 1_000), (10_000, 1_000), (100_000, 1_000), (10_000, 100), (10_000, 10_000)]  # (B, n)
DAMPING = 1e-3


def medians(repeats: int, *calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call, the calls taken in turn so that all meet the same machine."""
    seconds = np.empty((repeats, len(calls)))
    for row in seconds:
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            row[i] = time.perf_counter() - start
    return list(np.median(seconds, axis=0))


def peak(call: Callable[[], object]) -> float:
    """The most memory, in MB, that a call held."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def problem(B: int, n: int, rng: np.random.Generator) -> tuple[npg.Policy, *tuple[np.ndarray, ...]]:
    """A policy, θ, features and actions of B rows, and random weights of the rows and of the parameters."""
    policy = npg.Policy(lambda obs: obs, Linear(n // ACTIONS, ACTIONS), Categorical(ACTIONS))
    x = rng.normal(size=(B, n // ACTIONS)) / np.sqrt(n // ACTIONS)
    theta, v, w = rng.normal(size=n), rng.normal(size=n), rng.normal(size=B) / B
    return policy, theta, x, policy.sample(theta, x, rng), w, v


def products(B: int, n: int, repeats: int, rng: np.random.Generator) -> list[str]:
    """A row of the first table."""
    policy, theta, x, a, w, v = problem(B, n, rng)

    def product() -> np.ndarray:
        return policy.fisher_vector_product(theta, x, v)

    F = policy.fisher_operator(theta, x)
    product()
    g, f, f_again = medians(repeats, lambda: policy.weighted_score(theta, x, a, w), product, lambda: F(v))
    cells = [f"{B:,}", f"{n:,}", f"{1e3 * g:.3f}", f"{1e3 * f:.3f}", f"{f / g:.2f}", f"{1e3 * f_again:.3f}"]
    return [*cells, f"{1e9 * f / B / n:.3f}", f"{x.nbytes / 1e6:.1f}", f"{peak(product):.2f}"]


def step(B: int, n: int, repeats: int, rng: np.random.Generator) -> list[str]:
    """A row of the second table."""
    policy, theta, x, a, w, _ = problem(B, n, rng)
    g = policy.weighted_score(theta, x, a, w)

    def by_cg() -> CGResult:
        F = policy.fisher_operator(theta, x)
        return conjugate_gradient(lambda v: F(v) + DAMPING * v, g, max_iter=10 * n, tol=1e-10)

    def by_cholesky() -> np.ndarray:
        return cholesky_solve(policy.fisher(theta, x) + DAMPING * np.eye(n), g)

    cg, direct = by_cg(), by_cholesky()
    seconds = medians(min(repeats, 3), by_cg, by_cholesky)
    difference = np.linalg.norm(cg.x - direct) / np.linalg.norm(direct)
    cells = [f"{n:,}", f"{1e3 * seconds[0]:.1f}", f"{cg.iterations}", f"{peak(by_cg):.2f}"]
    return [*cells, f"{1e3 * seconds[1]:.1f}", f"{peak(by_cholesky):.1f}", f"{difference:.1e}"]


def show(cells: Iterable[str]) -> None:
    print("".join(f"{cell:>13}" for cell in cells), flush=True)


def main() -> None:
    repeats, rng = arguments(__doc__, repeats=(7, 1)).repeats, np.random.default_rng(0)
    show(["B", "n", "gradient", "product", "ratio", "of several", "ns a row and", "features", "peak of"])
    show(["", "", "ms", "ms", "", "ms", "parameter", "MB", "product, MB"])
    for B, n in SIZES:
        show(products(B, n, repeats, rng))
    print(f"\none step at B = 10,000, damping {DAMPING}, conjugate gradient to 1e-10")
    show(["n", "CG, ms", "products", "MB", "Cholesky, ms", "MB", "difference"])
    for n in (20, 100, 300, 1_000):
        show(step(10_000, n, repeats, rng))


if __name__ == "__main__":
    main()
