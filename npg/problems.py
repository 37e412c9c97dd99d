"""Finite Markov decision processes of the literature, each a function that returns a ``TabularMDP``."""

import numpy as np

from ._checks import at_least, unit_interval
from ._typing import Array, Rng
from .exact import TabularMDP

FOUR_ROOMS = (
    "#############",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#.....#.....#",
    "##.####.....#",
    "#.....###.###",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#############",
)
"""The walls (#) and cells (.) of ``four_rooms``; states number the cells row by row."""


def short_corridor(gamma: float = 1.0) -> TabularMDP:
    """The short corridor with switched actions (Sutton & Barto 2018, example 13.1).

    States 0, 1, 2 in a row, then the terminal state 3; actions 0 (left) and 1 (right), exchanged in state 1; every
    step costs 1. A policy that cannot tell the states apart, as on ``features="constant"``, does best with
    Pr(right) = 2 − √2, Eq. (4.17).
    """
    P = np.zeros((4, 2, 4))
    for s, (left, right) in enumerate(((0, 1), (2, 0), (1, 3), (3, 3))):
        P[s, 0, left] = P[s, 1, right] = 1
    R = np.array([[-1.0, -1.0]] * 3 + [[0.0, 0.0]])
    return TabularMDP(P, R, gamma, np.array([1.0, 0, 0, 0]))


def random_walk(n_states: int = 19, left: float = -1.0, right: float = 1.0, gamma: float = 1.0) -> TabularMDP:
    """A walk over n states in a row from the middle one, until it leaves at either end.

    Actions 0 (left) and 1 (right) move; the policy that chooses both with probability 1/2 makes it the walk of
    Sutton & Barto (2018, examples 6.2 and 7.1). State n is terminal.

    Parameters
    ----------
    n_states : int
        n ≥ 1.
    left, right : float
        Reward on leaving at that end; 0 elsewhere.
    gamma : float
    """
    at_least("n_states", n_states, 1)
    end = n_states
    P, R = np.zeros((n_states + 1, 2, n_states + 1)), np.zeros((n_states + 1, 2))
    for s in range(n_states):
        P[s, 0, s - 1 if s > 0 else end] = 1
        P[s, 1, s + 1] = 1
    P[end, :, end] = 1
    R[0, 0], R[n_states - 1, 1] = left, right
    return TabularMDP(P, R, gamma, np.eye(n_states + 1)[(n_states - 1) // 2])


def two_state(gamma: float = 0.95) -> TabularMDP:
    """The two states of Kakade (2001), in which the plain gradient waits on a plateau.

    Action 0 stays, action 1 goes to the other state. Staying is worth 1 in state 0 and 2 in state 1, going
    nothing. The paper maximises the average reward from a policy whose stationary distribution is (0.8, 0.2); here
    that is where episodes begin, and γ near 1 stands for the average.
    """
    P = np.zeros((2, 2, 2))
    P[[0, 1], 0, [0, 1]] = P[[0, 1], 1, [1, 0]] = 1
    return TabularMDP(P, np.array([[1.0, 0.0], [2.0, 0.0]]), gamma, np.array([0.8, 0.2]))


def four_rooms(goal: tuple[int, int] = (7, 9), slip: float = 1 / 3, gamma: float = 0.9) -> TabularMDP:
    """Four rooms joined by doorways (Sutton, Precup & Singh 1999), begun anywhere but at the goal.

    Actions 0–3 go up, right, down and left; with probability ``slip`` one of the other three directions is taken
    instead; into a wall is no move. The step into the goal is worth 1, and the goal is terminal.

    Parameters
    ----------
    goal : (row, column)
        A cell of ``FOUR_ROOMS``; the doorway of the eastern rooms by default.
    slip : float
    gamma : float

    Raises
    ------
    ValueError
        If the goal is no cell, or ``slip`` no probability.
    """
    cells = [(i, j) for i, line in enumerate(FOUR_ROOMS) for j, cell in enumerate(line) if cell == "."]
    if np.shape(goal) != (2,) or tuple(goal) not in cells:
        raise ValueError(f"goal must be the row and column of a cell of FOUR_ROOMS, got {goal!r}")
    unit_interval("slip", slip)
    number = {cell: s for s, cell in enumerate(cells)}
    end = number[goal[0], goal[1]]
    S = len(cells)
    move = np.zeros((S, 4, S))
    for (i, j), s in number.items():
        for a, (di, dj) in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1))):
            move[s, a, number.get((i + di, j + dj), s)] = 1
    direction = np.full((4, 4), slip / 3) + (1 - slip - slip / 3) * np.eye(4)
    P = np.einsum("ab,sbt->sat", direction, move)
    P[end] = np.eye(S)[end]
    R = np.zeros((S, 4, S))
    R[np.arange(S) != end, :, end] = 1
    return TabularMDP(P, R, gamma, (np.arange(S) != end) / (S - 1))


