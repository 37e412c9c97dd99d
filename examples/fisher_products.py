"""What a Fisher-vector product costs, beside one policy gradient on the same batch: medians over repeats.

Softmax policies with two actions on dense features, n parameters and B rows. A single product computes the logits
first; where there are several, as in conjugate gradient, they are computed once, Eq. (10.15). Time should grow in
proportion to B and to n, so that the column of nanoseconds for each row and parameter stays level; peak memory is what
a call allocates beyond the features, which are B n / 2 numbers. The last table is one whole step: the damped system
solved by conjugate gradient or by Cholesky, Eq. (10.16), and how far apart they are.

    python examples/fisher_products.py [--repeats 7]        prints the tables, in about a minute on one core
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

import npg
from npg.distributions import Categorical
from npg.models import Linear
from npg.solvers import cholesky_solve, conjugate_gradient

ACTIONS = 2
SIZES = [(1_000, 1_000), (10_000, 1_000), (100_000, 1_000), (10_000, 100), (10_000, 10_000)]  # (B, n)
DAMPING = 1e-3


def medians(repeats: int, *calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call, the calls taken in turn so that all meet the same machine."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for of_call, call in zip(seconds, calls, strict=True):
            start = time.perf_counter()
            call()
            of_call.append(time.perf_counter() - start)
    return [float(np.median(of_call)) for of_call in seconds]


def peak(call: Callable[[], object]) -> float:
    """The most memory, in MB, that a call held."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    rng = np.random.default_rng(0)

    def problem(B: int, n: int) -> tuple[npg.Policy, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        d = n // ACTIONS
        policy = npg.Policy(lambda obs: obs, Linear(d, ACTIONS), Categorical(ACTIONS))
        x = rng.normal(size=(B, d)) / np.sqrt(d)
        theta, v, w = rng.normal(size=n), rng.normal(size=n), rng.normal(size=B) / B
        return policy, theta, x, policy.sample(theta, x, rng), w, v

    heads = ["B", "n", "gradient", "product", "ratio", "of several", "ns a row and", "features", "peak of"]
    units = ["", "", "ms", "ms", "", "ms", "parameter", "MB", "product, MB"]
    for line in (heads, units):
        print("".join(f"{cell:>13}" for cell in line))
    for B, n in SIZES:
        policy, theta, x, a, w, v = problem(B, n)

        def gradient() -> np.ndarray:
            return policy.weighted_score(theta, x, a, w)  # noqa: B023 (called before the loop goes on)

        def product() -> np.ndarray:
            return policy.fisher_vector_product(theta, x, v)  # noqa: B023

        F = policy.fisher_operator(theta, x)
        product()
        g, f, f_again = medians(args.repeats, gradient, product, lambda F=F, v=v: F(v))
        cells = [f"{B:,}", f"{n:,}", f"{1e3 * g:.3f}", f"{1e3 * f:.3f}", f"{f / g:.2f}", f"{1e3 * f_again:.3f}"]
        cells += [f"{1e9 * f / B / n:.3f}", f"{x.nbytes / 1e6:.1f}", f"{peak(product):.2f}"]
        print("".join(f"{cell:>13}" for cell in cells), flush=True)

    print(f"\none step at B = 10,000, damping {DAMPING}, conjugate gradient to 1e-10")
    heads = ["n", "CG, ms", "products", "MB", "Cholesky, ms", "MB", "difference"]
    print("".join(f"{cell:>13}" for cell in heads))
    for n in (20, 100, 300, 1_000):
        policy, theta, x, a, w, _ = problem(10_000, n)
        g_n = policy.weighted_score(theta, x, a, w)

        def by_cg() -> npg.solvers.CGResult:
            F = policy.fisher_operator(theta, x)  # noqa: B023
            return conjugate_gradient(lambda v: F(v) + DAMPING * v, g_n, max_iter=10 * n, tol=1e-10)  # noqa: B023

        def by_cholesky() -> np.ndarray:
            return cholesky_solve(policy.fisher(theta, x) + DAMPING * np.eye(n), g_n)  # noqa: B023

        cg, direct = by_cg(), by_cholesky()
        seconds = medians(min(args.repeats, 3), by_cg, by_cholesky)
        difference = np.linalg.norm(cg.x - direct) / np.linalg.norm(direct)
        cells = [f"{n:,}", f"{1e3 * seconds[0]:.1f}", f"{cg.iterations}", f"{peak(by_cg):.2f}"]
        cells += [f"{1e3 * seconds[1]:.1f}", f"{peak(by_cholesky):.1f}", f"{difference:.1e}"]
        print("".join(f"{cell:>13}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
