"""Hypothesis strategies for distributions, spaces, features, policies, batches of their inputs, and finite problems.

Each ``extreme`` variant reaches what the library promises to survive: logits of ±1e4, means of ±1e4, and σ from
1e-6 to 1e6.
"""

from collections.abc import Callable
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from hypothesis import settings
from hypothesis import strategies as st

from npg import features as F
from npg.distributions import Categorical, DiagonalGaussian, Distribution
from npg.exact import TabularMDP
from npg.models import Linear
from npg.policies import GaussianLinear, Policy, SoftmaxLinear
from npg.problems import garnet


def examples(n: int) -> settings:
    """n examples of a property instead of the profile's 50; of the fast profile, no more than its own."""
    usual = settings.default.max_examples
    return settings(max_examples=n if usual >= 50 else min(n, usual))


EXTREME_LOGIT = 1e4
EXTREME_LOG_SIGMA = np.log(1e6)

seeds = st.integers(0, 2**32 - 1)
generators = seeds.map(np.random.default_rng)
batch_sizes = st.integers(1, 5)


def _numbers(seed: int, shape: int | tuple[int, ...], low: float, high: float) -> np.ndarray:
    """Numbers in [low, high] to six decimals."""
    if seed == 0:  # the least in size, to which others shrink
        return np.full(shape, np.clip(0.0, low, high))
    rng = np.random.default_rng(seed)
    x = rng.uniform(low, high, shape)
    if seed % 2:  # of different sizes, some at the ends of the range, some zero or whole, some equal
        special = np.clip([low, high, 0.0, 1.0, -1.0, *rng.uniform(low, high, 2)], low, high)
        x = np.clip(x * 10.0 ** -rng.integers(0, 5, shape), low, high)
        x = np.where(rng.random(shape) < 0.4, rng.choice(special, shape), x)
    return x.round(6)


@cache
def numbers(shape: int | tuple[int, ...], low: float, high: float) -> st.SearchStrategy[np.ndarray]:
    """Float arrays with elements in [low, high] to six decimals, from a seed: to draw each would take much longer."""
    return seeds.map(lambda seed: _numbers(seed, shape, low, high))


def reals(shape: int | tuple[int, ...], bound: float = 3.0) -> st.SearchStrategy[np.ndarray]:
    """Float arrays with elements in [−bound, bound], to six decimals: no square underflows."""
    return numbers(shape, -bound, bound)


@cache
def indices(shape: int | tuple[int, ...], low: int, high: int) -> st.SearchStrategy[np.ndarray]:
    """Arrays of integers from low to high."""
    return generators.map(lambda rng: rng.integers(low, high, shape, endpoint=True))


def weights(rows: int) -> st.SearchStrategy[np.ndarray]:
    """(rows,) weights of either sign, such as advantages."""
    return reals(rows)


def positive_weights(rows: int) -> st.SearchStrategy[np.ndarray]:
    """(rows,) weights in [0.1, 3], such as those of a Fisher matrix."""
    return numbers(rows, 0.1, 3.0)


# Distributions

categoricals = st.integers(1, 5).map(Categorical)
gaussians = st.integers(1, 3).map(DiagonalGaussian)
distributions: st.SearchStrategy[Distribution] = categoricals | gaussians


def etas(distribution: Distribution, rows: int, extreme: bool = False) -> st.SearchStrategy[np.ndarray]:
    """(rows, n_eta) parameters of a distribution."""
    if isinstance(distribution, Categorical):
        return reals((rows, distribution.n_eta), EXTREME_LOGIT if extreme else 3.0)
    half = (rows, distribution.n_actions)
    mu = reals(half, EXTREME_LOGIT if extreme else 3.0)
    log_sigma = reals(half, EXTREME_LOG_SIGMA if extreme else 1.5)
    return st.tuples(mu, log_sigma).map(np.hstack)


@st.composite
def actions(draw: Any, distribution: Distribution, eta: np.ndarray) -> np.ndarray:
    """One action per row of ``eta``: any category, or a Gaussian action within four standard deviations."""
    rows, m = len(eta), distribution.n_actions
    if isinstance(distribution, Categorical):
        return draw(indices(rows, 0, m - 1))
    return eta[:, :m] + np.exp(eta[:, m:]) * draw(reals((rows, m), 4.0))


class Row(NamedTuple):
    """A distribution with a batch of its parameters and actions."""

    distribution: Distribution
    eta: np.ndarray
    a: np.ndarray


@st.composite
def distribution_batches(
    draw: Any, which: st.SearchStrategy[Distribution] = distributions, extreme: bool = False
) -> Row:
    """A distribution, η of a small batch, and an action for each row."""
    distribution = draw(which)
    eta = draw(etas(distribution, draw(batch_sizes), extreme))
    return Row(distribution, eta, draw(actions(distribution, eta)))


