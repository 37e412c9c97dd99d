"""The checker: right gradients pass, wrong ones fail, and neither scale nor NaN nor a broken library fools it."""

import numpy as np
import pytest
import strategies as S
from hypothesis import given
from hypothesis import strategies as st

from npg.distributions import Categorical, DiagonalGaussian
from npg.gradcheck import RTOL, check_gradient, numerical_gradient
from npg.lab import cases
from npg.lab.cases import Case, run_cases
from npg.models import Linear
from npg.policies import Policy

BOTH_METHODS = pytest.mark.parametrize("method", RTOL)
FUNCTIONS = {
    "quadratic": (lambda t: (t**2).sum() / 2 + t[0] * t[-1], lambda t: t + np.eye(len(t))[0] * t[-1] + end(t) * t[0]),
    "exponential": (lambda t: np.exp(t).sum(), np.exp),
    "waves": (lambda t: np.sin(t).sum() * np.cos(t[0]), lambda t: np.cos(t) * np.cos(t[0]) - wave(t)),
    "log-sum-exp": (lambda t: np.log(np.exp(t).sum()), lambda t: np.exp(t) / np.exp(t).sum()),
}
ANALYTIC = pytest.mark.parametrize("name", FUNCTIONS)


def end(t):
    return np.eye(len(t))[-1]


def wave(t):
    return np.eye(len(t))[0] * np.sin(t).sum() * np.sin(t[0])


def linear_and_exp(t):
    """A function whose gradient, 3 + e^t, has components between 3 and 6 on [−3, 1]."""
    return (3 * t + np.exp(t)).sum()


points = st.integers(1, 6).flatmap(lambda n: S.reals(n, 1.0))


@BOTH_METHODS
@ANALYTIC
@given(theta=points)
def test_a_right_gradient_passes(name, method, theta):
    f, grad = FUNCTIONS[name]
    check = check_gradient(f, grad(theta), theta, method=method)
    assert check.passed, check
    assert check.max_rel_error <= RTOL[method]


@BOTH_METHODS
@ANALYTIC
@given(theta=points)
def test_the_numerical_gradient_is_as_good_as_it_says(name, method, theta):
    f, grad = FUNCTIONS[name]
    numerical, rounding = numerical_gradient(f, theta, method)
    # Truncation is h⁴ f⁽⁵⁾/30 = 1e-14 f⁽⁵⁾ with |f⁽⁵⁾| < 20; the complex step has some roundings of terms below 10.
    assert np.abs(numerical - grad(theta)).max() <= rounding + (2e-13 if method == "central" else 2e-14)
    assert rounding <= (1e-9 if method == "central" else 1e-12)


@BOTH_METHODS
@pytest.mark.parametrize(
    "break_", [lambda g: -g, lambda g: 2 * g, lambda g: g + 0.01, np.zeros_like, lambda g: g[::-1] + 1e-3]
)
@given(theta=points)
def test_a_gradient_with_a_wrong_sign_or_factor_or_offset_fails(break_, method, theta):
    assert not check_gradient(linear_and_exp, break_(3 + np.exp(theta)), theta, method=method).passed


@BOTH_METHODS
@given(theta=points, data=st.data())
def test_one_component_off_by_1e_4_fails_and_is_the_worst_index(method, theta, data):
    worst = data.draw(st.integers(0, len(theta) - 1))
    broken = 3 + np.exp(theta)
    broken[worst] *= 1 + data.draw(st.sampled_from([1e-4, -1e-4]))
    check = check_gradient(linear_and_exp, broken, theta, method=method)
    assert not check.passed
    assert check.worst_index == worst
    assert check.max_abs_error == pytest.approx(1e-4 * (3 + np.exp(theta[worst])), rel=1e-3)


@given(theta=points, data=st.data())
def test_the_complex_step_sees_an_error_of_1e_8(theta, data):
    broken = 3 + np.exp(theta)
    broken[data.draw(st.integers(0, len(theta) - 1))] *= 1 + 1e-8
    assert not check_gradient(linear_and_exp, broken, theta, method="complex").passed


def test_the_relative_error_is_the_largest_error_over_the_largest_component_or_the_floor():
    theta = np.array([1.0, 2.0])
    grad = np.array([3.0, 4.5])  # of (t²).sum(), right: 2, 4
    check = check_gradient(lambda t: (t**2).sum(), grad, theta, method="complex")
    assert check.max_abs_error == pytest.approx(1.0, rel=1e-14)
    assert check.max_rel_error == pytest.approx(1 / 4.5, rel=1e-14)
    assert check.worst_index == 0
    check = check_gradient(lambda t: (t**2).sum(), grad, theta, method="complex", floor=10.0)
    assert check.max_rel_error == pytest.approx(0.1, rel=1e-14)
    check = check_gradient(
        lambda t: (t**2).sum(), np.zeros(2), theta, method="complex"
    )  # the other gradient counts too
    assert check.max_rel_error == pytest.approx(1.0, rel=1e-14)


