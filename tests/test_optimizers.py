"""Ascent, Adam and RMSProp against transcriptions of their papers, their state, clipping, and the natural step."""

import numpy as np
import pytest
import strategies as S
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from npg.lqr import LQR
from npg.optimizers import OPTIMIZERS, Adam, Ascent, RMSProp, clip_norm, kl_step

EVERY_OPTIMIZER = pytest.mark.parametrize("name", OPTIMIZERS)


def gradients(steps, n=3, seed=0):
    return np.random.default_rng(seed).normal(size=(steps, n)) * [1e-3, 1.0, 1e3][:n]


def kingma_and_ba(theta, gradients, alpha, beta1, beta2, epsilon):
    """Algorithm 1 of Kingma & Ba (2015), which minimises, line by line and component by component."""
    theta = list(theta)
    m, v, t = [0.0] * len(theta), [0.0] * len(theta), 0
    for g in gradients:
        t = t + 1
        for i in range(len(theta)):
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            m_hat = m[i] / (1 - beta1**t)
            v_hat = v[i] / (1 - beta2**t)
            theta[i] = theta[i] - alpha * m_hat / (v_hat**0.5 + epsilon)
    return theta


def run(optimizer, theta, gradients):
    for g in gradients:
        theta = optimizer.step(theta, g)
    return theta


@pytest.mark.equation("1.16")
@given(st.integers(1, 5).flatmap(lambda n: st.tuples(S.reals(n), S.reals(n))), st.floats(1e-3, 100))
def test_ascent_adds_alpha_times_the_gradient(vectors, alpha):
    theta, g = vectors
    expected = [t + alpha * h for t, h in zip(theta, g, strict=True)]
    np.testing.assert_array_equal(Ascent(len(theta), alpha).step(theta, g), expected)


@pytest.mark.parametrize("settings", [{}, {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3}, {"beta1": 0.0}])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_adam_is_algorithm_1_of_kingma_and_ba_upwards(steps, settings):
    theta, g = np.array([1.0, -2.0, 0.5]), gradients(steps)
    parameters = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8} | settings
    expected = kingma_and_ba(theta, -g, 0.1, **parameters)
    np.testing.assert_allclose(run(Adam(3, 0.1, **settings), theta, g), expected, rtol=0, atol=1e-13)


@given(st.sampled_from([1e-6, 1.0, 1e6]), st.sampled_from([-1.0, 1.0]))
def test_the_first_step_of_adam_is_alpha_in_the_direction_of_the_sign(size, sign):
    step = Adam(1, 0.1).step(np.zeros(1), np.array([sign * size]))
    np.testing.assert_allclose(step, [0.1 * sign * size / (size + 1e-8)], rtol=1e-14)


def mnih_et_al(theta, gradients, alpha, beta2, epsilon):
    """RMSProp as in Mnih et al. (2016), Eq. S2 and S3, upwards: line by line and component by component."""
    theta, m = list(theta), [0.0] * len(theta)
    for g in gradients:
        for i in range(len(theta)):
            m[i] = beta2 * m[i] + (1 - beta2) * g[i] ** 2
            theta[i] = theta[i] + alpha * g[i] / (m[i] + epsilon) ** 0.5
    return theta


@pytest.mark.equation("8.14", defining=True)
@pytest.mark.parametrize("settings", [{}, {"beta2": 0.5, "epsilon": 1e-3}, {"beta2": 0.0}])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_rmsprop_is_that_of_mnih_et_al_with_epsilon_under_the_root(steps, settings):
    theta, g = np.array([1.0, -2.0, 0.5]), gradients(steps)
    expected = mnih_et_al(theta, g, 0.1, **{"beta2": 0.99, "epsilon": 1e-5} | settings)
    np.testing.assert_allclose(run(RMSProp(3, 0.1, **settings), theta, g), expected, rtol=0, atol=1e-13)


