"""Every kind of feature against its formula written out row by row, and how observations are scaled and checked."""

import copy
import json
import math
import pickle
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import strategies as S
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import examples

from npg import features as F
from npg.models import Linear
from npg.policies import GaussianLinear, Policy, SoftmaxLinear

KINDS = [F.Affine, F.Polynomial, F.Fourier, F.RBF, F.RandomFourier, F.TileCoding]
EVERY_KIND = pytest.mark.parametrize("cls", KINDS)
UNIT = spaces.Box(-1.0, 1.0, (2,), dtype=np.float64)
LARGEST = np.finfo(np.float32).max  # what Gymnasium's environments write for an infinite bound
CARTPOLE = spaces.Box(np.array([-4.8, -np.inf, -0.4, -LARGEST], dtype=np.float32), LARGEST)


def close(actual, expected):
    """Values of order one after some ten roundings; observations and their scales are of order ten."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def unit_interval(space, obs):
    """Each observation flattened and mapped from [low, high] to [0, 1]."""
    low, high = space.low.ravel(), space.high.ravel()
    return [[(s - l) / (h - l) for s, l, h in zip(row.ravel(), low, high, strict=True)] for row in obs]


@st.composite
def observed(draw, build):
    """(features, space, observations): ``build`` makes the strategy of the features from the space."""
    space = draw(S.boxes())
    return draw(build(space)), space, draw(S.observations(space, draw(S.batch_sizes)))


@st.composite
def any_observed(draw):
    space = draw(S.boxes() | S.discretes())
    return draw(S.features(space)), space, draw(S.observations(space, draw(S.batch_sizes)))


# What holds for every kind


@given(any_observed())
def test_features_have_one_row_per_observation_and_n_features_columns(drawn):
    features, _, obs = drawn
    x = features(obs)
    if isinstance(features, F.OneHot | F.TileCoding):
        assert x.shape == (len(obs), getattr(features, "n_tilings", 1))
        assert x.dtype == np.int64
    else:
        assert x.shape == (len(obs), features.n_features)
        assert x.dtype == np.float64
    assert F.dense(x, features.n_features).shape == (len(obs), features.n_features)


@given(any_observed())
def test_features_of_a_row_do_not_depend_on_the_batch(drawn):
    features, _, obs = drawn
    x = features(obs)
    for i in range(len(obs)):
        close(x[i : i + 1], features(obs[i : i + 1]))


@given(any_observed())
def test_features_of_an_empty_batch_are_empty(drawn):
    features, _, obs = drawn
    x = features(obs[:0])
    assert x.shape == (0, features(obs).shape[1])
    assert x.dtype == features(obs).dtype


@given(any_observed())
def test_the_description_makes_equal_features_again(drawn):
    features, space, obs = drawn
    description = F.describe(features)
    again = F.make(json.loads(json.dumps(description)), space)
    assert type(again) is type(features)
    assert F.describe(again) == description
    np.testing.assert_array_equal(again(obs), features(obs))


@EVERY_KIND
@pytest.mark.parametrize("scale", [2.0, [1.0, 3.0, 0.5, 2.0], np.array([1.0, 3.0, 0.5, 2.0])], ids=str)
def test_the_description_keeps_the_scale(cls, scale):
    features, obs = cls(CARTPOLE, scale=scale), np.array([[0.5, -2.0, 0.1, 3.0]])
    again = F.make(json.loads(json.dumps(F.describe(features))), CARTPOLE)
    np.testing.assert_array_equal(again(obs), features(obs))


@given(observed(S.box_features))
def test_features_do_not_change_the_observations(drawn):
    features, _, obs = drawn
    before = obs.copy()
    features(obs)
    np.testing.assert_array_equal(obs, before)


# The kinds


@given(observed(lambda space: st.just(F.Affine(space))))
def test_affine_is_the_scaled_observation_and_a_one(drawn):
    features, space, obs = drawn
    close(features(obs), [[2 * u - 1 for u in row] + [1] for row in unit_interval(space, obs)])


@given(observed(lambda space: st.just(F.Affine(space, bias=False))))
def test_affine_without_bias_is_the_scaled_observation_alone(drawn):
    features, space, obs = drawn
    assert features.n_features == features.n_inputs == F.Affine(space).n_features - 1
    close(features(obs), [[2 * u - 1 for u in row] for row in unit_interval(space, obs)])
    np.testing.assert_array_equal(features(obs), F.Affine(space)(obs)[:, :-1])


def test_affine_without_bias_is_linear_where_a_scale_is_given():
    features = F.Affine(CARTPOLE, scale=[1.0, 3.0, 0.5, 2.0], bias=False)
    s = np.random.default_rng(0).normal(size=(3, 4))
    np.testing.assert_array_equal(features(np.zeros((2, 4))), np.zeros((2, 4)))
    close(features(2 * s[:2] + s[2]), 2 * features(s[:2]) + features(s[2:]))


def test_the_description_keeps_whether_there_is_a_bias():
    obs = np.array([[0.5, -0.25]])
    for bias in (True, False):
        features = F.Affine(UNIT, bias=bias)
        assert F.describe(features)["bias"] is bias
        again = F.make(json.loads(json.dumps(F.describe(features))), UNIT)
        assert again == features
        np.testing.assert_array_equal(again(obs), features(obs))
    assert F.Affine(UNIT, bias=False) != F.Affine(UNIT)
    assert F.make({"kind": "affine", "bias": False}, UNIT) == F.Affine(UNIT, bias=False)
    assert F.make("affine", UNIT) == F.Affine(UNIT, bias=True)


@given(observed(lambda space: st.builds(F.Polynomial, st.just(space), degree=st.integers(0, 4))))
def test_polynomial_is_every_monomial_up_to_the_degree_once(drawn):
    features, space, obs = drawn
    q = features.n_inputs
    powers = [c for c in product(range(features.degree + 1), repeat=q) if sum(c) <= features.degree]
    assert features.n_features == len(powers) == math.comb(q + features.degree, q)
    for x, u in zip(features(obs), unit_interval(space, obs), strict=True):
        monomials = [math.prod((2 * u[j] - 1) ** c[j] for j in range(q)) for c in powers]
        close(np.sort(x), np.sort(monomials))
        assert x[0] == 1
        if features.degree >= 1:
            close(x[1 : 1 + q], [2 * u_j - 1 for u_j in u])


def test_polynomial_orders_monomials_by_degree():
    x = F.Polynomial(UNIT, degree=2)(np.array([[0.5, -0.25]]))
    close(x, [[1, 0.5, -0.25, 0.25, -0.125, 0.0625]])


@pytest.mark.equation("3.14", defining=True)
@given(observed(lambda space: st.builds(F.Fourier, st.just(space), order=st.integers(0, 3))))
def test_fourier_is_the_cosine_of_pi_c_u_for_every_c(drawn):
    features, space, obs = drawn
    q, n = features.n_inputs, features.order
    expected = [
        [math.cos(math.pi * sum(c[j] * u[j] for j in range(q))) for c in product(range(n + 1), repeat=q)]
        for u in unit_interval(space, obs)
    ]
    assert features.n_features == (n + 1) ** q
    close(features(obs), expected)


@pytest.mark.equation("3.14")
def test_fourier_features_of_one_input_are_orthogonal_over_the_space_and_the_first_is_constant():
    points = 64
    x = F.Fourier(spaces.Box(2.0, 5.0, (1,)), order=5)(2 + 3 * (np.arange(points)[:, None] + 0.5) / points)
    # The midpoint rule is exact for cosines below the number of points.
    close(x.T @ x / points, np.diag([1.0] + [0.5] * 5))
    np.testing.assert_array_equal(x[:, 0], 1)


@pytest.mark.equation("3.15", defining=True)
@given(
    observed(
        lambda space: st.builds(
            F.RBF, st.just(space), n_centres=st.integers(2, 4), width=st.none() | st.floats(0.1, 2.0)
        )
    )
)
def test_rbf_is_a_gaussian_bump_at_every_grid_point_and_a_one(drawn):
    features, space, obs = drawn
    q, n = features.n_inputs, features.n_centres
    width = 1 / (n - 1) if features.width is None else features.width
    centres = list(product([i / (n - 1) for i in range(n)], repeat=q))
    expected = [
        [math.exp(-(math.dist(u, c) ** 2) / (2 * width**2)) for c in centres] + [1] for u in unit_interval(space, obs)
    ]
    assert features.n_features == n**q + 1
    close(features(obs), expected)


@pytest.mark.equation("3.15")
def test_rbf_is_one_at_its_centre_and_exp_minus_half_at_the_neighbours():
    features = F.RBF(spaces.Box(-2.0, 2.0, (1,)), n_centres=5)
    x = features(np.linspace(-2, 2, 5)[:, None])
    close(np.diag(x), 1)
    close(np.diag(x, 1)[:4], np.exp(-0.5))


@pytest.mark.equation("3.16")
@given(observed(lambda space: st.builds(F.RandomFourier, st.just(space), n_features=st.integers(1, 8))))
def test_random_fourier_is_a_cosine_of_amplitude_sqrt_two_over_d(drawn):
    features, space, obs = drawn
    x, D = features(obs), features.n_features
    assert np.abs(x).max() <= math.sqrt(2 / D) * (1 + 1e-15)
    # x_j(u + t e) + x_j(u − t e) = 2 cos(t ω_j·e) x_j(u): constant ratio at all u along each line.
    step = 0.3 * (space.high - space.low)
    ratio_times_x = features(obs + step) + features(obs - step)
    close(ratio_times_x[0] * x, ratio_times_x * x[0])


@pytest.mark.equation("3.16", defining=True)
@pytest.mark.parametrize("length_scale", [0.5, 1.0, 3.0])
def test_random_fourier_inner_products_approximate_the_gaussian_kernel(length_scale):
    D, seeds, rng = 2_000, 50, np.random.default_rng(0)
    low, high = np.array([-3.0, 10.0]), np.array([1.0, 30.0])
    space = spaces.Box(low, high, dtype=np.float64)
    u, v = rng.uniform(-1, 1, size=(2, 20, 2))
    kappa = np.exp(-((u - v) ** 2).sum(axis=1) / (2 * length_scale**2))
    estimates = []
    for seed in range(seeds):
        features = F.RandomFourier(space, n_features=D, length_scale=length_scale, seed=seed)
        x, y = (features(low + (w + 1) / 2 * (high - low)) for w in (u, v))
        estimates.append((x * y).sum(axis=1))
    variance = (1 - kappa**2 + kappa**4 / 2) / D
    z = (np.mean(estimates, axis=0) - kappa) / np.sqrt(variance / seeds)
    assert np.abs(z).max() < 6  # 20 pairs, 2e-9 each
    # Relative standard deviation of a variance from 50 nearly normal values: sqrt(2/49) = 0.2.
    np.testing.assert_allclose(np.var(estimates, axis=0, ddof=1) / variance, 1, atol=6 * math.sqrt(2 / (seeds - 1)))


def test_random_fourier_depends_on_the_seed_alone():
    obs = np.array([[0.3, -0.7]])
    x = F.RandomFourier(UNIT, seed=1)(obs)
    np.testing.assert_array_equal(x, F.RandomFourier(UNIT, seed=1)(obs))
    assert not np.allclose(x, F.RandomFourier(UNIT, seed=2)(obs))


@given(st.integers(0, 5))
def test_constant_is_one(rows):
    for obs in (np.zeros((rows, 3)), np.zeros(rows, dtype=int)):
        np.testing.assert_array_equal(F.Constant()(obs), np.ones((rows, 1)))


@pytest.mark.equation("3.8", "3.13")
@given(S.discretes(), st.data())
def test_one_hot_is_the_index_of_the_indicator_of_the_state(space, data):
    features = F.OneHot(space)
    obs = data.draw(S.observations(space, 4))
    indicator = [[float(s == space.start + j) for j in range(space.n)] for s in obs]
    np.testing.assert_array_equal(F.dense(features(obs), features.n_features), indicator)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_one_hot_takes_any_integer_type_and_any_start(dtype):
    np.testing.assert_array_equal(F.OneHot(spaces.Discrete(3, start=2))(np.array([2, 4], dtype=dtype)), [[0], [2]])
    assert F.OneHot(spaces.Discrete(3, start=2))(np.array([2], dtype=dtype)).dtype.kind == "i"


def test_one_hot_of_a_number_is_that_of_the_discrete_space():
    assert F.OneHot(3) == F.OneHot(spaces.Discrete(3))


def test_a_table_has_the_features_of_each_state_and_is_kept_with_a_run():
    space = spaces.Discrete(3, start=2)
    features = F.make({"kind": "table", "table": [[0.5, 1], [0, 0], [0, 0]]}, space)
    np.testing.assert_array_equal(features(np.array([4, 2])), [[0, 0], [0.5, 1]])
    assert features.n_features == 2
    assert F.make(F.describe(features), space) == features != F.Table(space, np.eye(3))


@pytest.mark.parametrize(
    "table", [np.eye(2), [[1], [2], [np.inf]], [[1], [2, 3], [4]], [1, 2, 3], "abc", [[]] * 3, None]
)
def test_a_table_has_a_row_of_numbers_for_each_state(table):
    with pytest.raises(ValueError, match="table must have a row of finite numbers for each of 3 states, got"):
        F.Table(3, table)


def test_a_table_is_not_made_without_one():
    with pytest.raises(ValueError, match="table features need their table"):
        F.make("table", spaces.Discrete(3))


@pytest.mark.equation("3.13")
def test_dense_adds_one_for_every_occurrence_of_an_index():
    np.testing.assert_array_equal(F.dense(np.array([[0, 2], [1, 1]]), 3), [[1, 0, 1], [0, 2, 0]])
    x = np.array([[0.5, 2.0]])
    assert F.dense(x, 2) is x


def test_rows_takes_the_same_rows_of_one_array_or_of_a_pair():
    x, y = np.arange(6).reshape(3, 2), np.arange(3)
    np.testing.assert_array_equal(F.rows(x, [2, 0]), [[4, 5], [0, 1]])
    pair = F.rows((x, y), [2, 0])
    np.testing.assert_array_equal(pair[0], [[4, 5], [0, 1]])
    np.testing.assert_array_equal(pair[1], [2, 0])


def test_a_pair_computes_shared_features_once():
    affine, constant, obs = F.Affine(UNIT), F.Constant(), np.zeros((3, 2))
    shared = F.Pair(affine, affine)(obs)
    assert shared[0] is shared[1]
    own = F.Pair(affine, constant)(obs)
    np.testing.assert_array_equal(own[0], affine(obs))
    np.testing.assert_array_equal(own[1], constant(obs))


# Tile coding


@st.composite
def tilings(draw, hashed=None):
    """Tile coding of a bounded Box of any shape, up to 12 tilings; ``hashed`` fixes whether there is a table."""
    space = draw(S.boxes())
    q = math.prod(space.shape)
    K = draw(st.integers(1, 12))
    n_tiles = draw(st.integers(1, 6) | st.lists(st.integers(1, 6), min_size=q, max_size=q))
    hashed = draw(st.booleans()) if hashed is None else hashed
    return F.TileCoding(space, n_tilings=K, n_tiles=n_tiles, table_size=draw(st.integers(K, 99)) if hashed else None)


@st.composite
def tiled(draw, hashed=None):
    """(tile coding, observations), some of which lie outside the bounds."""
    features = draw(tilings(hashed))
    low, high = features.space.low, features.space.high
    u = draw(S.reals((draw(S.batch_sizes), *features.space.shape), 1.0))
    return features, (low + high) / 2 + draw(st.sampled_from([0.5, 1.0])) * u * (high - low)


def tiles_per_component(features):
    return np.broadcast_to(features.n_tiles, features.n_inputs)


def coordinates(features, x):
    """c_ji of Eq. (7.22) from the active indices: (B, K, q)."""
    shape = tiles_per_component(features) + 1
    local = x - np.arange(features.n_tilings) * math.prod(shape.tolist())
    return np.stack(np.unravel_index(local, shape), axis=-1)


def shared(features, s, others):
    """In how many tilings the tile of ``s`` is that of each of the others."""
    return (features(np.asarray(others)) == features(np.asarray([s]))).sum(axis=1)


@pytest.mark.equation("7.22")
@given(tiled())
def test_every_tiling_has_one_active_tile_in_a_block_of_its_own(drawn):
    features, obs = drawn
    K, x = features.n_tilings, features(obs)
    if features.table_size is None:
        assert features.n_features == K * math.prod((tiles_per_component(features) + 1).tolist())
    else:
        assert features.n_features == K * (features.table_size // K)
    np.testing.assert_array_equal(x // (features.n_features // K), np.tile(np.arange(K), (len(obs), 1)))
    assert F.dense(x, features.n_features).max() == 1


@pytest.mark.equation("7.22", defining=True)
@examples(200)
@given(tiled(hashed=False))
def test_the_active_tile_is_the_floor_of_the_displaced_coordinate(drawn):
    """In exact arithmetic; states less than 14 roundings below a boundary may count as on it."""
    features, obs = drawn
    K, n = features.n_tilings, tiles_per_component(features).tolist()
    low, high = ([Fraction(v) for v in bound.ravel().tolist()] for bound in (features.space.low, features.space.high))
    c = coordinates(features, features(obs))
    for row, s in enumerate(obs.reshape(len(obs), -1).tolist()):
        for i, s_i in enumerate(s):
            u = min(max(n[i] * (Fraction(s_i) - low[i]) / (high[i] - low[i]), 0), n[i])
            for j in range(K):
                o = Fraction(j * (2 * (i + 1) - 1) % K, K)
                just_above = min(u * (1 + 14 * Fraction(1, 2**53)), n[i])
                assert math.floor(u + o) <= c[row, j, i] <= math.floor(just_above + o)


@pytest.mark.equation("7.22")
@pytest.mark.parametrize(
    ("n_tilings", "offsets"),
    [
        (1, [[0], [0], [0]]),
        (4, [[0, 1, 2, 3], [0, 3, 2, 1], [0, 1, 2, 3]]),
        (6, [[0, 1, 2, 3, 4, 5], [0, 3, 0, 3, 0, 3], [0, 5, 4, 3, 2, 1]]),
        (8, [[0, 1, 2, 3, 4, 5, 6, 7], [0, 3, 6, 1, 4, 7, 2, 5], [0, 5, 2, 7, 4, 1, 6, 3]]),
    ],
)
def test_the_tilings_are_displaced_by_odd_multiples_of_a_kth_of_a_tile(n_tilings, offsets):
    """A displacement of m/K is seen at the state 1 − m/K from which on the second tile is active."""
    features = F.TileCoding(spaces.Box(0.0, 1.0, (3,)), n_tilings=n_tilings, n_tiles=1)
    for i in range(3):
        obs = np.zeros((n_tilings + 1, 3))
        obs[:, i] = np.arange(n_tilings + 1) / n_tilings
        c = coordinates(features, features(obs))[:, :, i]
        np.testing.assert_array_equal(c[0], 0)
        np.testing.assert_array_equal(n_tilings - c.argmax(axis=0), offsets[i])


@pytest.mark.equation("7.22")
def test_the_tiles_of_a_small_example():
    """Two tilings of 2 × 1 tiles over [0, 4] × [0, 1]: 3 × 2 tiles each, the second displaced by (1/2, 1/2)."""
    space = spaces.Box(np.zeros(2), np.array([4.0, 1.0]), dtype=np.float64)
    features = F.TileCoding(space, n_tilings=2, n_tiles=[2, 1])
    obs = np.array([[0.0, 0.0], [0.9, 0.4], [1.0, 0.4], [1.0, 0.5], [2.0, 0.0], [3.0, 0.5], [4.0, 1.0]])
    assert features.n_features == 12
    np.testing.assert_array_equal(features(obs), [[0, 6], [0, 6], [0, 8], [0, 9], [2, 8], [2, 11], [5, 11]])


@pytest.mark.equation("7.22")
@given(tilings(hashed=False))
def test_the_bounds_lie_in_the_first_and_the_last_tile_of_every_tiling(features):
    ends = coordinates(features, features(np.array([features.space.low, features.space.high])))
    np.testing.assert_array_equal(ends[0], 0)
    np.testing.assert_array_equal(ends[1], np.broadcast_to(tiles_per_component(features), ends[1].shape))


@pytest.mark.parametrize("space", [spaces.Box(0.0, 490.0, (1,)), spaces.Box(-245.0, 245.0, (1,))], ids=str)
def test_a_state_on_a_boundary_is_in_the_tile_above_it(space):
    """Tiles of length 49; in floating point 49 (1/49) is less than 1."""
    assert 49 * (1 / 49) < 1
    x = F.TileCoding(space, n_tilings=1, n_tiles=10)(space.low + 49.0 * np.arange(11)[:, None])
    np.testing.assert_array_equal(x[:, 0], np.arange(11))


@given(tilings(), st.data())
def test_observations_outside_the_range_fall_into_the_outermost_tiles(features, data):
    low, high = features.space.low, features.space.high
    far = st.sampled_from([0.0, 0.3, 1.0, 1.5, -0.5, 1e300, -1e300, np.inf, -np.inf])
    u = data.draw(st.lists(far, min_size=features.n_inputs, max_size=features.n_inputs))
    obs = low + np.reshape(u, low.shape) * (high - low)
    np.testing.assert_array_equal(features(obs[None]), features(np.clip(obs, low, high)[None]))


def test_a_scale_covers_plus_and_minus_itself_with_tiles():
    features = F.TileCoding(CARTPOLE, n_tilings=2, n_tiles=[1, 2, 1, 4], scale=[1.0, 3.0, 0.5, 2.0])
    scale = np.array(features.scale)
    c = coordinates(features, features(np.array([-9 * scale, -scale, 0 * scale, scale, 9 * scale])))
    np.testing.assert_array_equal(c[:2], np.zeros((2, 2, 4)))
    np.testing.assert_array_equal(c[2], [[0, 1, 0, 2], [1, 1, 1, 2]])
    np.testing.assert_array_equal(c[3:], np.broadcast_to([1, 2, 1, 4], (2, 2, 4)))


@given(tiled())
def test_single_precision_observations_are_tiled_in_double_precision(drawn):
    features, obs = drawn
    single = obs.astype(np.float32)
    np.testing.assert_array_equal(features(single), features(single.astype(np.float64)))


@pytest.mark.equation("7.22")
def test_states_half_a_tile_apart_in_both_directions_share_one_to_three_of_eight_tilings():
    """The numbers of chapter 7, over one period of the pattern; with equal offsets it would be zero to four."""
    features = F.TileCoding(spaces.Box(0.0, 4.0, (2,)), n_tilings=8, n_tiles=4)
    u = 1 + (np.arange(16) + 0.5) / 16
    s = np.array(list(product(u, u)))
    counts = (features(s) == features(s + 0.5)).sum(axis=1)
    assert (counts.min(), counts.max(), counts.mean()) == (1, 3, 2)
    o = np.arange(8) / 8
    equal = np.floor(s[:, None] + o[:, None]), np.floor(s[:, None] + 0.5 + o[:, None])
    counts = (equal[0] == equal[1]).all(axis=-1).sum(axis=1)
    assert (counts.min(), counts.max(), counts.mean()) == (0, 4, 2)


@pytest.mark.equation("7.22")
@given(tilings(hashed=False), st.data())
def test_a_state_shares_no_more_tilings_with_a_state_further_away(features, data):
    """Further in every component at once, to the same side."""
    q, low, high = features.n_inputs, features.space.low, features.space.high
    u = np.sort(data.draw(S.reals((4, q), 1.0)), axis=0).reshape(4, *low.shape)
    s = low + (u + 1) / 2 * (high - low)
    counts = shared(features, s[0], s)
    assert counts[0] == features.n_tilings
    assert (np.diff(counts) <= 0).all()


@pytest.mark.equation("7.22")
@pytest.mark.parametrize("K", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("i", range(3))
def test_along_an_axis_every_kth_of_a_tile_loses_one_shared_tiling(K, i):
    """For K a power of two: the boundaries are evenly spread in every direction."""
    features = F.TileCoding(spaces.Box(0.0, 4.0, (3,)), n_tilings=K, n_tiles=4)
    obs = np.full((2 * K + 1, 3), 1 + 0.3 / K)
    obs[:, i] += np.arange(2 * K + 1) / K
    np.testing.assert_array_equal(shared(features, obs[0], obs), np.maximum(K - np.arange(2 * K + 1), 0))


@pytest.mark.equation("7.22")
@given(tiled(), S.seeds)
def test_a_step_of_size_alpha_changes_the_value_by_alpha_times_the_number_of_shared_tilings(drawn, seed):
    """At the state itself by α K δ: without duplicates in a row this holds for hashed tiles, too."""
    features, obs = drawn
    rng = np.random.default_rng(seed)
    model, x = Linear(features.n_features, 1), features(obs)
    w, alpha, delta = rng.normal(size=model.n_params), 0.1, rng.normal()
    close(model.forward(w, x)[:, 0], [sum(w[tile] for tile in row) for row in x])
    stepped = w + alpha * model.vjp(w, x[:1], np.array([[delta]]))
    change = (model.forward(stepped, x) - model.forward(w, x))[:, 0]
    close(change[0], alpha * features.n_tilings * delta)
    close(change, alpha * delta * shared(features, obs[0], obs))


@given(tiled(), st.integers(1, 3), S.seeds)
def test_active_tiles_and_their_dense_form_give_the_same_products(drawn, k, seed):
    features, obs = drawn
    rng = np.random.default_rng(seed)
    model, x = Linear(features.n_features, k), features(obs)
    full = F.dense(x, features.n_features)
    np.testing.assert_array_equal(full.sum(axis=1), features.n_tilings)
    theta, v, u = rng.normal(size=model.n_params), rng.normal(size=model.n_params), rng.normal(size=(len(x), k))
    close(model.forward(theta, x), model.forward(theta, full))
    close(model.vjp(theta, x, u), model.vjp(theta, full, u))
    close(model.jvp(theta, x, v), model.jvp(theta, full, v))
    np.testing.assert_array_equal(model.jacobian(theta, x), model.jacobian(theta, full))


@given(tiled(), st.booleans(), S.seeds)
def test_policies_on_active_tiles_and_on_their_dense_form_agree(drawn, gaussian, seed):
    features, obs = drawn
    rng = np.random.default_rng(seed)
    policy = GaussianLinear(features, features, 2) if gaussian else SoftmaxLinear(features, 3)

    def as_dense(obs):
        full = F.dense(features(obs), features.n_features)
        return (full, full) if gaussian else full

    densely = Policy(as_dense, policy.model, policy.distribution)
    theta, v = 0.1 * rng.normal(size=(2, policy.n_params))  # σ of order one with twelve tilings
    x, y, w = policy.features(obs), densely.features(obs), rng.normal(size=len(obs))
    a = policy.sample(theta, x, np.random.default_rng(seed))
    close(densely.sample(theta, y, np.random.default_rng(seed)), a)
    close(policy.log_prob(theta, x, a), densely.log_prob(theta, y, a))
    close(policy.score(theta, x, a), densely.score(theta, y, a))
    close(policy.weighted_score(theta, x, a, w), densely.weighted_score(theta, y, a, w))
    close(policy.entropy_grad(theta, x, w), densely.entropy_grad(theta, y, w))
    close(policy.fisher_vector_product(theta, x, v), densely.fisher_vector_product(theta, y, v))


# Tile coding, hashed


@given(tiled(hashed=False), st.integers(12, 99))
def test_states_that_share_a_tile_share_its_place_in_the_table(drawn, table_size):
    features, obs = drawn
    hashed = F.TileCoding(features.space, n_tilings=features.n_tilings, n_tiles=features.n_tiles, table_size=table_size)
    tile, place = features(obs), hashed(obs)
    assert (place[:, None] == place)[tile[:, None] == tile].all()


def test_the_places_of_tiles_never_change_because_saved_weights_depend_on_them():
    """Recomputed in Python's integers; four rows written out."""
    n, K, M, golden = 1000, 4, 256, 0x9E3779B97F4A7C15
    obs = np.linspace(-1, 1, 600).reshape(200, 3)  # 599 is prime: only −1 and 1 lie on a boundary
    expected = []
    for row in obs.tolist():
        c = [[math.floor((s + 1) * n / 2 + (j * (2 * i + 1) % K) / K) for i, s in enumerate(row)] for j in range(K)]
        h = [sum(c[j][i] * golden ** (i + 1) for i in range(3)) % 2**64 for j in range(K)]
        expected.append([j * M + (((h[j] ^ (h[j] >> 32)) * golden ** (j + 1)) % 2**64 >> 32) % M for j in range(K)])
    x = F.TileCoding(spaces.Box(-1.0, 1.0, (3,)), n_tilings=K, n_tiles=n, table_size=K * M + 3)(obs)
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(
        x[[0, 1, 100, 199]], [[77, 344, 653, 994], [107, 484, 754, 858], [162, 495, 526, 969], [249, 353, 651, 942]]
    )