@BOTH_METHODS
def test_rtol_decides(method):
    theta = np.array([1.0, 2.0])
    grad = 2 * theta * (1 + 1e-3)
    assert check_gradient(lambda t: (t**2).sum(), grad, theta, method=method, rtol=2e-3).passed
    assert not check_gradient(lambda t: (t**2).sum(), grad, theta, method=method, rtol=5e-4).passed


# Scale


@pytest.mark.parametrize(
    ("method", "offset"), [("central", 1e3), ("central", -1e6), ("complex", 1e3), ("complex", -1e9)]
)
@given(theta=points)
def test_a_large_constant_in_f_neither_fails_a_right_gradient_nor_hides_a_wrong_sign(offset, method, theta):
    def f(t):
        return offset + linear_and_exp(t)

    assert check_gradient(f, 3 + np.exp(theta), theta, method=method).passed
    assert not check_gradient(f, -3 - np.exp(theta), theta, method=method).passed


@BOTH_METHODS
@pytest.mark.parametrize("scale", [1e-15, 1e-9, 1e9, 1e15])
@given(theta=points)
def test_the_verdict_does_not_depend_on_the_unit_of_f(scale, method, theta):
    def f(t):
        return scale * linear_and_exp(t)

    grad = scale * (3 + np.exp(theta))
    assert check_gradient(f, grad, theta, method=method).passed
    assert not check_gradient(f, grad * (1 + 1e-4), theta, method=method).passed
    assert not check_gradient(f, -grad, theta, method=method).passed


@BOTH_METHODS
@given(theta=points)
def test_a_tiny_gradient_of_a_function_of_order_one_is_checked_too(method, theta):
    def f(t):
        return 1 + 1e-6 * linear_and_exp(t)

    grad = 1e-6 * (3 + np.exp(theta))
    assert check_gradient(f, grad, theta, method=method).passed
    assert not check_gradient(f, 2 * grad, theta, method=method).passed
    assert not check_gradient(f, 0 * grad, theta, method=method).passed


@BOTH_METHODS
@given(theta=points)
def test_large_coordinates_do_not_spoil_the_step(method, theta):
    at = 1e6 * (1.5 + theta / 2)

    def f(t):
        return (np.log(t) + (t / 1e6) ** 2).sum()

    np.testing.assert_allclose(numerical_gradient(f, at, method)[0], 1 / at + 2e-12 * at, rtol=1e-9)
    assert check_gradient(f, 1 / at + 2e-12 * at, at, method=method).passed
    assert not check_gradient(f, -1 / at - 2e-12 * at, at, method=method).passed


@BOTH_METHODS
@pytest.mark.parametrize("constant", [0.0, 1.0, -1e6])
def test_a_constant_has_zero_gradient_and_no_other(constant, method):
    theta = np.array([1.0, -2.0])

    def f(t):
        return constant + 0 * t.sum()

    assert check_gradient(f, np.zeros(2), theta, method=method).passed
    assert not check_gradient(f, np.array([0.0, 1e-3]), theta, method=method).passed


@BOTH_METHODS
@pytest.mark.parametrize("distribution", [Categorical(3), DiagonalGaussian(1)])
def test_the_zero_gradient_of_a_divergence_at_equality_passes(distribution, method):
    eta = np.zeros((1, distribution.n_eta))
    check = check_gradient(
        lambda e: distribution.kl(eta, e[None])[0], np.zeros(distribution.n_eta), eta[0], method=method
    )
    assert check.passed, check


# What is not a number


@BOTH_METHODS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_a_gradient_that_is_not_finite_fails_and_shows_where(where, bad, method):
    theta = np.array([1.0, 2.0])
    grad = 2 * theta
    grad[where] = bad
    check = check_gradient(lambda t: (t**2).sum(), grad, theta, method=method)
    assert not check.passed
    assert check.worst_index == where
    assert not check.max_rel_error <= RTOL[method]


@BOTH_METHODS
@pytest.mark.parametrize("grad", [np.zeros(2), np.ones(2), np.full(2, np.nan)])
def test_a_function_that_is_not_finite_fails_whatever_the_gradient(grad, method):
    assert not check_gradient(lambda t: np.nan * t.sum(), grad, np.ones(2), method=method).passed


# Bad input


@pytest.mark.parametrize(
    ("grad", "theta"),
    [
        (np.zeros(3), np.zeros(2)),
        (np.zeros((2, 1)), np.zeros(2)),
        (np.zeros((2, 2)), np.zeros((2, 2))),
        (np.float64(0), np.float64(0)),
        (np.zeros(0), np.zeros(0)),
    ],
)
def test_shapes_that_do_not_match_are_an_error_that_names_the_arguments(grad, theta):
    with pytest.raises(ValueError, match="grad and theta must be vectors of one length"):
        check_gradient(lambda t: t.sum(), grad, theta)


def test_an_unknown_method_is_an_error_that_lists_the_methods():
    for call in (
        lambda: numerical_gradient(np.sum, np.ones(1), "forward"),
        lambda: check_gradient(np.sum, [1], [1.0], method="forward"),
    ):
        with pytest.raises(ValueError, match="method must be one of central, complex, got 'forward'"):
            call()


