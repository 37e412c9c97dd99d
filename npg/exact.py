"""Finite Markov decision processes solved exactly: what every estimator is checked against (derivations, chapter 4).

On a small problem the objective, its gradient, the visitation of states and the Fisher matrix are the solutions of
linear systems, as are the weights to which TD(λ) converges (chapter 7) and the average reward and its gradient
(chapter 8); the mean and covariance of any estimator are finite sums over all trajectories. Shapes: S states, A
actions, n parameters; a policy is a matrix π (S, A), or an ``npg.Policy`` whose observations are the states
0, …, S − 1, together with θ. Values, visitations and gradients keep a complex θ, so that the complex
step works.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import linalg, sparse
from scipy.sparse import csgraph

from ._checks import at_least, has_shape, unit_interval
from ._typing import Array, Inputs
from .distributions import Categorical
from .features import rows
from .policies import Policy
from .trajectories import Trajectories

ROW_SUM_TOLERANCE = 1e-9
"""How far the probabilities of a row may sum from one."""
SINGULAR = 1e-13
"""Reciprocal condition number below which a linear system is refused: its solution may have no right digit."""
MAX_ROWS = 5_000_000
"""Rows (trajectories times steps) that ``enumerate_trajectories`` makes at most: about half a gigabyte."""


def _probabilities(name: str, p: Array, shape: tuple[int, ...]) -> Array:
    """A read-only copy of ``p``, refused unless its last axis holds probabilities."""
    if np.iscomplexobj(p):
        raise TypeError(f"{name} must be real: for a complex step give an npg.Policy and a complex theta")
    p = np.array(p, dtype=float)
    has_shape(name, p, shape)
    if not (p >= 0).all():
        raise ValueError(f"{name} must hold probabilities of at least 0, got {p[~(p >= 0)][0]}")
    error = np.abs(p.sum(axis=-1) - 1)
    if error.max() > ROW_SUM_TOLERANCE:
        row = np.unravel_index(error.argmax(), error.shape)
        where = f"{name}[{', '.join(map(str, row))}]" if row else name
        raise ValueError(f"{where} must sum to 1, got {p[row].sum()}")
    p.setflags(write=False)
    return p


def _reached(graph: Array, sources: Array) -> Array:
    """Which nodes of a graph (S, S) of edges some path leads to from a node of ``sources`` (S,) boolean: (S,)."""
    reached = new = sources
    while new.any():
        new = graph[new].any(axis=0) & ~reached
        reached = reached | new
    return reached


def _factorised(matrix: Array) -> tuple[Array, Array]:
    """LU factors of a matrix, refused if it is singular to working precision."""
    factors: tuple[Array, Array] = linalg.lu_factor(matrix, check_finite=False)
    (condition,) = linalg.get_lapack_funcs(("gecon",), factors[:1])
    rcond, _ = condition(factors[0], np.abs(matrix).sum(axis=0).max(initial=0))
    if len(matrix) and not rcond > SINGULAR:
        raise ValueError(
            f"the policy makes the linear system singular to working precision (reciprocal condition number "
            f"{rcond:.1g}): in some states it is too close to one that never leaves them"
        )
    return factors


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """A finite Markov decision process.

    A state that every action leaves unchanged at reward 0 is terminal: the episode ends on entering it.

    Parameters
    ----------
    P : (S, A, S)
        P[s, a, s'] = Pr(s' | s, a).
    R : (S, A) or (S, A, S)
        R[s, a], the reward of taking a in s; or R[s, a, s'], where it depends on the next state too.
    gamma : float
        Discount γ in [0, 1]; 1 only if a terminal state can be reached from every state.
    rho0 : (S,)
        Distribution of the first state; zero on terminal states.

    Raises
    ------
    ValueError
        If shapes disagree, a row is no distribution, a reward is not finite, or γ is not as above.

    Notes
    -----
    Where ``theta`` is optional, give a matrix π (S, A) alone or a ``Policy`` and its θ. With γ = 1 a policy under
    which some state never reaches a terminal one, or only with a probability of the size of rounding, has no values
    that could be computed: a ``ValueError``.
    """

    P: Array
    R: Array
    gamma: float
    rho0: Array

    def __post_init__(self) -> None:
        shape = np.shape(self.P)
        if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
            raise ValueError(f"P must have shape (S, A, S), got {shape}")
        R = np.array(self.R, dtype=float)
        if R.shape not in (shape[:2], shape):
            raise ValueError(f"R must have shape {shape[:2]} or {shape} to go with P, got {R.shape}")
        if not np.isfinite(R).all():
            raise ValueError(f"R must be finite, got {R[~np.isfinite(R)][0]}")
        unit_interval("gamma", self.gamma)
        R.setflags(write=False)
        for name, value in (
            ("P", _probabilities("P", self.P, shape)),
            ("R", R),
            ("rho0", _probabilities("rho0", self.rho0, shape[:1])),
        ):
            object.__setattr__(self, name, value)
        if self.rho0[self.terminal].any():
            raise ValueError(f"rho0 must be 0 on terminal states, got {self.rho0} with terminal {self.terminal}")
        if self.gamma == 1 and not _reached(self.P.max(axis=1).T > 0, self.terminal).all():
            raise ValueError("gamma must be below 1 unless a terminal state can be reached from every state, got 1")

    @property
    def n_states(self) -> int:
        """S, terminal states included."""
        return self.P.shape[0]

    @property
    def n_actions(self) -> int:
        """A."""
        return self.P.shape[1]

    @cached_property
    def expected_reward(self) -> Array:
        """E[R_{t+1} | s, a], all that values depend on: (S, A)."""
        return self.R if self.R.ndim == 2 else np.einsum("sat,sat->sa", self.P, self.R)

    @cached_property
    def terminal(self) -> Array:
        """Which states are terminal: (S,) boolean."""
        s = np.arange(self.n_states)
        return (self.P[s, :, s] == 1).all(axis=1) & (self.expected_reward == 0).all(axis=1)

    def features(self, policy: Policy) -> Inputs:
        """x of each state, S rows."""
        if not isinstance(policy, Policy):
            raise TypeError(f"this needs an npg.Policy and its theta, got {type(policy).__name__}")
        return policy.features(np.arange(self.n_states))

    def policy_matrix(self, policy: Policy | Array, theta: Array | None = None) -> Array:
        """π(a|s): (S, A).

        Raises
        ------
        ValueError, TypeError
            If a matrix is not one distribution per state; if a ``Policy`` has other actions or comes without θ.
        """
        if not isinstance(policy, Policy):
            if theta is not None:
                raise TypeError("theta goes with an npg.Policy, got it with a matrix")
            return _probabilities("policy", policy, (self.n_states, self.n_actions))
        if policy.distribution != Categorical(self.n_actions):
            raise ValueError(f"policy must choose among {self.n_actions} actions, got {policy.distribution}")
        if theta is None:
            raise TypeError("theta is missing: an npg.Policy needs its parameters")
        if not np.isfinite(theta).all():
            raise ValueError(f"theta must be finite, got {theta}")
        return policy.distribution.probabilities(policy.eta(theta, self.features(policy)))

    def _chain(self, pi: Array) -> Array:
        """P_π: (S, S)."""
        return np.einsum("sa,sat->st", pi, self.P)

    def _system(self, pi: Array, gamma: float) -> tuple[Array, Array]:
        """LU factors of I − γ P_π on the non-terminal states, Eq. (4.2)."""
        chain = self._chain(pi)
        if gamma == 1 and not _reached(chain.T != 0, self.terminal).all():
            raise ValueError(
                "with gamma = 1 the policy must reach a terminal state from every state; this one does not"
            )
        live = ~self.terminal
        return _factorised(np.eye(live.sum()) - gamma * chain[np.ix_(live, live)])

    def _solve(self, factors: tuple[Array, Array], b: Array, transposed: bool = False) -> Array:
        """Solution of the system for the right-hand side ``b`` (S, …), zero on terminal states."""
        solution = np.zeros(b.shape, dtype=np.result_type(factors[0], b))
        live = ~self.terminal
        solution[live] = linalg.lu_solve(factors, b[live], trans=int(transposed))
        return solution

    def _action_value(self, v: Array) -> Array:
        return self.expected_reward + self.gamma * (self.P @ v)  # (4.1)

    def _values_to_go(self, pi: Array, horizon: int) -> Iterator[tuple[Array, Array]]:
        """q_h and v_h for h = 1, …, horizon, Eq. (4.14)."""
        at_least("horizon", horizon, 1)
        v = np.zeros(self.n_states)
        for _ in range(horizon):
            q = self._action_value(v)
            v = (pi * q).sum(axis=1)  # (4.14)
            yield q, v

    def _evaluate(self, pi: Array, horizon: int | None) -> tuple[Array, Array]:
        """q_π and v_π, of the next ``horizon`` steps if given."""
        if horizon is None:
            v = self._solve(self._system(pi, self.gamma), (pi * self.expected_reward).sum(axis=1))  # (4.2)
            return self._action_value(v), v
        *_, last = self._values_to_go(pi, horizon)
        return last

    def value(self, policy: Policy | Array, theta: Array | None = None, horizon: int | None = None) -> Array:
        """v_π, the solution of the Bellman equation, Eqs. (4.1), (4.2); of ``horizon`` steps, Eq. (4.14): (S,)."""
        return self._evaluate(self.policy_matrix(policy, theta), horizon)[1]

    def action_value(self, policy: Policy | Array, theta: Array | None = None, horizon: int | None = None) -> Array:
        """q_π(s, a) = R(s, a) + γ Σ P(s'|s, a) v_π(s'), Eq. (4.1): (S, A)."""
        return self._evaluate(self.policy_matrix(policy, theta), horizon)[0]

    def advantage(self, policy: Policy | Array, theta: Array | None = None, horizon: int | None = None) -> Array:
        """a_π(s, a) = q_π(s, a) − v_π(s), Eq. (4.1): (S, A)."""
        q, v = self._evaluate(self.policy_matrix(policy, theta), horizon)
        return q - v[:, None]

    def J(self, policy: Policy | Array, theta: Array | None = None, horizon: int | None = None) -> float:
        """J = ρ_0ᵀ v_π, Eq. (4.3), the objective Eq. (1.1); J_H of the first ``horizon`` steps, Eq. (4.14)."""
        v: Any = self.value(policy, theta, horizon)
        return self.rho0 @ v  # (1.1), (4.3)

    def visitation(
        self,
        policy: Policy | Array,
        theta: Array | None = None,
        *,
        gamma: float | None = None,
        normalized: bool = False,
    ) -> Array:
        """d_γ(s) = Σ_t γ^t Pr(S_t = s), zero on terminal states, Eqs. (4.4), (4.5): (S,).

        Parameters
        ----------
        policy, theta
        gamma : float, optional
            Another discount than the problem's: with 1, d_1 is the expected number of visits per episode.
        normalized : bool
            Divide by the sum; with γ = 1, the episodic on-policy distribution (Sutton & Barto 2018, p. 199).
        """
        gamma = self.gamma if gamma is None else gamma
        unit_interval("gamma", gamma)
        pi = self.policy_matrix(policy, theta)
        d = self._solve(self._system(pi, gamma), self.rho0, transposed=True)  # (4.4)
        d[~_reached(self._chain(pi) != 0, self.rho0 > 0) | (d.real < 0)] = 0  # there d is rounding
        return d / d.sum() if normalized else d  # (4.5)

    def state_marginals(self, policy: Policy | Array, theta: Array | None = None, *, horizon: int) -> Array:
        """Pr(S_t = s) for t = 0, …, horizon, terminal states included, Eq. (4.6): (horizon + 1, S).

        Those of two policies within total variation α are within 2αt of each other in L1, Eq. (6.6).
        """
        at_least("horizon", horizon, 0)
        chain = self._chain(self.policy_matrix(policy, theta))
        p = np.empty((horizon + 1, self.n_states), dtype=chain.dtype)
        p[0] = self.rho0
        for t in range(horizon):
            p[t + 1] = p[t] @ chain  # (4.6)
        return p

    def stationary_distribution(self, policy: Policy | Array, theta: Array | None = None) -> Array:
        """μ with μᵀP_π = μᵀ and Σ μ = 1, Eq. (4.7): (S,).

        Raises
        ------
        ValueError
            If the chain has several recurrent classes, hence no unique μ.
        """
        return self._stationary(self._chain(self.policy_matrix(policy, theta)))

    def _stationary(self, chain: Array) -> Array:
        """μ of a chain (S, S), which may be complex."""
        n, label = csgraph.connected_components(sparse.csr_array(chain != 0), connection="strong")
        leaves = label[:, None] != label[None, :]
        transient = np.unique(label[((chain != 0) & leaves).any(axis=1)])
        if n - len(transient) > 1:
            raise ValueError(f"the policy must have one recurrent class of states, got {n - len(transient)}")
        recurrent = ~np.isin(label, transient)
        equations = chain[np.ix_(recurrent, recurrent)].T - np.eye(recurrent.sum())
        equations[0] = 1  # the balance of one state follows from the others; Σ μ = 1 takes its place
        mu = np.zeros(self.n_states, dtype=chain.dtype)
        mu[recurrent] = linalg.lu_solve(_factorised(equations), np.eye(len(equations))[0])  # (4.7)
        return mu

    def gradient(self, policy: Policy, theta: Array, horizon: int | None = None) -> Array:
        """∇J by the policy-gradient theorem, Eqs. (1.9), (4.9), (4.10); ∇J_H, Eq. (4.15): (n,).

        For a table its components shrink with d(s) π(a|s), hence plateaus, Eq. (9.14).
        """
        x, pi = self.features(policy), self.policy_matrix(policy, theta)
        if horizon is None:
            factors = self._system(pi, self.gamma)
            q = self._action_value(self._solve(factors, (pi * self.expected_reward).sum(axis=1)))
            d = self._solve(factors, self.rho0, transposed=True)
            return policy.all_actions_gradient(theta, x, q, d)  # (1.9), (4.9)
        q_to_go = [q for q, _ in self._values_to_go(pi, horizon)]
        p = self.state_marginals(policy, theta, horizon=horizon)
        dq = sum(self.gamma**t * p[t, :, None] * q_to_go[horizon - t - 1] for t in range(horizon))  # (4.15)
        return policy.all_actions_gradient(theta, x, np.asarray(dq), np.ones(self.n_states))

    def value_jacobian(self, policy: Policy, theta: Array) -> Array:
        """∂v_π/∂θ by differentiating the Bellman equation, Eq. (4.8); ρ_0ᵀ ∂v_π/∂θ = ∇J, Eq. (4.9): (S, n)."""
        x, pi = self.features(policy), self.policy_matrix(policy, theta)
        softmax_jacobian = policy.distribution.fisher(policy.eta(theta, x))
        d_pi = softmax_jacobian @ policy.model.jacobian(theta, x)  # (S, A, n)
        factors = self._system(pi, self.gamma)
        q = self._action_value(self._solve(factors, (pi * self.expected_reward).sum(axis=1)))
        return self._solve(factors, np.einsum("sa,san->sn", q, d_pi))  # (4.8)

    def fisher(self, policy: Policy, theta: Array, *, normalized: bool = False) -> Array:
        """F(θ) = Σ_s d_γ(s) F_s(θ) under the exact visitation, Eq. (4.11): (n, n)."""
        x = self.features(policy)
        return policy.fisher(theta, x, self.visitation(policy, theta, normalized=normalized))  # (4.11)

    def natural_gradient(self, policy: Policy, theta: Array, *, normalized: bool = False) -> Array:
        """F⁺∇J, the shortest solution of F u = ∇J, Eqs. (4.12), (4.13), (9.6): (n,).

        Another parametrisation of the same policies gives the same change of them, Eqs. (9.8), (9.9). For a table it
        is the advantage, and θ + αu never has a smaller J, Eq. (9.13).

        Found as the least-squares fit of uᵀ∇log π(a|s), the compatible critic, to a_π(s, a), Eqs. (8.3), (9.11), whose
        normal equations these are; that avoids squaring the condition number. With this critic in place of q_π the
        gradient is exact, Eq. (8.4). Directions in which the fit has less than 1e-12 of the largest singular value
        count as null. ``normalized`` takes F under the normalised visitation, Eq. (9.12).

        Raises
        ------
        TypeError
            For a complex θ: the fit is not an analytic function.
        """
        x = self.features(policy)
        if np.iscomplexobj(theta):
            raise TypeError("theta must be real: a least-squares fit is no analytic function of it")
        pi = self.policy_matrix(policy, theta)
        s, a = (index.ravel() for index in np.indices(pi.shape))
        d = self.visitation(policy, theta)
        psi = policy.score(theta, rows(x, s), a)
        weight = np.sqrt(d[s] * pi[s, a])
        a_pi = self.advantage(policy, theta)[s, a]
        u = np.linalg.lstsq(weight[:, None] * psi, weight * a_pi, rcond=1e-12)[0]  # (4.12), (8.3), (9.11)
        return u * d.sum() if normalized else u  # (9.12)

    def td_fixed_point(
        self, policy: Policy | Array, theta: Array | None = None, *, x: Array, lam: float = 0.0
    ) -> Array:
        """w at which TD(λ) on v̂ = wᵀx(s) is at rest on average, Eq. (7.16); for λ = 0, Eq. (7.4): (d,).

        A_λ w = b_λ with A_λ = Xᵀ D (I − γλP_π)^{-1} (I − γP_π) X and b_λ = Xᵀ D (I − γλP_π)^{-1} r_π. D has the
        on-policy weights: the expected visits of an episode, d_1, where there are terminal states, in which x counts
        as zero; otherwise the stationary distribution μ. The error of v̂ in the norm of D is at most 1/√(1 − γ²)
        times that of the projection of v_π, Eq. (7.5). λ = 1 gives the projection itself, Eq. (7.2).

        Parameters
        ----------
        policy, theta
        x : (S, d)
            Features of each state. Where they are linearly dependent on the states visited, w is the smallest
            solution.
        lam : float
            λ in [0, 1].

        Raises
        ------
        ValueError
            For λ outside [0, 1], for x of another shape or not finite, for a policy under which an episode may
            never end, or one without a unique μ.
        """
        x = np.asarray(x)
        if x.ndim != 2 or len(x) != self.n_states:
            raise ValueError(f"x must have shape ({self.n_states}, d), a row for each state, got {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError(f"x must be finite, got {x[~np.isfinite(x)][0]}")
        unit_interval("lam", lam)
        pi = self.policy_matrix(policy, theta)
        chain = self._chain(pi)
        d = self.visitation(policy, theta, gamma=1) if self.terminal.any() else self._stationary(chain)
        x = x * ~self.terminal[:, None]
        factors = self._system(pi, self.gamma * lam)
        weighted = (d[:, None] * x).T
        A = weighted @ self._solve(factors, x - self.gamma * chain @ x)  # (7.4), (7.16)
        b = weighted @ self._solve(factors, (pi * self.expected_reward).sum(axis=1))
        return np.linalg.lstsq(A, b)[0]

    def _differential(self, pi: Array) -> tuple[Array, Any, Array]:
        """μ, r(π) and v of Eq. (8.15)."""
        chain, r = self._chain(pi), (pi * self.expected_reward).sum(axis=1)
        mu = self._stationary(chain)
        average = mu @ r
        return mu, average, linalg.solve(np.eye(self.n_states) - chain + mu, r - average)  # (8.15); rows of 1μᵀ are μ

    def average_reward(self, policy: Policy | Array, theta: Array | None = None) -> float:
        """r(π) = Σ_s μ(s) Σ_a π(a|s) R(s, a), the reward per step in the long run, Eq. (8.15).

        A terminal state counts as a state in which the process stays.

        Raises
        ------
        ValueError
            If the chain has several recurrent classes.
        """
        return self._differential(self.policy_matrix(policy, theta))[1]

    def differential_value(self, policy: Policy | Array, theta: Array | None = None) -> Array:
        """v = r_π − r(π) + P_π v with μᵀv = 0, the solution of (I − P_π + 1μᵀ) v = r_π − r(π), Eq. (8.15): (S,).

        Raises
        ------
        ValueError
            If the chain has several recurrent classes.
        """
        return self._differential(self.policy_matrix(policy, theta))[2]

    def average_reward_gradient(self, policy: Policy, theta: Array) -> Array:
        """∇r(π) = Σ_s μ(s) Σ_a ∇π(a|s) q(s, a), q(s, a) = R(s, a) − r(π) + Σ P(s'|s, a) v(s'), Eq. (8.16): (n,).

        Raises
        ------
        ValueError
            If the chain has several recurrent classes.
        """
        mu, average, v = self._differential(self.policy_matrix(policy, theta))
        q = self.expected_reward - average + self.P @ v
        return policy.all_actions_gradient(theta, self.features(policy), q, mu)  # (8.16)

    def surrogate(self, new: Array, old: Array) -> float:
        """L_old(new) = J(old) + Σ_s d_old(s) Σ_a new(a|s) a_old(s, a), Eqs. (6.2), (6.3).

        With d_new in place of d_old it would be J(new), the performance-difference lemma, Eq. (6.1).

        Parameters
        ----------
        new, old : (S, A)
            Policies as matrices, which ``policy_matrix`` makes.
        """
        new = self.policy_matrix(new)
        return self.J(old) + self.visitation(old) @ (new * self.advantage(old)).sum(axis=1)  # (6.2)

    def lower_bound(self, new: Array, old: Array) -> float:
        """J(new) ≥ L_old(new) − 4εγα²/(1−γ)², α = max_s TV(new, old), ε = max |a_old|, Eqs. (6.8)–(6.11), (6.13).

        Theorem 1 of Schulman et al. (2015). Its penalty is of second order in α, the gain of first order.

        Raises
        ------
        ValueError
            If γ = 1.
        """
        if self.gamma == 1:
            raise ValueError("the bound needs gamma below 1, got 1")
        new, old = self.policy_matrix(new), self.policy_matrix(old)
        alpha = total_variation(new, old)[~self.terminal].max()
        epsilon = np.abs(self.advantage(old)).max()
        return self.surrogate(new, old) - 4 * epsilon * self.gamma * alpha**2 / (1 - self.gamma) ** 2  # (6.10)


def total_variation(p: Array, q: Array) -> Array:
    """TV(p, q) = ½ Σ|p − q| over the last axis, Eq. (6.4).

    Some coupling of p and q agrees with probability 1 − TV, and none more often, Eq. (6.5). Means of f under p
    and q differ by at most 2 TV max|f|, Eq. (6.7).
    """
    return np.abs(np.asarray(p) - q).sum(axis=-1) / 2  # (6.4)


def enumerate_trajectories(
    mdp: TabularMDP, policy: Policy, theta: Array, horizon: int, max_rows: int = MAX_ROWS
) -> tuple[Trajectories, Array]:
    """Every trajectory of at most ``horizon`` steps that has positive probability, Eqs. (1.2), (4.16).

    Parameters
    ----------
    mdp : TabularMDP
    policy : Policy
    theta : (n,)
    horizon : int
        H: trajectories still running after H steps are truncated there.
    max_rows : int
        The most rows, trajectories times H, to make.

    Returns
    -------
    Trajectories
        One column a trajectory, padded with invalid rows after its end.
    (N,)
        Their probabilities, so that E f = Σ_i p_i f_i.

    Raises
    ------
    ValueError
        If there are more than ``max_rows`` rows; nothing is made then.
    """
    at_least("horizon", horizon, 1)
    at_least("max_rows", max_rows, 1)
    mdp.features(policy)
    pi = mdp.policy_matrix(policy, theta)
    step = pi[:, :, None] * mdp.P
    step[mdp.terminal] = 0
    s = np.flatnonzero(mdp.terminal)
    step[s, 0, s] = 1  # a finished trajectory goes on as itself
    count = np.ones(mdp.n_states)
    branches = (step > 0).sum(axis=1).astype(float)
    for _ in range(horizon):
        count = branches @ count
        n = count[mdp.rho0 > 0].sum()
        if n * horizon > max_rows:
            raise ValueError(
                f"horizon {horizon} gives at least {n:.3g} trajectories of up to {horizon} steps, more than max_rows = "
                f"{max_rows}: take a shorter horizon or a smaller problem"
            )
        count = np.minimum(count, 1e18)

    source, action, successor = np.nonzero(step)
    n_children = np.bincount(source, minlength=mdp.n_states)
    first_child = np.cumsum(n_children) - n_children
    state = np.flatnonzero(mdp.rho0)
    probability = mdp.rho0[state]
    taken: list[Array] = []  # of each step, the branch that each trajectory took
    for _ in range(horizon):
        parent = np.repeat(np.arange(len(state)), n_children[state])
        sibling = np.arange(len(parent)) - np.repeat(
            np.cumsum(n_children[state]) - n_children[state], n_children[state]
        )
        branch = first_child[state[parent]] + sibling
        taken = [earlier[parent] for earlier in taken] + [branch]
        probability = probability[parent] * step[source[branch], action[branch], successor[branch]]  # (1.2), (4.16)
        state = successor[branch]

    branches_taken = np.array(taken)
    obs, actions, next_obs = source[branches_taken], action[branches_taken], successor[branches_taken]
    valid = ~mdp.terminal[obs]
    terminated = mdp.terminal[next_obs] & valid
    truncated = np.zeros_like(valid)
    truncated[-1] = valid[-1] & ~terminated[-1]
    rewards = mdp.R[obs, actions] if mdp.R.ndim == 2 else mdp.R[obs, actions, next_obs]
    t = np.arange(horizon)[:, None] * valid
    for array in (obs, actions, next_obs, rewards):
        array[~valid] = 0
    x = np.asarray(policy.features(obs.ravel()))
    x = x.reshape(*obs.shape, *x.shape[1:])
    x[~valid] = 0
    return Trajectories(obs, x, actions, rewards, next_obs, terminated, truncated, valid, t), probability