# Spaces, observations, features


@st.composite
def boxes(draw: Any, shapes: tuple[tuple[int, ...], ...] = ((1,), (2,), (3,), (2, 1))) -> spaces.Box:
    """Bounded boxes, not centred at zero."""
    shape = draw(st.sampled_from(shapes))
    low = draw(reals(shape, 5.0))
    width = draw(numbers(shape, 0.5, 5.0))
    return spaces.Box(low, low + width, dtype=np.float64)


@st.composite
def discretes(draw: Any) -> spaces.Discrete:
    """Discrete spaces, some of which do not start at zero."""
    return spaces.Discrete(draw(st.integers(1, 5)), start=draw(st.integers(-3, 3)))


@st.composite
def observations(draw: Any, space: spaces.Space[Any], rows: int) -> np.ndarray:
    """A batch of members of a Box or Discrete space."""
    if isinstance(space, spaces.Discrete):
        return draw(indices(rows, int(space.start), int(space.start + space.n) - 1))
    fraction = draw(numbers((rows, *space.shape), 0.0, 1.0))
    low, high = space.low, space.high
    return np.clip(low + fraction * (high - low), low, high)


few = (st.just(0), st.integers(0, 1), st.integers(0, 2))
"""Up to none, one and two."""
positive = st.floats(0.2, 3.0)
widths = st.none() | positive
sizes, seeds_of_features = st.integers(2, 6), st.integers(0, 99)
tilings, tables = st.integers(1, 2), st.none() | st.integers(2, 9)


DENSE = [F.Affine, F.Polynomial, F.Fourier, F.RBF, F.RandomFourier]
"""Kinds of dense features of a Box."""


@st.composite
def features_of_kind(draw: Any, kinds: st.SearchStrategy[type[F.Features]], space: spaces.Space[Any]) -> F.Features:
    """Features of one of the kinds, few enough for dense Jacobians; tile coding is hashed or not."""
    kind, small = draw(kinds), int(np.prod(space.shape) < 3)
    if kind is F.Polynomial:
        return F.Polynomial(space, degree=draw(few[1 + small]))
    if kind is F.Fourier:
        return F.Fourier(space, order=draw(few[1 + small]))
    if kind is F.RBF:
        return F.RBF(space, n_centres=2, width=draw(widths))
    if kind is F.RandomFourier:
        return F.RandomFourier(space, n_features=draw(sizes), length_scale=draw(positive), seed=draw(seeds_of_features))
    if kind is F.TileCoding:
        return F.TileCoding(space, n_tilings=draw(tilings), n_tiles=1 + draw(few[small]), table_size=draw(tables))
    return kind(space)


dense_box_features = partial(features_of_kind, st.sampled_from(DENSE))
tile_codings = partial(features_of_kind, st.just(F.TileCoding))
box_features = partial(features_of_kind, st.sampled_from([*DENSE, F.TileCoding]))
box_features_or_constant = partial(features_of_kind, st.sampled_from([*DENSE, F.TileCoding, F.Constant]))
state_features_or_constant = partial(features_of_kind, st.sampled_from([F.OneHot, F.Constant]))


def features(space: spaces.Space[Any]) -> st.SearchStrategy[F.Features]:
    """Features of every kind for a Box or a Discrete space, the constant among them."""
    return (state_features_or_constant if isinstance(space, spaces.Discrete) else box_features_or_constant)(space)


# Policies


class Instance(NamedTuple):
    """A policy with everything its methods take: θ, and B observations with their x, actions and weights."""

    policy: Policy
    space: spaces.Space[Any]
    theta: np.ndarray
    obs: np.ndarray
    x: Any
    a: np.ndarray
    w: np.ndarray


class _Kind(NamedTuple):
    policy: Policy
    space: spaces.Space[Any]


@st.composite
def softmax_policies(draw: Any) -> _Kind:
    """Softmax-linear on dense features of a Box."""
    space = draw(boxes())
    return _Kind(SoftmaxLinear(draw(dense_box_features(space)), draw(st.integers(1, 4))), space)


@st.composite
def tabular_policies(draw: Any) -> _Kind:
    """Softmax-linear on one-hot features of a Discrete space, which are active indices."""
    space = draw(discretes())
    return _Kind(SoftmaxLinear(F.OneHot(space), draw(st.integers(1, 4))), space)


@st.composite
def tile_policies(draw: Any) -> _Kind:
    """Softmax-linear on tile coding of a Box, several active indices a row."""
    space = draw(boxes())
    return _Kind(SoftmaxLinear(draw(tile_codings(space)), draw(st.integers(1, 3))), space)


bounded_or_discrete = boxes() | discretes()


