"""Every kind of feature against its formula written out row by row, and how observations are scaled and checked."""

import json
import math
from itertools import product

import numpy as np
import pytest
import strategies as S
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from npg import features as F

KINDS = [F.Affine, F.Polynomial, F.Fourier, F.RBF, F.RandomFourier]
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
    if isinstance(features, F.OneHot):
        assert x.shape == (len(obs), 1)
        assert x.dtype.kind == "i"
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


@pytest.mark.equation("3.14")
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


@pytest.mark.equation("3.15")
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


@pytest.mark.equation("3.16")
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
    with pytest.raises(ValueError, match="observations must lie in"):
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
    ],
)
def test_too_many_features_are_an_error_before_they_are_made(cls, settings, shape):
    with pytest.raises(ValueError, match=f"{cls.__name__} would make .* features, more than {F.MAX_FEATURES}"):
        cls(spaces.Box(-1.0, 1.0, shape), **settings)


def test_as_many_features_as_allowed_are_allowed():
    assert F.RandomFourier(UNIT, n_features=F.MAX_FEATURES).n_features == F.MAX_FEATURES


# Descriptions


@pytest.mark.parametrize("kind", F.KINDS)
def test_every_kind_is_made_by_its_name(kind):
    space = spaces.Discrete(3) if kind == "onehot" else UNIT
    features = F.make(kind, space)
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
    with pytest.raises(ValueError, match="features must be one of onehot, constant, affine"):
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
