"""Returns against their definitions, written out as loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npg.returns import discounted_returns, leave_one_out_mean, total_returns

gammas = st.sampled_from([0.0, 0.3, 0.99, 1.0])


@st.composite
def segments(draw):
    """(T, N) rewards, flags and bootstrap values, with several episodes in a column."""
    T, N = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rate = draw(st.sampled_from([0.0, 0.3, 1.0]))
    terminated, truncated = rng.random((2, T, N)) < rate
    return rng.normal(size=(T, N)), terminated, truncated, rng.normal(size=(T, N))


def by_definition(rewards, terminated, truncated, gamma, bootstrap, t, n):
    """Σ_k γ^k R_{t+k+1} up to the end of the row's episode, and what is left at a cut."""
    total, discount = 0.0, 1.0
    for k in range(t, len(rewards)):
        total += discount * rewards[k, n]
        discount *= gamma
        if terminated[k, n]:
            return total
        if truncated[k, n] or k == len(rewards) - 1:
            return total + discount * bootstrap[k, n]
    raise AssertionError


@pytest.mark.equation("1.1", "1.8")
@given(segments(), gammas)
def test_return_is_the_discounted_sum_to_the_end_of_the_episode(segment, gamma):
    rewards, terminated, truncated, bootstrap = segment
    G = discounted_returns(rewards, terminated, truncated, gamma, bootstrap)
    for t, n in np.ndindex(rewards.shape):
        assert G[t, n] == pytest.approx(by_definition(*segment[:3], gamma, bootstrap, t, n), rel=1e-12, abs=1e-13)


@pytest.mark.equation("1.8")
@given(segments(), gammas)
def test_termination_bootstraps_nothing_even_at_a_time_limit(segment, gamma):
    rewards, terminated, truncated, bootstrap = segment
    G = discounted_returns(rewards, terminated, truncated, gamma, bootstrap)
    assert np.array_equal(G[terminated], rewards[terminated])
    cut = truncated & ~terminated
    assert np.allclose(G[cut], rewards[cut] + gamma * bootstrap[cut], rtol=1e-15)


@given(segments(), gammas)
def test_columns_do_not_mix(segment, gamma):
    rewards, terminated, truncated, bootstrap = segment
    G = discounted_returns(rewards, terminated, truncated, gamma, bootstrap)
    for n in range(rewards.shape[1]):
        column = [a[:, [n]] for a in segment]
        assert np.array_equal(G[:, [n]], discounted_returns(*column[:3], gamma, column[3]))


def test_a_zero_bootstrap_may_be_given_as_a_number_and_inputs_are_left_alone():
    rewards, flags = np.ones((3, 1)), np.zeros((3, 1), dtype=bool)
    assert discounted_returns(rewards, flags, flags, 0.5).ravel().tolist() == [1.75, 1.5, 1.0]
    for eight in (8, 8.0, np.int64(8)):
        assert discounted_returns(rewards, flags, flags, 0.5, eight).ravel().tolist() == [2.75, 3.5, 5.0]
    lists = [a.tolist() for a in (rewards, flags, flags)]
    assert discounted_returns(*lists, 0.5).ravel().tolist() == [1.75, 1.5, 1.0]
    assert rewards.sum() == 3
    assert not flags.any()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_total_return_is_that_of_the_first_step_of_the_episode(lengths):
    t = np.concatenate([np.arange(k) for k in lengths])[:, None]
    returns = np.arange(len(t), dtype=float)[:, None]
    expected = np.concatenate([[returns[t.ravel() == 0][i, 0]] * k for i, k in enumerate(lengths)])
    assert total_returns(t == 0, returns).ravel().tolist() == expected.tolist()


@pytest.mark.equation("1.13")
@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.booleans())
def test_leave_one_out_mean_is_the_mean_over_the_other_episodes(lengths, total):
    rng = np.random.default_rng(len(lengths))
    M, t = len(lengths), np.concatenate([np.arange(k) for k in lengths])
    episode = np.repeat(np.arange(M), lengths)
    G = np.zeros((M, max(lengths)))  # zero once the episode has ended
    for i, k in enumerate(lengths):
        G[i, :k] = rng.normal() if total else rng.normal(size=k)
    own = G[episode, 0] if total else G[episode, t]
    others = [[(G[j, 0] if total else G[j, s]) for j in range(M) if j != i] for i, s in zip(episode, t, strict=True)]
    b = leave_one_out_mean(t, own, total)
    assert np.allclose(b, np.mean(others, axis=1), rtol=1e-12, atol=1e-13)
    if total:
        G_bar = G[:, 0].mean()
        assert np.allclose(own - b, M / (M - 1) * (own - G_bar), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_outside_the_unit_interval_is_refused(gamma):
    flags = np.zeros((2, 1), dtype=bool)
    with pytest.raises(ValueError, match="gamma must lie in"):
        discounted_returns(np.ones((2, 1)), flags, flags, gamma)


@pytest.mark.parametrize("name", ["rewards", "terminated", "truncated", "bootstrap"])
def test_shapes_that_differ_are_refused_by_name(name):
    arrays = {name: np.zeros((2, 1), dtype=bool) for name in ("terminated", "truncated")}
    arrays |= {name: np.zeros((2, 1)) for name in ("rewards", "bootstrap")}
    arrays[name] = arrays[name][:1]
    with pytest.raises(ValueError, match=rf"'{name}': \(1, 1\)"):
        discounted_returns(**arrays, gamma=1.0)


def test_flat_arrays_and_flags_that_are_not_boolean_are_refused():
    flags = np.zeros((2, 1), dtype=bool)
    with pytest.raises(ValueError, match=r"\(T, N\)"):
        discounted_returns(np.ones(2), flags[:, 0], flags[:, 0], 1.0)
    with pytest.raises(TypeError, match="terminated must be boolean"):
        discounted_returns(np.ones((2, 1)), np.zeros((2, 1)), flags, 1.0)


def test_leave_one_out_of_one_episode_is_refused():
    with pytest.raises(ValueError, match="at least 2 episodes"):
        leave_one_out_mean(np.arange(3), np.ones(3))
