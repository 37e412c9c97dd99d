"""The finite problems of the literature have the dynamics and the exact values that the literature prints."""

from itertools import product

import numpy as np
import pytest
import strategies as S
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from npg.envs.tabular import TabularEnv
from npg.exact import TabularMDP
from npg.features import Constant, OneHot
from npg.gradcheck import check_gradient
from npg.off_policy import OffPolicy
from npg.policies import SoftmaxLinear
from npg.problems import (
    COLLISION_BEHAVIOUR,
    COLLISION_TARGET,
    FOUR_ROOMS,
    collision,
    collision_features,
    four_rooms,
    garnet,
    random_walk,
    short_corridor,
    two_state,
)

LEFT, RIGHT = 0, 1
STAY, GO = 0, 1
UP, DOWN = 0, 2
BLIND = SoftmaxLinear(Constant(), 2)  # one distribution of actions in all states


def alike(n_states, p_right):
    """The policy that goes right with the same probability everywhere: (S, 2)."""
    return np.tile([1 - p_right, p_right], (n_states, 1))


def logit(p_right):
    """θ with which ``BLIND`` goes right with this probability."""
    return np.array([0.0, np.log(p_right / (1 - p_right))])


def walked(mdp, s, *actions):
    """States and rewards of these actions from s on, where the dynamics are deterministic."""
    env = TabularEnv(TabularMDP(mdp.P, mdp.R, mdp.gamma, np.eye(mdp.n_states)[s]))
    env.reset(seed=0)
    return [env.step(a)[:2] for a in actions]


# The short corridor


@pytest.mark.equation("4.17", defining=True)
@examples(200)
@given(st.floats(1e-3, 1 - 1e-3))
def test_the_corridor_has_its_closed_form_for_a_policy_that_cannot_tell_states_apart(p):
    mdp, theta = short_corridor(), logit(p)
    expected = (2 * p - 4) / (p * (1 - p))
    # The system has condition number up to 1e4 here.
    np.testing.assert_allclose(mdp.J(BLIND, theta), expected, rtol=1e-11)
    np.testing.assert_allclose(mdp.value(alike(4, p))[0], expected, rtol=1e-11)
    dJ_dp = 2 * (p**2 - 4 * p + 2) / (p * (1 - p)) ** 2
    gradient = dJ_dp * p * (1 - p) * np.array([-1, 1])
    np.testing.assert_allclose(mdp.gradient(BLIND, theta), gradient, rtol=1e-9, atol=1e-9 * abs(expected))
    assert check_gradient(lambda th: mdp.J(BLIND, th), gradient, theta, method="complex", rtol=1e-9).passed


@pytest.mark.equation("4.17")
def test_the_best_blind_policy_of_the_corridor_goes_right_with_probability_2_minus_sqrt_2():
    mdp, p = short_corridor(), 2 - np.sqrt(2)
    best = mdp.J(BLIND, logit(p))
    assert best == pytest.approx(-(6 + 4 * np.sqrt(2)), rel=1e-13)
    np.testing.assert_allclose(mdp.gradient(BLIND, logit(p)), 0, atol=1e-12)
    assert all(mdp.J(BLIND, logit(other)) < best for other in [*np.linspace(0.01, 0.99, 99), p - 1e-4, p + 1e-4])


@pytest.mark.equation("4.17")
@pytest.mark.parametrize(("p", "value"), [(0.05, -82.1), (0.95, -44.2), (0.59, -11.66), (0.5, -12)])
def test_the_corridor_has_the_values_of_the_book(p, value):
    assert short_corridor().J(BLIND, logit(p)) == pytest.approx(value, abs=0.06)


@pytest.mark.equation("4.17")
def test_the_corridor_at_one_half_has_small_whole_numbers():
    mdp, uniform = short_corridor(), alike(4, 0.5)
    np.testing.assert_allclose(mdp.value(uniform), [-12, -10, -6, 0], rtol=1e-14)
    np.testing.assert_allclose(mdp.visitation(uniform), [6, 4, 2, 0], rtol=1e-14)
    np.testing.assert_allclose(mdp.advantage(uniform)[:3], [[-1, 1], [3, -3], [-5, 5]], rtol=1e-13)