@pytest.mark.equation("8.14")
def test_where_gradients_are_small_epsilon_under_the_root_makes_smaller_steps():
    optimizer, theta, g = RMSProp(1, 1.0, epsilon=1e-5), np.zeros(1), np.array([1e-3])
    for _ in range(5000):
        before, theta = theta, optimizer.step(theta, g)
    assert theta - before == pytest.approx([0.30], abs=0.005)
    assert optimizer.state()["v"] == pytest.approx([1e-6], rel=1e-12)


@pytest.mark.equation("8.14")
@given(st.lists(st.floats(-1e6, 1e6).map(lambda g: round(g, 6)), min_size=1, max_size=20), st.sampled_from([0.9, 0.99]))
def test_no_component_of_rmsprop_moves_by_more_than_alpha_over_the_root_of_one_minus_beta(components, beta2):
    optimizer, theta = RMSProp(1, 0.1, beta2), np.zeros(1)
    for g in components:
        before, theta = theta, optimizer.step(theta, np.array([g]))
        assert abs(theta - before)[0] <= 0.1 / np.sqrt(1 - beta2) * (1 + 1e-12) + 1e-14
        assert optimizer.v[0] >= (1 - beta2) * g**2


@pytest.mark.equation("8.14")
def test_the_state_of_rmsprop_is_its_mean_square():
    optimizer = RMSProp(3, 0.1)
    run(optimizer, np.zeros(3), np.ones((2, 3)))
    assert optimizer.state().keys() == {"v"}
    np.testing.assert_allclose(optimizer.state()["v"], 1 - 0.99**2, rtol=1e-13)


@pytest.mark.equation("8.13", defining=True)
@given(st.integers(1, 5).flatmap(S.reals), st.sampled_from([1e-3, 0.5, 1.0, 10.0, 1e9]))
def test_clipping_bounds_the_norm_and_keeps_the_direction(g, c):
    before, norm = g.copy(), np.sqrt(sum(part**2 for part in g))
    clipped = clip_norm(g, c)
    np.testing.assert_array_equal(g, before)
    if norm <= c * (1 - 1e-12):
        np.testing.assert_array_equal(clipped, g)
    else:
        np.testing.assert_allclose(clipped, g / norm * min(norm, c), rtol=1e-12)


@pytest.mark.equation("8.13")
@pytest.mark.parametrize("c", [1e-3, 0.5, 10.0, 1e300])
def test_clipping_leaves_zero_at_zero(c):
    np.testing.assert_array_equal(clip_norm(np.zeros(3), c), np.zeros(3))
    np.testing.assert_allclose(clip_norm(np.array([0.0, 1e-150]), c), [0, 1e-150])


@pytest.mark.equation("8.13")
def test_the_mean_of_clipped_gradients_may_point_the_other_way():
    mean = 0.1 * np.array([10.0]) + 0.9 * np.array([-0.5])
    clipped = 0.1 * clip_norm(np.array([10.0]), 0.5) + 0.9 * clip_norm(np.array([-0.5]), 0.5)
    assert mean == pytest.approx([0.55])
    assert clipped == pytest.approx([-0.4])


@EVERY_OPTIMIZER
def test_a_step_goes_up(name):
    theta = np.array([3.0, -4.0])
    for _ in range(20):
        before, theta = theta, OPTIMIZERS[name](2, 0.01).step(theta, -2 * theta)  # of J = −‖θ‖²
        assert theta @ theta < before @ before


@EVERY_OPTIMIZER
def test_a_zero_gradient_at_the_start_changes_nothing(name):
    theta = np.array([3.0, -4.0])
    np.testing.assert_array_equal(OPTIMIZERS[name](2, 0.1).step(theta, np.zeros(2)), theta)


@EVERY_OPTIMIZER
def test_a_step_leaves_its_arguments_as_they_were(name):
    theta, g = np.array([3.0, -4.0]), np.array([1.0, 2.0])
    optimizer = OPTIMIZERS[name](2, 0.1)
    new = run(optimizer, theta, [g, g])
    assert not np.shares_memory(new, theta)
    np.testing.assert_array_equal(theta, [3, -4])
    np.testing.assert_array_equal(g, [1, 2])