def test_a_check_leaves_theta_as_it_was():
    theta = np.array([1.0, 2.0])
    check_gradient(lambda t: (t**2).sum(), 2 * theta, theta)
    assert theta.tolist() == [1.0, 2.0]


def test_lists_of_numbers_will_do():
    assert check_gradient(lambda t: (t**2).sum(), [2, 4], [1, 2]).passed


# The registered cases


def test_every_registered_case_passes_within_the_promised_errors():
    results = list(run_cases())
    assert [r.case for r in results[::2]] == cases.CASES
    for r in results:
        assert r.passed, r
        assert r.max_rel_error <= {"central": 1e-6, "complex": 1e-10}[r.method], r
        assert r.instances == 20


def test_every_distribution_model_and_policy_has_its_cases():
    quantities = {c.quantity for c in cases.CASES}
    assert len(quantities) == len(cases.CASES)
    for distribution in ("Categorical", "DiagonalGaussian"):
        assert {f"{distribution}.{q}" for q in ("score", "entropy_grad", "kl_grad", "fisher_product")} <= quantities
    for model in ("Linear (dense)", "Linear (active)", "Parallel"):
        assert {f"{model}.{q}" for q in ("vjp", "jvp")} <= quantities
    for policy in ("SoftmaxLinear", "SoftmaxLinear (tabular)", "GaussianLinear", "GaussianLinear (constant σ)"):
        methods = ("score", "weighted_score", "entropy_grad", "kl_grad", "fisher_vector_product")
        assert {f"{policy}.{q}" for q in methods} <= quantities


def test_a_seed_fixes_the_instances():
    first, again, other = (list(run_cases(instances=2, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("instances", [0, -1])
def test_no_instances_is_an_error(instances):
    with pytest.raises(ValueError, match="instances must be an integer of at least 1"):
        next(run_cases(instances=instances))


def verdicts(instances=5):
    return {(r.case.quantity, r.method): r.passed for r in run_cases(instances=instances)}


def test_a_registered_case_with_a_wrong_gradient_fails_alone(monkeypatch):
    monkeypatch.setattr(cases, "CASES", list(cases.CASES))

    @cases.case("wrong", "3.4")
    def wrong(rng):
        theta = rng.normal(size=3)
        return (lambda t: (t**3).sum()), -3 * theta**2, theta

    assert cases.CASES[-1] == Case("wrong", "3.4", wrong)
    failed = {key for key, passed in verdicts().items() if not passed}
    assert failed == {("wrong", "central"), ("wrong", "complex")}


def test_a_case_that_is_wrong_in_one_instance_of_many_fails(monkeypatch):
    drawn = []

    def draw(rng):
        drawn.append(rng)
        theta = rng.normal(size=2)
        return (lambda t: (t**2).sum()), (2.001 if len(drawn) == 3 else 2.0) * theta, theta

    monkeypatch.setattr(cases, "CASES", [Case("once", "3.4", draw)])
    central, complex_ = run_cases(instances=5)
    assert not central.passed
    assert central.max_rel_error == pytest.approx(5e-4, rel=1e-2)
    assert complex_.passed


def test_a_case_with_nan_fails(monkeypatch):
    problem = (lambda t: (t**2).sum()), np.array([np.nan]), np.ones(1)
    monkeypatch.setattr(cases, "CASES", [Case("nan", "3.4", lambda rng: problem)])
    assert not any(r.passed for r in run_cases(instances=2))


BREAKABLE = [
    (Categorical, "score", {"Categorical.score", "SoftmaxLinear.score", "SoftmaxLinear.weighted_score"}),
    (Categorical, "entropy_grad", {"Categorical.entropy_grad", "SoftmaxLinear.entropy_grad"}),
    (Categorical, "fisher_product", {"Categorical.fisher_product", "SoftmaxLinear.fisher_vector_product"}),
    (DiagonalGaussian, "kl_grad", {"DiagonalGaussian.kl_grad", "GaussianLinear.kl_grad"}),
    (DiagonalGaussian, "score", {"DiagonalGaussian.score", "GaussianLinear.weighted_score"}),
    (Linear, "vjp", {"Linear (dense).vjp", "Linear (active).vjp", "Parallel.vjp", "SoftmaxLinear.entropy_grad"}),
    (Linear, "jvp", {"Linear (dense).jvp", "SoftmaxLinear.fisher_vector_product"}),
    (Policy, "weighted_score", {"SoftmaxLinear.weighted_score", "GaussianLinear (constant σ).weighted_score"}),
]


@pytest.mark.parametrize(("cls", "method", "caught"), BREAKABLE, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_method_of_the_library_is_caught_by_both_numerical_methods(monkeypatch, cls, method, caught):
    right = getattr(cls, method)
    monkeypatch.setattr(cls, method, lambda *args: 1.001 * right(*args))
    failed = {key for key, passed in verdicts().items() if not passed}
    assert {(quantity, numerical) for quantity in caught for numerical in RTOL} <= failed
    assert len(failed) < 2 * len(cases.CASES)