def test_the_corridor_exchanges_its_actions_in_the_middle():
    mdp = short_corridor()
    assert walked(mdp, 0, LEFT, RIGHT, RIGHT, RIGHT, LEFT, RIGHT) == [(s, -1.0) for s in (0, 1, 0, 1, 2, 3)]
    assert walked(mdp, 2, LEFT) == [(1, -1.0)]
    np.testing.assert_array_equal(mdp.rho0, [1, 0, 0, 0])
    np.testing.assert_array_equal(mdp.terminal, [False, False, False, True])
    assert mdp.J([[0, 1], [1, 0], [0, 1], [1, 0]]) == -3  # with eyes, three steps


# Random walks


@examples(200)
@given(st.integers(1, 30), st.floats(-3, 3), st.floats(-3, 3))
def test_the_value_of_the_random_walk_is_linear_between_its_ends(n, left, right):
    mdp = random_walk(n, left, right)
    expected = left + (right - left) * np.arange(1, n + 1) / (n + 1)
    # The condition number of the walk's system is about n²/2.
    np.testing.assert_allclose(mdp.value(alike(n + 1, 0.5))[:-1], expected, rtol=0, atol=1e-12)


def test_the_random_walks_of_the_book_have_its_true_values():
    five, nineteen = random_walk(5, left=0.0), random_walk()
    np.testing.assert_allclose(five.value(alike(6, 0.5)), [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 0], rtol=1e-13)
    np.testing.assert_allclose(nineteen.value(alike(20, 0.5))[:-1], np.arange(-9, 10) / 10, rtol=0, atol=1e-13)
    assert five.rho0.argmax() == 2
    assert nineteen.rho0.argmax() == 9