@EVERY_OPTIMIZER
@pytest.mark.parametrize("before", [0, 1, 7])
def test_a_restored_optimizer_continues_identically(name, before):
    g, theta = gradients(before + 10), np.ones(3)
    original = OPTIMIZERS[name](3, 0.1)
    theta = run(original, theta, g[:before])
    restored = OPTIMIZERS[name](3, 0.1)
    restored.step(theta, g[0])  # whatever it was before is forgotten
    restored.load_state(original.state())
    np.testing.assert_array_equal(run(restored, theta, g[before:]), run(original, theta, g[before:]))
    assert restored.state().keys() == original.state().keys()
    for key, array in original.state().items():
        np.testing.assert_array_equal(restored.state()[key], array)
        assert restored.state()[key].dtype == array.dtype


def test_the_state_of_adam_is_its_moments_and_step_count():
    optimizer = Adam(3, 0.1)
    run(optimizer, np.zeros(3), np.ones((2, 3)))
    state = optimizer.state()
    assert state.keys() == {"m", "v", "t"}
    np.testing.assert_allclose(state["m"], 1 - 0.9**2, rtol=1e-15)
    np.testing.assert_allclose(state["v"], 1 - 0.999**2, rtol=1e-13)
    assert state["t"] == 2
    assert Ascent(3, 0.1).state() == {}


def test_a_saved_state_is_a_copy_both_ways():
    optimizer, g = Adam(3, 0.1), gradients(4)
    run(optimizer, np.zeros(3), g[:2])
    saved = optimizer.state()
    before = {key: array.copy() for key, array in saved.items()}
    optimizer.step(np.zeros(3), g[2])
    for key, array in saved.items():
        np.testing.assert_array_equal(array, before[key])
    optimizer.load_state(saved)
    for copy in (saved, optimizer.state()):
        copy["m"][:] = copy["v"][:] = np.nan
    optimizer.step(np.zeros(3), g[3])
    assert np.isfinite(optimizer.state()["m"]).all()
    assert np.isfinite(optimizer.state()["v"]).all()


@pytest.mark.parametrize(
    "change",
    [
        {"m": np.zeros(4)},
        {"v": np.zeros((3, 1))},
        {"t": np.zeros(1)},
        {"extra": np.zeros(3)},
        {"v": None},
    ],
    ids=["m too long", "v a column", "t a vector", "a name too many", "a name too few"],
)
def test_a_state_with_wrong_names_or_shapes_is_an_error_that_changes_nothing(change):
    optimizer = Adam(3, 0.1)
    run(optimizer, np.zeros(3), gradients(2))
    before = optimizer.state()
    wrong = {
        key: array
        for key, array in ({"m": np.ones(3), "v": np.ones(3), "t": np.array(9)} | change).items()
        if array is not None
    }
    with pytest.raises(ValueError, match="state must hold arrays"):
        optimizer.load_state(wrong)
    for key, array in optimizer.state().items():
        np.testing.assert_array_equal(array, before[key])


def test_the_state_of_another_optimizer_is_an_error():
    with pytest.raises(ValueError, match="state must hold arrays"):
        Ascent(3, 0.1).load_state(Adam(3, 0.1).state())
    with pytest.raises(ValueError, match="state must hold arrays"):
        Adam(3, 0.1).load_state(Ascent(3, 0.1).state())


@pytest.mark.equation("8.13")
def test_a_gradient_whose_squares_overflow_is_clipped_and_one_that_is_not_finite_is_left_alone():
    np.testing.assert_allclose(clip_norm(np.array([3e200, 4e200]), 0.5), [0.3, 0.4], rtol=1e-14)
    assert np.isnan(clip_norm(np.array([np.nan, 1.0]), 0.5)[0])
    assert np.isinf(clip_norm(np.array([np.inf, 1.0]), 0.5)[0])
    np.testing.assert_array_equal(clip_norm(np.array([3.0, 4.0]), np.inf), [3, 4])