def garnet(
    n_states: int = 10,
    n_actions: int = 3,
    branching: int = 3,
    *,
    gamma: float = 0.95,
    termination: float = 0.0,
    seed: int | Rng = 0,
) -> TabularMDP:
    """A random problem (Archibald, McKinnon & Thomas 1995): each action leads to a few random states.

    Parameters
    ----------
    n_states, n_actions : int
        S and A.
    branching : int
        Different successors of each state and action; their probabilities are the gaps between uniform cuts of
        [0, 1]. Rewards are standard normal; episodes begin anywhere.
    gamma : float
    termination : float
        Probability that a step ends the episode; if not 0, state S is terminal.
    seed : int or numpy.random.Generator
        The problem is a function of it.

    Raises
    ------
    ValueError
        If a number is out of range.
    """
    for name, value in (("n_states", n_states), ("n_actions", n_actions), ("branching", branching)):
        at_least(name, value, 1)
    if branching > n_states:
        raise ValueError(f"branching must be at most n_states = {n_states}, got {branching}")
    unit_interval("termination", termination)
    rng = np.random.default_rng(seed)
    successors = rng.permuted(np.tile(np.arange(n_states), (n_states, n_actions, 1)), axis=2)[..., :branching]
    cuts = np.sort(rng.random((n_states, n_actions, branching - 1)), axis=2)
    end = int(termination > 0)
    P = np.zeros((n_states + end, n_actions, n_states + end))
    np.put_along_axis(P[:n_states], successors, (1 - termination) * np.diff(cuts, prepend=0, append=1), axis=2)
    R = np.zeros((n_states + end, n_actions))
    R[:n_states] = rng.normal(size=(n_states, n_actions))
    rho0 = np.zeros(n_states + end)
    rho0[:n_states] = 1 / n_states
    if end:
        P[:n_states, :, -1], P[-1, :, -1] = termination, 1
    return TabularMDP(P, R, gamma, rho0)


def baird(gamma: float = 0.99) -> TabularMDP:
    """Baird's counterexample (1995; Sutton & Barto 2018, section 11.2), on which off-policy TD diverges.

    Action 0 (solid) leads to state 6, action 1 (dashed) to one of the states 0, …, 5, each as likely; there are no
    rewards and no ends, and the first state is any. ``BAIRD_TARGET`` is always solid, ``BAIRD_BEHAVIOUR`` in one of
    seven steps, and ``BAIRD_FEATURES``, eight of the seven states, start from ``BAIRD_WEIGHTS``.
    """
    P = np.zeros((7, 2, 7))
    P[:, 0, 6], P[:, 1, :6] = 1, 1 / 6
    return TabularMDP(P, np.zeros((7, 2)), gamma, np.full(7, 1 / 7))


BAIRD_FEATURES = np.column_stack([np.diag([2.0] * 6 + [1.0]), [1.0] * 6 + [2.0]])
"""x of each state of ``baird``: (7, 8)."""
BAIRD_WEIGHTS = np.array([1.0] * 6 + [10.0, 1.0])
"""The first weights of the figures of Sutton & Barto: (8,)."""
BAIRD_TARGET = np.tile([1.0, 0.0], (7, 1))
"""The target policy of ``baird``, solid: (7, 2)."""
BAIRD_BEHAVIOUR = np.tile([1 / 7, 6 / 7], (7, 1))
"""The behaviour of ``baird``, after which all states are equally likely: (7, 2)."""


def imani() -> TabularMDP:
    """A counterexample to Off-PAC, after Imani, Graves & White (2018).

    In state 0 action 0 leads to state 1 and action 1 to state 2, without reward. Action 0 in state 1 is worth 2 and
    action 1 in state 2 is worth 1, the others nothing, and the episode ends, in state 3; γ = 1. On ``IMANI_FEATURES``
    an actor cannot tell states 1 and 2 apart; ``IMANI_BEHAVIOUR`` is in state 2 three times as often as in state 1.
    """
    P, R = np.zeros((4, 2, 4)), np.zeros((4, 2))
    P[0, [0, 1], [1, 2]] = P[1:, :, 3] = 1
    R[1, 0], R[2, 1] = 2, 1
    return TabularMDP(P, R, 1.0, np.array([1.0, 0, 0, 0]))


IMANI_FEATURES = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
"""The actor's features of each state of ``imani``, alike in states 1 and 2: (4, 2)."""
IMANI_BEHAVIOUR = np.tile([0.25, 0.75], (4, 1))
"""The behaviour of ``imani``: (4, 2)."""


def collision(gamma: float = 0.9) -> TabularMDP:
    """The Collision task of off-policy prediction (Ghiassian & Sutton 2021), as in the code of its authors.

    States 0, …, 7 in a row, of which the first four begin an episode, each as likely, then the terminal state 8.
    Action 0 goes forward, and out of state 7 into the obstacle, which is worth 1; action 1 turns away and ends the
    episode without reward. ``COLLISION_TARGET`` always goes forward, so that state s is worth γ^(7 − s);
    ``COLLISION_BEHAVIOUR`` turns away in the last four states with probability 1/2. ``collision_features`` are too few
    to express these values.
    """
    P, R = np.zeros((9, 2, 9)), np.zeros((9, 2))
    P[np.arange(8), 0, np.arange(1, 9)] = P[:8, 1, 8] = P[8, :, 8] = 1
    R[7, 0] = 1
    return TabularMDP(P, R, gamma, np.array([0.25] * 4 + [0] * 5))


COLLISION_TARGET = np.tile([1.0, 0.0], (9, 1))
"""The target policy of ``collision``, forward: (9, 2)."""
COLLISION_BEHAVIOUR = np.array([[1.0, 0.0]] * 4 + [[0.5, 0.5]] * 4 + [[1.0, 0.0]])
"""The behaviour of ``collision``: (9, 2)."""


def collision_features(seed: int | Rng) -> Array:
    """x of each state of ``collision``, three ones at random among six; every run draws them anew: (9, 6).

    Parameters
    ----------
    seed : int or numpy.random.Generator
    """
    rng = np.random.default_rng(seed)
    return np.append(rng.permuted(np.tile([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], (8, 1)), axis=1), np.zeros((1, 6)), axis=0)