def every_tile(n, q, K, table_size):
    """Places of n^q tiles in the table of each tiling: states just above the corners have the same c in all tilings."""
    features = F.TileCoding(spaces.Box(0.0, float(n), (q,)), n_tilings=K, n_tiles=n, table_size=table_size)
    states = np.array(list(product(np.arange(n), repeat=q))) + 0.5 / K
    return features(states) % (table_size // K), table_size // K


def assert_uniform(places, size):
    """χ² between the quantiles of 10⁻⁶ and 1 − 10⁻⁶: neither clustered nor suspiciously even."""
    expected = len(places) / size
    assert expected >= 5
    chi2 = ((np.bincount(places, minlength=size) - expected) ** 2 / expected).sum()
    lowest, highest = stats.chi2.ppf([1e-6, 1 - 1e-6], size - 1)
    assert lowest < chi2 < highest


@pytest.mark.parametrize(("n", "q"), [(5000, 1), (80, 2), (17, 3), (9, 4), (5, 6), (2, 13)])
@pytest.mark.parametrize("size", [64, 100, 256])
def test_hashing_spreads_tiles_uniformly_over_the_table(n, q, size):
    places, M = every_tile(n, q, 4, 4 * size)
    for tiling in places.T:
        assert_uniform(tiling, M)


@pytest.mark.parametrize(("n", "q"), [(5000, 1), (80, 2), (17, 3), (9, 4), (5, 6), (2, 13)])
def test_tiles_that_collide_in_one_tiling_do_not_collide_more_often_in_another(n, q):
    places, M = every_tile(n, q, 4, 4 * 25)
    for j, k in [(0, 1), (0, 3), (1, 2), (2, 3)]:
        assert_uniform(places[:, j] * M + places[:, k], M**2)


def test_no_displacement_collides_everywhere():
    """A linear hash would give a tile and its neighbour at some fixed distance the same place all over the grid."""
    places, M = every_tile(80, 2, 1, 64)
    grid = places.reshape(80, 80)
    for down, right in product(range(8), repeat=2):
        if (down, right) != (0, 0):
            same = grid[: 80 - down, : 80 - right] == grid[down:, right:]
            assert abs(same.mean() - 1 / M) < 6 * math.sqrt(1 / M / same.size)


# Tile coding, the memo

TILES = F.TileCoding(UNIT, n_tilings=4, n_tiles=3)


def counted(monkeypatch):
    """A list that grows with every computation of tiles, not with what is remembered."""
    calls = []
    flat = F.TileCoding._flat
    monkeypatch.setattr(F.TileCoding, "_flat", lambda self, obs: calls.append(obs) or flat(self, obs))
    return calls


@given(tilings(), st.data())
def test_what_was_asked_before_makes_no_difference(features, data):
    observations = [data.draw(S.observations(features.space, data.draw(S.batch_sizes))) for _ in range(3)]
    for i in data.draw(st.lists(st.integers(0, 2), max_size=10)):
        fresh = F.make(F.describe(features), features.space)
        np.testing.assert_array_equal(features(observations[i]), fresh(observations[i]))


def test_the_same_observation_twice_in_a_row_is_computed_once(monkeypatch):
    features, calls = copy.copy(TILES), counted(monkeypatch)
    a, b = np.array([[0.1, 0.9]]), np.array([[-0.8, 0.2]])
    first = features(a)
    assert features(a.copy()) is first
    assert len(calls) == 1
    assert not np.array_equal(features(b), first)
    np.testing.assert_array_equal(features(a), first)
    assert len(calls) == 3


def test_the_memo_is_not_fooled_by_an_observation_changed_in_place():
    features, obs = copy.copy(TILES), np.array([[0.1, 0.9]])
    before = features(obs)
    kept = before.copy()
    obs[:] = -0.8, 0.2
    np.testing.assert_array_equal(features(obs), F.TileCoding(UNIT, n_tilings=4, n_tiles=3)(obs))
    np.testing.assert_array_equal(before, kept)


def test_the_memo_tells_apart_equal_bytes_of_another_shape_or_type():
    one = F.TileCoding(spaces.Box(-8.0, 8.0, (2,)), n_tilings=4, n_tiles=4)
    floats = np.array([[1.0, -2.0]])
    fresh = one(floats.view(np.int64))  # as integers of the order of 10¹⁸, clipped
    assert not np.array_equal(one(floats), fresh)
    assert one(np.zeros((0, 2))).shape == (0, 4)
    column = F.TileCoding(spaces.Box(-8.0, 8.0, (1,)), n_tilings=4, n_tiles=4)
    assert column(floats.T).shape == (2, 4)
    with pytest.raises(ValueError, match=r"observations must have shape \(B, 1\)"):
        column(floats)


@pytest.mark.parametrize("table_size", [None, 64])
def test_the_result_is_read_only_so_that_the_memo_cannot_be_corrupted(table_size):
    x = F.TileCoding(UNIT, table_size=table_size)(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="read-only"):
        x[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        x += 1


def test_the_memo_is_no_part_of_the_features():
    used, fresh = F.TileCoding(UNIT), F.TileCoding(UNIT)
    fresh(np.zeros((1, 2)))
    once = pickle.dumps(fresh), F.describe(fresh), repr(fresh)
    used(np.zeros((1, 2)))
    used(np.ones((5, 2)))
    assert used == fresh
    assert (pickle.dumps(used), F.describe(used), repr(used)) == once
    for again in (pickle.loads(pickle.dumps(used)), copy.copy(used), copy.deepcopy(used)):
        assert again == used
        assert "_memo" not in vars(again)
        np.testing.assert_array_equal(again(np.ones((1, 2))), used(np.ones((1, 2))))


# Tile coding, its parameters


@pytest.mark.parametrize("n_tiles", [3, np.int32(3), [3, 2], (3, 2), np.array([3, 2]), [4]], ids=str)
@pytest.mark.parametrize("table_size", [None, 50])
def test_the_description_keeps_the_tiles_and_the_table(n_tiles, table_size):
    features = F.TileCoding(UNIT, n_tilings=5, n_tiles=n_tiles, table_size=table_size)
    assert features.n_tiles == (tuple(np.ravel(n_tiles).tolist()) if np.ndim(n_tiles) else n_tiles)
    description = F.describe(features)
    assert description == {
        "kind": "tile",
        "n_tilings": 5,
        "n_tiles": np.asarray(n_tiles).tolist(),
        "table_size": table_size,
        "scale": None,
    }
    again = F.make(json.loads(json.dumps(description)), UNIT)
    assert again == features
    obs = np.random.default_rng(0).uniform(-1, 1, size=(50, 2))
    np.testing.assert_array_equal(again(obs), features(obs))


def test_one_number_of_tiles_is_that_of_every_component():
    obs = np.random.default_rng(0).uniform(-1, 1, size=(50, 2))
    np.testing.assert_array_equal(F.TileCoding(UNIT, n_tiles=3)(obs), F.TileCoding(UNIT, n_tiles=[3, 3])(obs))


@pytest.mark.parametrize("table_size", [None, 64])
def test_tiles_of_what_is_not_a_number_are_an_error(table_size):
    with pytest.raises(ValueError, match="observations must be numbers, got NaN"):
        F.TileCoding(UNIT, table_size=table_size)(np.array([[0.0, 0.0], [0.5, np.nan]]))


# Scaling


def test_bounds_map_to_minus_one_and_one():
    space = spaces.Box(np.array([-3.0, 10.0]), np.array([1.0, 30.0]), dtype=np.float64)
    obs = np.array([[-3.0, 10.0], [1.0, 30.0], [-1.0, 20.0], [3.0, 0.0]])
    np.testing.assert_array_equal(F.Affine(space)(obs)[:, :2], [[-1, -1], [1, 1], [0, 0], [2, -2]])


def test_observations_outside_the_bounds_are_not_clipped():
    close(F.Affine(UNIT)(np.array([[7.0, -7.0]])), [[7, -7, 1]])


@EVERY_KIND
@pytest.mark.parametrize("bounds", [(0.0, np.inf), (-np.inf, 0.0), (-1.0, LARGEST), (-LARGEST, 1.0)])
def test_infinite_bounds_need_a_scale(cls, bounds):
    with pytest.raises(ValueError, match=rf"^{cls.__name__}: .*infinite bounds.*give scale"):
        cls(spaces.Box(*bounds, (2,)))


@pytest.mark.parametrize(
    ("scale", "u"), [(2.0, [0.5, -1.0]), ([1.0, 4.0], [1.0, -0.5]), (np.array([4.0]), [0.25, -0.5])]
)
@pytest.mark.parametrize("space", [spaces.Box(-np.inf, np.inf, (2,)), UNIT, spaces.Box(0.0, 9.0, (2,))], ids=str)
def test_a_scale_replaces_the_bounds(space, scale, u):
    np.testing.assert_array_equal(F.Affine(space, scale=scale)(np.array([[1.0, -2.0]])), [[*u, 1]])


@pytest.mark.equation("3.14", "3.15")
def test_a_scale_maps_plus_and_minus_itself_to_the_ends_of_the_unit_interval():
    space, obs = spaces.Box(-np.inf, np.inf, (1,)), np.array([[-5.0], [0.0], [5.0]])
    close(F.Fourier(space, order=1, scale=5.0)(obs)[:, 1], [1, 0, -1])
    close(F.RBF(space, n_centres=3, scale=5.0)(obs)[:, :3].argmax(axis=1), [0, 1, 2])


@EVERY_KIND
@pytest.mark.parametrize(
    "scale", [0.0, -1.0, np.nan, np.inf, [1.0, 0.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], "wide"], ids=str
)
def test_a_scale_that_is_not_one_positive_number_per_component_is_an_error_that_names_it(cls, scale):
    with pytest.raises(ValueError, match="scale must be one positive number or 2 of them"):
        cls(UNIT, scale=scale)


@EVERY_KIND
def test_degenerate_bounds_give_finite_features(cls):
    space = spaces.Box(np.array([3.0, 0.0]), np.array([3.0, 1.0]), dtype=np.float64)
    assert np.isfinite(cls(space)(np.array([[3.0, 0.5]]))).all()
    close(F.Affine(space)(np.array([[3.0, 0.5], [4.0, 1.0]])), [[0, 0, 1], [1, 1, 1]])


@EVERY_KIND
def test_a_box_of_several_axes_is_flattened(cls):
    rng = np.random.default_rng(0)
    low = rng.normal(size=(2, 2))
    obs = low + rng.uniform(size=(4, 2, 2))
    shaped = cls(spaces.Box(low, low + 1, dtype=np.float64))
    flat = cls(spaces.Box(low.ravel(), low.ravel() + 1, dtype=np.float64))
    np.testing.assert_array_equal(shaped(obs), flat(obs.reshape(4, 4)))


def test_a_box_of_no_axes_has_one_component():
    close(F.Affine(spaces.Box(0.0, 4.0, ()))(np.array([0.0, 3.0])), [[-1, 1], [0.5, 1]])


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64])
def test_features_are_computed_in_double_precision_whatever_the_type_of_the_observation(dtype):
    x = F.Affine(spaces.Box(0, 3, (1,), dtype=dtype))(np.array([[1]], dtype=dtype))
    assert x.dtype == np.float64
    close(x, [[-1 / 3, 1]])