@st.composite
def gaussian_policies(draw: Any, scales: tuple[str, ...] = ("own", "shared", "constant")) -> _Kind:
    """Gaussian-linear, its log σ on features of its own, on those of the mean, or on a constant."""
    space = draw(bounded_or_discrete)
    mean, scale = draw(features(space)), draw(st.sampled_from(scales))
    of_scale = draw(features(space)) if scale == "own" else {"shared": mean, "constant": F.Constant()}[scale]
    return _Kind(GaussianLinear(mean, of_scale, draw(st.integers(1, 2))), space)


policies = softmax_policies() | tabular_policies() | tile_policies() | gaussian_policies()


@st.composite
def thetas(draw: Any, policy: Policy, extreme: bool = False) -> np.ndarray:
    """θ of a policy. Features here are at most √2, which keeps σ within [1e-6, 1e6] where ``extreme``."""
    if isinstance(policy.distribution, Categorical):
        return draw(reals(policy.n_params, EXTREME_LOGIT if extreme else 2.0))
    n_mu = policy.model.first.n_params
    d_sigma = policy.model.second.n_features
    log_sigma = EXTREME_LOG_SIGMA / np.sqrt(2) if extreme else 1.5
    mu = reals(n_mu, EXTREME_LOGIT if extreme else 2.0)
    return np.concatenate([draw(mu), draw(reals(policy.n_params - n_mu, log_sigma / d_sigma))])


@st.composite
def instances(draw: Any, which: st.SearchStrategy[_Kind] = policies, extreme: bool = False) -> Instance:
    """A policy, θ, and a small batch with actions and weights."""
    policy, space = draw(which)
    theta = draw(thetas(policy, extreme))
    obs = draw(observations(space, draw(batch_sizes)))
    x = policy.features(obs)
    a = draw(actions(policy.distribution, policy.eta(theta, x)))
    return Instance(policy, space, theta, obs, x, a, draw(weights(len(obs))))


# Finite problems


class Problem(NamedTuple):
    """A finite MDP, a softmax policy on it, θ, and a generator for whatever else a test draws."""

    mdp: TabularMDP
    policy: Policy
    theta: np.ndarray
    rng: np.random.Generator


def state_features(rng: np.random.Generator, n_states: int, d: int) -> Callable[[np.ndarray], np.ndarray]:
    """Random dense features of states: with d < S, states share parameters."""
    table = rng.normal(size=(n_states, d))
    return lambda states: table[states]


@cache
def problem_kinds(episodic: bool | None, discounted: bool | None, most: int) -> st.SearchStrategy[tuple[Any, ...]]:
    """(S, A, branching, episodic, discounted, tabular), in one draw; they shrink to the smallest."""
    either = (False, True)
    return st.sampled_from(
        [
            (S, A, branching, *kind)
            for S in range(2, most + 1)
            for A in (2, 3)
            for branching in range(1, S + 1)
            for kind in product(
                either if episodic is None else (episodic,), either if discounted is None else (discounted,), either
            )
        ]
    )


@st.composite
def problems(draw: Any, episodic: bool | None = None, discounted: bool | None = None, most: int = 5) -> Problem:
    """Garnet problems of 2 to ``most`` states and 2 or 3 actions, with a tabular or an aliased softmax policy.

    ``episodic`` and ``discounted`` fix what is drawn otherwise; only an episodic problem can have γ = 1.
    """
    rng = draw(generators)
    S, A, branching, episodic, discounted, tabular = draw(problem_kinds(episodic, discounted, most))
    mdp = garnet(
        S,
        A,
        branching,
        gamma=rng.uniform(0.1, 0.95) if discounted or not episodic else 1.0,
        termination=rng.uniform(0.1, 0.6) if episodic else 0.0,
        seed=rng,
    )
    features = F.OneHot(mdp.n_states) if tabular else state_features(rng, mdp.n_states, 2)
    policy = Policy(features, Linear(mdp.n_states if tabular else 2, A), Categorical(A))
    return Problem(mdp, policy, rng.normal(size=policy.n_params), rng)


# Values


def layered(rng, gamma, n=3, A=2):
    """A problem whose episodes end within n steps, as each leads to a higher state."""
    P, R = np.zeros((n + 1, A, n + 1)), rng.normal(size=(n + 1, A, n + 1))
    for s in range(n):
        P[s, :, s + 1 :] = rng.dirichlet(np.ones(n - s), size=A)
    P[n, :, n], R[n] = 1, 0
    mdp = TabularMDP(P, R, gamma, np.append(np.full(n, 1 / n), 0))
    policy = SoftmaxLinear(F.OneHot(n + 1), A)
    return Problem(mdp, policy, rng.normal(size=policy.n_params), rng)


layers = st.builds(layered, generators, st.sampled_from([0.5, 0.9, 1.0]))


lams = st.sampled_from([0.0, 0.5, 0.9, 1.0])