# The length of a natural step


def metric(rng, n, rank=None):
    """A positive semidefinite matrix of a rank, whose eigenvalues that are not zero lie in [0.1, 10]."""
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    values = np.where(np.arange(n) < (n if rank is None else rank), 10 ** rng.uniform(-1, 1, size=n), 0.0)
    return (q * values) @ q.T


def on_the_ellipsoid(rng, G, delta, many=200):
    """Random Δ with ½ΔᵀGΔ = δ, (many, n)."""
    steps = rng.normal(size=(many, len(G)))
    return steps * np.sqrt(2 * delta / np.einsum("bi,ij,bj->b", steps, G, steps))[:, None]


deltas = st.sampled_from([1e-6, 1e-2, 1.0, 50.0])


@pytest.mark.equation("9.1", defining=True)
@pytest.mark.equation("11.4")
@given(S.generators, st.integers(1, 6), deltas)
@examples(200)
def test_no_step_within_the_radius_climbs_higher_than_the_normalised_natural_one(rng, n, delta):
    G, g = metric(rng, n), rng.normal(size=n)
    u = np.linalg.solve(G, g)
    step = kl_step(u, g, delta)
    best = np.sqrt(2 * delta * (g @ u))
    assert g @ step == pytest.approx(best, rel=1e-12)
    assert 0.5 * step @ G @ step == pytest.approx(delta, rel=1e-11)
    others = on_the_ellipsoid(rng, G, delta)
    away = np.abs(others - step).max(axis=1) > 1e-2 * np.abs(step).max()
    assert (others[away] @ g < best).all()  # unique
    assert (rng.uniform(0, 1, size=(200, 1)) * others @ g <= best * (1 + 1e-12)).all()  # none is better inside


@pytest.mark.equation("11.4", defining=True)
@pytest.mark.equation("9.1")
@given(S.generators, st.integers(1, 6), deltas)
@examples(200)
def test_the_normalised_natural_step_satisfies_the_conditions_of_the_lagrangian(rng, n, delta):
    G, g = metric(rng, n), rng.normal(size=n)
    u = np.linalg.solve(G, g)
    step, lam = kl_step(u, G @ u, delta), np.sqrt(g @ u / (2 * delta))
    np.testing.assert_allclose(lam * G @ step, g, rtol=0, atol=1e-11 * np.abs(g).max())
    np.testing.assert_allclose(step, u / lam, rtol=1e-11)
    assert lam > 0
    assert 0.5 * step @ G @ step == pytest.approx(delta, rel=1e-11)


@pytest.mark.equation("9.1")
@given(S.generators, deltas)
def test_in_the_euclidean_metric_the_step_is_the_gradient_of_length_root_two_delta(rng, delta):
    g = rng.normal(size=4)
    np.testing.assert_allclose(kl_step(g, g, delta), np.sqrt(2 * delta) * g / np.linalg.norm(g), rtol=1e-13)


@pytest.mark.equation("9.1")
def test_the_best_of_all_small_steps_turns_into_the_direction_of_the_natural_gradient():
    G, theta, angles = np.array([[2.0, 0.6], [0.6, 0.5]]), np.array([0.3, -0.2]), np.linspace(-np.pi, np.pi, 200_001)

    def J(at):
        return np.sin(at[..., 0]) + at[..., 0] * at[..., 1] + np.exp(0.5 * at[..., 1])

    g = np.array([np.cos(0.3) - 0.2, 0.3 + 0.5 * np.exp(-0.1)])
    root = np.linalg.inv(np.linalg.cholesky(G)).T  # ΔᵀGΔ = 2δ of Δ = root y with ‖y‖² = 2δ
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    off = []
    for delta in (1e-2, 1e-4, 1e-6):
        steps = np.sqrt(2 * delta) * circle @ root.T
        best = steps[J(theta + steps).argmax()]
        natural = kl_step(np.linalg.solve(G, g), g, delta)
        off.append(np.linalg.norm(best - natural) / np.linalg.norm(natural))
    assert off[0] < 0.2
    assert off[0] / off[1] == pytest.approx(10, rel=0.2)  # the curvature of J turns it by an angle of order √δ
    assert off[2] < 0.002


