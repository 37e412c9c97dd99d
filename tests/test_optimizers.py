"""Ascent and Adam against transcriptions of their papers, and their state."""

import numpy as np
import pytest
import strategies as S
from hypothesis import given
from hypothesis import strategies as st

from npg.optimizers import OPTIMIZERS, Adam, Ascent

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


@EVERY_OPTIMIZER
def test_a_step_goes_up(name):
    theta = np.array([3.0, -4.0])
    for _ in range(20):
        before, theta = theta, OPTIMIZERS[name](2, 0.1).step(theta, -2 * theta)  # of J = −‖θ‖²
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
    with pytest.raises(ValueError, match="state must hold arrays of shapes"):
        optimizer.load_state(wrong)
    for key, array in optimizer.state().items():
        np.testing.assert_array_equal(array, before[key])


def test_the_state_of_another_optimizer_is_an_error():
    with pytest.raises(ValueError, match="state must hold arrays of shapes"):
        Ascent(3, 0.1).load_state(Adam(3, 0.1).state())
    with pytest.raises(ValueError, match="state must hold arrays of shapes"):
        Adam(3, 0.1).load_state(Ascent(3, 0.1).state())