# Errors


@EVERY_KIND
@pytest.mark.parametrize("obs", [np.zeros(2), np.zeros((3, 3)), np.zeros((3, 2, 1))], ids=lambda o: str(o.shape))
def test_observations_of_the_wrong_shape_are_an_error_that_names_the_right_one(cls, obs):
    with pytest.raises(ValueError, match=r"observations must have shape \(B, 2\)"):
        cls(UNIT)(obs)


@pytest.mark.parametrize(
    "obs", [np.zeros(2), np.zeros((2, 1), dtype=int), np.int64(0)], ids=["floats", "matrix", "scalar"]
)
def test_one_hot_observations_must_be_a_vector_of_integers(obs):
    with pytest.raises(ValueError, match=r"observations must be integers of shape \(B,\)"):
        F.OneHot(3)(obs)


@pytest.mark.parametrize("obs", [[1, 5], [1, 4, 0], [-1]])
def test_one_hot_observations_outside_the_space_are_an_error(obs):
    with pytest.raises(ValueError, match="observations must be from 1 to 4, got"):
        F.OneHot(spaces.Discrete(4, start=1))(np.array(obs))


@EVERY_KIND
def test_box_features_of_another_space_are_an_error(cls):
    with pytest.raises(TypeError, match=f"{cls.__name__} needs a Box observation space"):
        cls(spaces.Discrete(3))