@pytest.mark.equation("9.2", defining=True)
@given(S.generators, st.integers(2, 6), deltas, st.data())
@examples(200)
def test_in_a_singular_metric_the_step_is_the_best_and_its_null_space_changes_nothing(rng, n, delta, data):
    rank = data.draw(st.integers(1, n - 1))
    G = metric(rng, n, rank)
    g = G @ rng.normal(size=n)
    pinv = np.linalg.pinv(G, rcond=1e-8, hermitian=True)
    null = np.eye(n) - G @ pinv
    u = pinv @ g
    step, best = kl_step(u, G @ u, delta), np.sqrt(2 * delta * (g @ pinv @ g))
    shifted = kl_step(u + null @ rng.normal(size=n), G @ u, delta)  # another solution of G u = g
    for one in (step, shifted, step + null @ rng.normal(size=n)):
        assert g @ one == pytest.approx(best, rel=1e-10, abs=1e-11 * np.abs(g).max())
        assert 0.5 * one @ G @ one == pytest.approx(delta, rel=1e-9)
    others = on_the_ellipsoid(rng, G, delta)
    assert (others @ g <= best * (1 + 1e-9)).all()
    np.testing.assert_allclose(null @ step, 0, atol=1e-10 * np.abs(step).max())


@pytest.mark.equation("9.2")
@given(S.generators, st.integers(2, 6))
def test_with_a_gradient_outside_the_range_of_the_metric_steps_within_the_radius_climb_without_bound(rng, n):
    G, g = metric(rng, n, n - 1), rng.normal(size=n)
    free = g - G @ np.linalg.pinv(G, rcond=1e-8, hermitian=True) @ g
    for length in (1.0, 1e3, 1e6):
        step = length * free
        assert 0.5 * step @ G @ step <= 1e-13 * length**2 * (g @ g)  # zero but for rounding
        assert g @ step == pytest.approx(length * free @ free, rel=1e-9, abs=1e-9)
    np.testing.assert_array_equal(kl_step(free, np.zeros(n), 0.1), np.zeros(n))


@pytest.mark.equation("9.7", defining=True)
@given(S.generators, st.integers(1, 8), deltas, st.sampled_from([1e-100, 1e-8, 1.0, 1e8, 1e100]))
@examples(200)
def test_whatever_the_direction_and_its_length_half_the_form_of_the_step_is_delta(rng, n, delta, size):
    G, u = metric(rng, n), size * rng.normal(size=n)
    step = kl_step(u, G @ u, delta)
    assert 0.5 * step @ G @ step == pytest.approx(delta, rel=1e-12)
    np.testing.assert_allclose(step / np.linalg.norm(step), u / np.linalg.norm(u), rtol=1e-13)  # no other direction
    np.testing.assert_allclose(kl_step(3 * u, 3 * (G @ u), delta), step, rtol=1e-13)
    np.testing.assert_allclose(kl_step(u, G @ u, 4 * delta), 2 * step, rtol=1e-13)


@pytest.mark.equation("9.7")
def test_the_factor_without_the_inverse_metric_misses_the_radius_by_the_ratio_of_the_two_forms():
    F, g, delta = np.diag([1.0, 0.01]), np.array([1.0, 1.0]), 0.01
    u = g / np.diag(F)
    np.testing.assert_allclose(kl_step(u, F @ u, delta), np.sqrt(0.02 / 101) * np.array([1.0, 100.0]), rtol=1e-14)
    lecture = np.sqrt(2 * delta / (g @ F @ g)) * u
    assert 0.5 * lecture @ F @ lecture == pytest.approx(100 * delta, rel=1e-13)  # gᵀF⁻¹g / gᵀFg = 101 / 1.01