@pytest.mark.parametrize("n", [1, 2, 5, 19])
def test_a_walk_from_the_middle_takes_k_times_n_plus_one_minus_k_steps_on_average(n):
    k = (n + 1) // 2
    assert random_walk(n).visitation(alike(n + 1, 0.5)).sum() == pytest.approx(k * (n + 1 - k), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_each_end_of_the_walk_pays_its_own_reward_once(n):
    mdp = random_walk(n, left=-3.0, right=5.0)
    assert walked(mdp, 0, *[RIGHT] * n) == [*((s, 0.0) for s in range(1, n)), (n, 5.0)]
    assert walked(mdp, n - 1, *[LEFT] * n) == [*((s, 0.0) for s in reversed(range(n - 1))), (n, -3.0)]
    np.testing.assert_array_equal(np.flatnonzero(mdp.terminal), [n])


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_the_discounted_walk_to_the_right_is_worth_the_discounted_reward(gamma):
    np.testing.assert_allclose(random_walk(5, gamma=gamma).value(alike(6, 1.0))[:5], gamma ** np.arange(4, -1, -1.0))


# Two states


def test_kakades_states_pay_one_and_two_for_staying_and_nothing_for_going():
    assert walked(two_state(), 0, STAY, GO, STAY, STAY, GO) == [(0, 1.0), (1, 0.0), (1, 2.0), (1, 2.0), (0, 0.0)]
    np.testing.assert_array_equal(two_state().rho0, [0.8, 0.2])
    assert not two_state().terminal.any()


@examples(200)
@given(st.floats(0, 0.999))
def test_the_best_of_kakades_policies_goes_to_the_second_state_and_stays_there(gamma):
    """At γ ≥ 1/2, where 2γ/(1 − γ) is at least 1/(1 − γ); below, it stays wherever it is."""
    mdp = two_state(gamma)
    values = {pi: mdp.J(np.eye(2)[list(pi)]) for pi in product((STAY, GO), repeat=2)}
    best = (GO, STAY) if gamma >= 0.5 else (STAY, STAY)
    assert values[best] == pytest.approx(max(values.values()), rel=1e-12)
    assert values[GO, STAY] == pytest.approx((0.2 + 0.8 * gamma) * 2 / (1 - gamma), rel=1e-12)
    assert values[STAY, STAY] == pytest.approx((0.8 + 0.2 * 2) / (1 - gamma), rel=1e-12)


def test_the_plain_gradient_waits_near_one_a_step_while_the_second_state_is_forgotten_and_the_natural_one_does_not():
    """From a policy whose stationary distribution is (0.8, 0.2), as in the paper; the optimum is near two a step."""
    mdp, policy = two_state(0.95), SoftmaxLinear(OneHot(2), 2)
    start = np.array([[0.8, 0.2], [0.2, 0.8]])
    np.testing.assert_allclose(mdp.stationary_distribution(start), [0.8, 0.2])
    waiting, second_state = {}, {}
    for name in ("gradient", "natural_gradient"):
        theta = np.log(start).T.ravel()  # rows of θ are actions
        rewards, mass = [], []
        while not rewards or rewards[-1] < 1.8:
            pi = mdp.policy_matrix(policy, theta)
            rewards.append((1 - mdp.gamma) * mdp.J(pi))
            mass.append(mdp.stationary_distribution(pi)[1])
            theta = theta + 0.005 * getattr(mdp, name)(policy, theta)
            assert len(rewards) < 1000
        waiting[name] = np.mean([0.9 < reward < 1.1 for reward in rewards])
        second_state[name] = min(mass)
    assert waiting["gradient"] > 2 / 3 > 1 / 3 > waiting["natural_gradient"]
    assert second_state["gradient"] < 0.03 < 0.14 < second_state["natural_gradient"]


# Four rooms


CELLS = [(i, j) for i, line in enumerate(FOUR_ROOMS) for j, c in enumerate(line) if c == "."]
GOAL = CELLS.index((7, 9))
STEPS = {0: (-1, 0), 1: (0, 1), 2: (1, 0), 3: (0, -1)}


def neighbour(s, a):
    (i, j), (di, dj) = CELLS[s], STEPS[a]
    return s if FOUR_ROOMS[i + di][j + dj] == "#" else CELLS.index((i + di, j + dj))


def test_four_rooms_have_104_cells_in_four_rooms_joined_by_four_doorways():
    assert len(CELLS) == four_rooms().n_states == 104
    assert {len(line) for line in FOUR_ROOMS} == {len(FOUR_ROOMS)} == {13}
    rooms = [set(product(rows, columns)) for rows, columns in product((range(1, 6), range(7, 12)), (range(1, 6),))]
    rooms += [set(product(range(1, 7), range(7, 12))), set(product(range(8, 12), range(7, 12)))]
    assert set(CELLS) == set.union(*rooms, {(3, 6), (6, 2), (7, 9), (10, 6)})


@pytest.mark.parametrize("slip", [0.0, 1 / 3, 1.0])
def test_a_move_in_the_rooms_slips_to_each_other_direction_alike_and_walls_hold(slip):
    mdp = four_rooms(slip=slip)
    for s, a in product(range(104), range(4)):
        expected = np.zeros(104)
        for direction in range(4):
            expected[neighbour(s, direction)] += 1 - slip if direction == a else slip / 3
        if s == GOAL:
            expected = np.eye(104)[s]
        np.testing.assert_allclose(mdp.P[s, a], expected, rtol=0, atol=1e-15)


def test_the_step_into_the_goal_is_worth_one_and_every_other_nothing():
    mdp, door_above = four_rooms(slip=0.0), CELLS.index((6, 9))
    assert walked(mdp, CELLS.index((4, 9)), *[DOWN] * 3) == [
        (CELLS.index((5, 9)), 0.0),
        (door_above, 0.0),
        (GOAL, 1.0),
    ]
    np.testing.assert_array_equal(np.flatnonzero(mdp.terminal), [GOAL])
    expected = [[float(s != GOAL and neighbour(s, a) == GOAL) for a in range(4)] for s in range(104)]
    np.testing.assert_array_equal(mdp.expected_reward, expected)
    env = TabularEnv(four_rooms())
    env.reset(seed=0)
    for action in np.random.default_rng(0).integers(4, size=5000):
        s, reward, terminated, _, _ = env.step(action)
        assert reward == terminated == (s == GOAL)
        if terminated:
            env.reset()


@pytest.mark.parametrize("goal", [(7, 9), (1, 1), [11, 11]])
def test_the_rooms_begin_anywhere_but_at_the_goal(goal):
    mdp, end = four_rooms(goal), CELLS.index(tuple(goal))
    np.testing.assert_allclose(mdp.rho0, (np.arange(104) != end) / 103)
    np.testing.assert_array_equal(np.flatnonzero(mdp.terminal), [end])


@examples(50)
@given(st.integers(0, 103), st.floats(0.5, 0.95))
def test_without_slip_the_best_value_in_the_rooms_is_gamma_to_the_distance(end, gamma):
    mdp = four_rooms(CELLS[end], slip=0.0, gamma=gamma)
    distance, frontier = {end: 0}, [end]
    for s in frontier:
        for t in {neighbour(s, a) for a in range(4)} - distance.keys():
            distance[t] = distance[s] + 1
            frontier.append(t)
    assert len(distance) == 104
    towards = np.eye(4)[[min(range(4), key=lambda a: distance[neighbour(s, a)]) for s in range(104)]]
    expected = [gamma ** (distance[s] - 1) if s != end else 0 for s in range(104)]
    np.testing.assert_allclose(mdp.value(towards), expected, rtol=1e-10)


# Garnets

garnets = st.fixed_dictionaries(
    {
        "n_states": st.integers(1, 8),
        "n_actions": st.integers(1, 4),
        "branching": st.integers(1, 8),
        "gamma": st.floats(0, 0.99),
        "termination": st.sampled_from([0.0, 0.1, 0.7, 1.0]),
        "seed": S.seeds,
    }
).map(lambda kwargs: kwargs | {"branching": min(kwargs["branching"], kwargs["n_states"])})


@examples(200)
@given(garnets)
def test_each_action_of_a_garnet_leads_to_as_many_states_as_it_branches(kwargs):
    mdp = garnet(**kwargs)
    n, termination = kwargs["n_states"], kwargs["termination"]
    ends = int(termination > 0)
    assert mdp.P.shape == (n + ends, kwargs["n_actions"], n + ends)
    live = mdp.P[:n]
    if termination < 1:
        np.testing.assert_array_equal((live[..., :n] > 0).sum(axis=-1), kwargs["branching"])
    np.testing.assert_allclose(live[..., :n].sum(axis=-1), 1 - termination, rtol=1e-12)
    np.testing.assert_array_equal(live[..., n:], np.full((*live.shape[:2], ends), termination))
    np.testing.assert_array_equal(mdp.rho0, np.append(np.full(n, 1 / n), np.zeros(ends)))
    np.testing.assert_array_equal(np.flatnonzero(mdp.terminal), [n] * ends)
    assert mdp.gamma == kwargs["gamma"]


@examples(200)
@given(garnets)
def test_a_garnet_is_a_function_of_its_seed(kwargs):
    mdp, again, other = (garnet(**kwargs | {"seed": kwargs["seed"] + k}) for k in (0, 0, 1))
    np.testing.assert_array_equal(mdp.P, again.P)
    np.testing.assert_array_equal(mdp.R, again.R)
    assert (mdp.R != other.R).any()
    from_generator = garnet(**kwargs | {"seed": np.random.default_rng(kwargs["seed"])})
    np.testing.assert_array_equal(mdp.R, from_generator.R)


def test_a_generator_gives_another_garnet_each_time():
    rng = np.random.default_rng(0)
    assert (garnet(seed=rng).R != garnet(seed=rng).R).all()


def test_garnets_have_uniform_successors_gaps_of_uniform_cuts_and_normal_rewards():
    n, b = 60, 4
    mdp = garnet(n, 50, b, seed=1)
    rows = n * 50
    # How often each state is a successor: rows draws, each with probability b/n.
    visits = (mdp.P > 0).sum(axis=(0, 1))
    assert np.abs((visits - rows * b / n) / np.sqrt(rows * b / n * (1 - b / n))).max() < 6
    # Gaps are Dirichlet(1, …, 1): E p² = 2/(b (b + 1)), E p⁴ = 24/(b (b + 1)(b + 2)(b + 3)). The p of one row sum to
    # one and correlate negatively, also their squares, so that independent ones bound the variance.
    squares = (mdp.P[mdp.P > 0] ** 2).reshape(rows, b)
    mean, fourth = 2 / (b * (b + 1)), 24 / (b * (b + 1) * (b + 2) * (b + 3))
    assert abs(squares.mean() - mean) < 6 * np.sqrt((fourth - mean**2) / (rows * b))
    r = mdp.R.ravel()
    assert abs(r.mean()) < 6 / np.sqrt(rows)
    assert abs((r**2).mean() - 1) < 6 * np.sqrt(2 / rows)


# The Collision task

FORWARD, TURN = 0, 1


def test_going_forward_leads_into_the_obstacle_and_turning_away_ends_without_reward():
    assert walked(collision(), 5, FORWARD, FORWARD, FORWARD) == [(6, 0.0), (7, 0.0), (8, 1.0)]
    for s in range(8):
        assert walked(collision(), s, TURN) == [(8, 0.0)]
    np.testing.assert_array_equal(np.flatnonzero(collision().terminal), [8])


def test_the_collision_task_has_the_values_and_the_states_of_the_paper():
    p = OffPolicy(collision(), COLLISION_TARGET, COLLISION_BEHAVIOUR)
    np.testing.assert_allclose(p.value(), [*(0.9 ** np.arange(7, -1, -1.0)), 0], rtol=1e-13)
    visits = np.array([2, 4, 6, 8, 8, 4, 2, 1, 0]) / 8  # in an episode of the behaviour
    np.testing.assert_allclose(p.d, visits / visits.sum(), rtol=0, atol=1e-15)
    np.testing.assert_array_equal(p.rho[:8, FORWARD], [1] * 4 + [2] * 4)


def test_states_of_the_collision_task_have_three_of_six_features_drawn_for_each_run():
    rng = np.random.default_rng(0)
    draws = np.array([collision_features(rng) for _ in range(500)])
    assert set(np.unique(draws)) == {0, 1}
    assert (draws[:, :8].sum(axis=2) == 3).all()
    assert not draws[:, 8].any()
    # 4000 rows, of which each of the 20 triples is as likely
    _, counts = np.unique(draws[:, :8].reshape(-1, 6), axis=0, return_counts=True)
    assert len(counts) == 20
    assert np.abs(counts - 200).max() < 6 * np.sqrt(200 * 19 / 20)
    np.testing.assert_array_equal(collision_features(3), collision_features(np.random.default_rng(3)))


# Input


@pytest.mark.parametrize("value", [0, -2, 1.5])
@pytest.mark.parametrize(
    ("make", "name"),
    [(random_walk, "n_states"), (garnet, "n_states"), (garnet, "n_actions"), (garnet, "branching")],
)
def test_a_count_below_one_is_an_error_that_names_it(make, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be an integer of at least 1, got {value}"):
        make(**{name: value})


@pytest.mark.parametrize("goal", [(0, 0), (6, 6), (13, 1), (-2, 1), (1,), 7, None, "door"], ids=str)
def test_a_goal_in_a_wall_or_outside_or_no_cell_at_all_is_an_error(goal):
    with pytest.raises(ValueError, match="goal must be the row and column of a cell of FOUR_ROOMS"):
        four_rooms(goal)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
@pytest.mark.parametrize(("make", "name"), [(four_rooms, "slip"), (garnet, "termination")])
def test_a_probability_out_of_range_is_an_error_that_names_it(make, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must lie in \[0, 1\], got {value}"):
        make(**{name: value})


def test_a_garnet_cannot_branch_to_more_states_than_it_has():
    with pytest.raises(ValueError, match="branching must be at most n_states = 3, got 4"):
        garnet(3, branching=4)


@pytest.mark.parametrize("make", [two_state, garnet])
def test_without_an_end_a_problem_needs_a_discount(make):
    with pytest.raises(ValueError, match="gamma must be below 1"):
        make(gamma=1.0)


@pytest.mark.parametrize(
    "make", [short_corridor, random_walk, four_rooms, collision, lambda gamma: garnet(gamma=gamma, termination=0.1)]
)
def test_a_problem_with_an_end_needs_no_discount(make):
    assert make(gamma=1.0).gamma == 1