@pytest.mark.parametrize("space", [UNIT, spaces.MultiDiscrete([2, 2]), spaces.Tuple((spaces.Discrete(2),))], ids=str)
def test_one_hot_of_another_space_is_an_error(space):
    with pytest.raises(TypeError, match="OneHot needs a Discrete observation space"):
        F.OneHot(space)


@pytest.mark.parametrize(
    ("cls", "settings", "name"),
    [
        (F.Polynomial, {"degree": -1}, "degree"),
        (F.Polynomial, {"degree": 1.5}, "degree"),
        (F.Fourier, {"order": -1}, "order"),
        (F.Fourier, {"order": True}, "order"),
        (F.RBF, {"n_centres": 1}, "n_centres"),
        (F.RBF, {"width": 0.0}, "width"),
        (F.RBF, {"width": np.nan}, "width"),
        (F.RandomFourier, {"n_features": 0}, "n_features"),
        (F.RandomFourier, {"length_scale": -1.0}, "length_scale"),
        (F.TileCoding, {"n_tilings": 0}, "n_tilings"),
        (F.TileCoding, {"n_tilings": 2.0}, "n_tilings"),
        (F.TileCoding, {"n_tiles": 0}, "n_tiles"),
        (F.TileCoding, {"n_tiles": True}, "n_tiles"),
        (F.TileCoding, {"n_tiles": 8.0}, "n_tiles"),
        (F.TileCoding, {"n_tiles": "many"}, "n_tiles"),
        (F.TileCoding, {"n_tiles": [4, -1]}, "n_tiles"),
        (F.TileCoding, {"n_tiles": [4, 4, 4]}, "n_tiles"),
        (F.TileCoding, {"n_tiles": [[4, 4]]}, "n_tiles"),
        (F.TileCoding, {"n_tiles": [4, [4]]}, "n_tiles"),
        (F.TileCoding, {"n_tilings": 8, "table_size": 7}, "table_size"),
        (F.TileCoding, {"table_size": 64.0}, "table_size"),
    ],
)
def test_a_parameter_out_of_range_is_an_error_that_names_it(cls, settings, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        cls(UNIT, **settings)


@pytest.mark.parametrize(
    ("cls", "settings", "shape"),
    [
        (F.Fourier, {"order": 3}, (10,)),
        (F.RBF, {"n_centres": 5}, (8,)),
        (F.Polynomial, {"degree": 40}, (6,)),
        (F.RandomFourier, {"n_features": F.MAX_FEATURES + 1}, (1,)),
        (F.Fourier, {}, (96, 96, 3)),
        (F.RBF, {}, (96, 96, 3)),
        (F.Polynomial, {}, (96, 96, 3)),
        (F.TileCoding, {}, (96, 96, 3)),
        (F.TileCoding, {}, (5,)),
        (F.TileCoding, {"table_size": F.MAX_FEATURES + 8}, (2,)),
        # Nor are they counted one by one.
        (F.Polynomial, {"degree": 10**10}, (1,)),
        (F.Polynomial, {"degree": 10**10}, (96, 96, 3)),
        (F.Fourier, {"order": 10**10}, (96, 96, 3)),
        (F.RBF, {"n_centres": 10**10}, (96, 96, 3)),
        (F.RandomFourier, {"n_features": 10**30}, (4,)),
        (F.TileCoding, {"n_tilings": 10**30}, (4,)),
    ],
)
def test_too_many_features_are_an_error_before_they_are_made(cls, settings, shape):
    with pytest.raises(ValueError, match=f"{cls.__name__} would make .* features, more than {F.MAX_FEATURES}"):
        cls(spaces.Box(-1.0, 1.0, shape), **settings)


def test_as_many_features_as_allowed_are_allowed():
    assert F.RandomFourier(UNIT, n_features=F.MAX_FEATURES).n_features == F.MAX_FEATURES
    assert F.TileCoding(UNIT, table_size=F.MAX_FEATURES).n_features == F.MAX_FEATURES


def test_too_many_tiles_are_an_error_that_advises_a_table_of_fixed_size():
    space = spaces.Box(-1.0, 1.0, (6,))
    with pytest.raises(ValueError, match="give table_size to hash the tiles"):
        F.TileCoding(space)
    assert F.TileCoding(space, table_size=4096).n_features == 4096
    with pytest.raises(ValueError, match="lower table_size"):
        F.TileCoding(space, table_size=10**6)


# Descriptions


@pytest.mark.parametrize("kind", F.KINDS)
def test_every_kind_is_made_by_its_name(kind):
    space = spaces.Discrete(3) if kind in ("onehot", "table") else UNIT
    features = F.make({"kind": kind, "table": [[1, 2]] * 3} if kind == "table" else kind, space)
    assert type(features) is F.KINDS[kind]
    assert F.describe(features)["kind"] == kind


def test_make_passes_the_parameters_and_a_default_scale():
    assert F.make({"kind": "fourier", "order": 5}, UNIT) == F.Fourier(UNIT, order=5)
    assert F.make("affine", CARTPOLE, scale=2.0) == F.Affine(CARTPOLE, scale=2.0)
    assert F.make({"kind": "affine", "scale": 3.0}, CARTPOLE, scale=2.0) == F.Affine(CARTPOLE, scale=3.0)
    assert F.make("onehot", spaces.Discrete(3), scale=2.0) == F.OneHot(3)


def test_make_leaves_the_description_as_it_was():
    description = {"kind": "fourier", "order": 5}
    F.make(description, UNIT, scale=2.0)
    assert description == {"kind": "fourier", "order": 5}


@pytest.mark.parametrize("spec", ["fourrier", {"kind": "tiles"}, {"order": 3}, None, 3])
def test_an_unknown_kind_is_an_error_that_lists_the_kinds(spec):
    with pytest.raises(ValueError, match="features must be one of onehot, table, constant, affine"):
        F.make(spec, UNIT)


@pytest.mark.parametrize(
    ("spec", "space"),
    [
        ({"kind": "fourier", "degree": 3}, UNIT),
        ({"kind": "affine", "space": 3}, UNIT),
        ({"kind": "onehot", "scale": 3}, spaces.Discrete(3)),
    ],
)
def test_an_unknown_parameter_is_an_error_that_lists_the_parameters(spec, space):
    with pytest.raises(ValueError, match=f"{spec['kind']} features take .*, got '{list(spec)[1]}'"):
        F.make(spec, space)


@pytest.mark.parametrize("bias", [2, "no", None])
def test_bias_is_true_or_false(bias):
    with pytest.raises(ValueError, match="bias must be true or false"):
        F.Affine(spaces.Box(-1, 1, (2,)), bias=bias)