@pytest.mark.equation("9.7")
@pytest.mark.parametrize(("log_sigma", "form"), [(False, 48143), (True, 3065.4)])
def test_on_a_linear_system_that_factor_depends_on_the_coordinates_too(log_sigma, form):
    lqr, at = LQR(), (np.array([[-0.5]]), np.array([0.5]))
    g, F = lqr.gradient(*at, log_sigma=log_sigma), lqr.fisher(*at, log_sigma=log_sigma)
    u = np.linalg.solve(F, g)
    assert g @ u == pytest.approx(7.7268, abs=5e-5)
    assert g @ F @ g == pytest.approx(form, rel=2e-5)
    step = kl_step(u, F @ u, 0.01)
    assert 0.5 * step @ F @ step == pytest.approx(0.01, rel=1e-13)
    np.testing.assert_allclose(step, np.sqrt(0.02 / (g @ u)) * u, rtol=1e-13)


@pytest.mark.equation("9.7")
@given(S.generators, st.integers(1, 5), st.sampled_from([1e-3, 1.0, 1e3]))
def test_with_damping_in_the_direction_and_none_in_the_length_the_step_still_has_the_radius(rng, n, kappa):
    F, g = metric(rng, n), rng.normal(size=n)
    u = np.linalg.solve(F + kappa * np.eye(n), g)
    step = kl_step(u, F @ u, 0.01)
    assert 0.5 * step @ F @ step == pytest.approx(0.01, rel=1e-12)
    assert g @ step > 0


@pytest.mark.equation("9.2", "9.7")
@pytest.mark.parametrize("Fu", [[0.0, 0.0], [-1.0, 0.0], [2.0, -1.0], [-0.0, 0.0]])
def test_where_the_curvature_is_not_positive_there_is_no_step(Fu):
    u = np.array([1.0, 2.0])
    step = kl_step(u, np.array(Fu), 0.1)
    np.testing.assert_array_equal(step, [0, 0])
    step[:] = 5  # a new array
    np.testing.assert_array_equal(u, [1, 2])
    np.testing.assert_array_equal(kl_step(np.zeros(2), np.zeros(2), 0.1), [0, 0])


@pytest.mark.equation("9.7")
def test_a_step_of_numbers_that_are_nan_is_nan():
    assert np.isnan(kl_step(np.array([np.nan, 1.0]), np.array([1.0, 1.0]), 0.1)).all()
    assert np.isnan(kl_step(np.array([1.0, 1.0]), np.array([1.0, np.nan]), 0.1)).all()
    assert np.isnan(kl_step(np.array([1.0, 1.0]), np.array([1.0, 1.0]), np.nan)).all()


@pytest.mark.equation("9.7")
def test_a_radius_of_zero_is_no_step_and_the_arguments_stay_as_they_were():
    u, Fu = np.array([1.0, 2.0]), np.array([0.5, 0.25])
    np.testing.assert_array_equal(kl_step(u, Fu, 0.0), [0, 0])
    np.testing.assert_allclose(kl_step(u, Fu, 0.5), u, rtol=1e-15)
    np.testing.assert_array_equal(u, [1, 2])
    np.testing.assert_array_equal(Fu, [0.5, 0.25])


@pytest.mark.parametrize("size", [1e-170, 1e-160, 1e160])
def test_the_size_of_the_direction_does_not_matter_to_a_step_of_given_radius(size):
    u, F = np.array([1.0, -2.0]), np.diag([1.0, 3.0])
    np.testing.assert_allclose(kl_step(size * u, F @ (size * u), 0.01), kl_step(u, F @ u, 0.01), rtol=1e-12)
