"""What critics learn from the actions of another policy, and whether they do, exactly (derivations, chapter 12).

On a finite problem the values, the follow-on trace, the mean updates of the critics of ``npg.traces``, their fixed
points and their stability are those of small matrices. Shapes: S states, A actions, d features; terminal states, and
those in which the behaviour never is, have zero in all that is returned.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import linalg

from ._checks import has_shape, is_number, non_negative, positive
from ._typing import Array
from .exact import TabularMDP

RADIUS = 1 - 1e-12
"""Largest spectral radius of a chain with discounts for which sums over its steps are computed."""
NULL = 1e-12
"""Eigenvalues of C that are less than this share of the largest count as zero."""


@dataclass(frozen=True, eq=False)
class OffPolicy:
    """A policy π on a finite problem, of which is learned from the actions of a behaviour b.

    Parameters
    ----------
    mdp : TabularMDP
        Rows follow one another: where an episode ends the next one begins, at ρ_0.
    target, behaviour : (S, A)
        π and b, as ``mdp.policy_matrix`` makes them.
    gamma : float or (S,), optional
        γ(s), the discount on entering s, by default that of ``mdp``. It counts as 0 in terminal states.
    lam, interest : float or (S,)
        λ(s) and i(s).

    Raises
    ------
    ValueError
        If γ or λ lies outside [0, 1] or an interest is negative, if b is 0 where π is not in a state that b visits:
        then the mean of ρ is less than 1, Eq. (12.24), or if b has no unique distribution of rows.
    """

    mdp: TabularMDP
    target: Array
    behaviour: Array
    gamma: Any = None
    lam: Any = 0.0
    interest: Any = 1.0

    def __post_init__(self) -> None:
        S = self.mdp.n_states
        gamma = self.mdp.gamma if self.gamma is None else self.gamma
        for name, given, high in (("gamma", gamma, 1.0), ("lam", self.lam, 1.0), ("interest", self.interest, np.inf)):
            values = np.array(given, dtype=float)
            if values.ndim:
                has_shape(name, values, (S,))
            if not all(is_number(value, 0, high) for value in values.flat):
                expected = "lie in [0, 1]" if high == 1 else "be numbers of at least 0"
                raise ValueError(f"{name} must {expected}, got {given!r}")
            object.__setattr__(self, name, np.broadcast_to(values, (S,)) * ~self.mdp.terminal)
        for name in ("target", "behaviour"):
            object.__setattr__(self, name, self.mdp.policy_matrix(getattr(self, name)))
        unseen = np.argwhere((self.d > 0)[:, None] & (self.behaviour == 0) & (self.target > 0))
        for s, a in unseen[:1]:
            raise ValueError(
                f"behaviour must be positive wherever target is, got 0 in state {s} for action {a}, "
                f"which the target takes with probability {self.target[s, a]:g}"
            )

    @cached_property
    def d(self) -> Array:
        """d_b, the share of the rows in each state: (S,)."""
        if self.mdp.terminal.any():
            return self.mdp.visitation(self.behaviour, gamma=1, normalized=True)
        return self.mdp.stationary_distribution(self.behaviour)

    @cached_property
    def rho(self) -> Array:
        """ρ(s, a) = π(a|s) / b(a|s), 0 where b is, Eq. (12.1): (S, A)."""
        return np.divide(self.target, self.behaviour, out=np.zeros_like(self.target), where=self.behaviour > 0)

    @cached_property
    def _step(self) -> Array:
        """P(s'|s, a) γ(s') between the states that b visits: (S, A, S)."""
        return (self.d > 0)[:, None, None] * self.mdp.P * np.where(self.d > 0, self.gamma, 0.0)

    @cached_property
    def _reward(self) -> Array:
        """R(s, a) in the states that b visits: (S, A)."""
        return (self.d > 0)[:, None] * self.mdp.expected_reward

    def _chain(self, policy: Array) -> Array:
        """P Γ of a policy, or with any other weights of the actions (S, A): (S, S)."""
        return np.einsum("sa,sat->st", policy, self._step)

    @property
    def _decay(self) -> Array:
        """P Γ Λ: (S, S)."""
        return self._chain(self.target) * self.lam

    def value(self) -> Array:
        """v_π = r + P Γ v_π, Eq. (12.2): (S,)."""
        r = (self.target * self._reward).sum(axis=1)
        return _sum_over_steps(self._chain(self.target), r)  # (12.2)

    def action_value(self) -> Array:
        """q_π(s, a) = R(s, a) + Σ P(s'|s, a) γ(s') v_π(s'), Eq. (12.2): (S, A)."""
        return self._reward + self._step @ self.value()

    def follow_on(self) -> Array:
        """m(s) = d_b(s) E_b[F_t | S_t = s], F the follow-on trace: m = d_b ⊙ i + Γ Pᵀ m, Eqs. (12.3), (12.5): (S,)."""
        return _sum_over_steps(self._chain(self.target).T, self.d * self.interest)  # (12.3), (12.5)

    def emphasis(self) -> Array:
        """m_M(s) = d_b(s) E_b[M_t | S_t = s], M the emphasis of emphatic TD, Eqs. (12.16), (12.17): (S,)."""
        return self.lam * self.d * self.interest + (1 - self.lam) * self.follow_on()  # (12.17)

    def key_matrices(self, x: Array, *, emphatic: bool = False) -> tuple[Array, Array, Array]:
        """A, b and C with E_b[δ_t e_t] = b − A v and C = E_b[x_t x_tᵀ], Eq. (12.8); of emphatic TD, Eq. (12.17).

        Parameters
        ----------
        x : (S, d)
            Features of each state.
        emphatic : bool
            A and b of emphatic TD.

        Returns
        -------
        (d, d), (d,), (d, d)
        """
        x = self._features(x)
        weighted = (self.emphasis() if emphatic else self.d)[:, None] * x
        r = (self.target * self._reward).sum(axis=1)
        z = _sum_over_steps(self._decay.T, weighted)
        return z.T @ (x - self._chain(self.target) @ x), z.T @ r, x.T @ (self.d[:, None] * x)  # (12.8)

    def _features(self, x: Array) -> Array:
        x = np.asarray(x, dtype=float)
        if x.ndim != 2 or len(x) != self.mdp.n_states or not np.isfinite(x).all():
            raise ValueError(f"x must be finite with a row for each of {self.mdp.n_states} states, got shape {x.shape}")
        return x * (self.d > 0)[:, None]

    def fixed_point(self, x: Array, *, emphatic: bool = False) -> Array:
        """v with A v = b of ``key_matrices``; the smallest where features are dependent: (d,)."""
        A, b, _ = self.key_matrices(x, emphatic=emphatic)
        return np.linalg.lstsq(A, b, rcond=NULL)[0]

    def msve(self, x: Array, v: Array) -> Any:
        """Σ_s d_b(s) (vᵀx(s) − v_π(s))², Eq. (12.9)."""
        return self.d @ (self._features(x) @ v - self.value()) ** 2

    def mspbe(self, x: Array, v: Array) -> Any:
        """(b − A v)ᵀ C⁺ (b − A v), the projected error of the λ-return under d_b, Eq. (12.9)."""
        A, b, C = self.key_matrices(x)
        return (b - A @ v) @ np.linalg.pinv(C, rcond=NULL, hermitian=True) @ (b - A @ v)  # (12.9)

    def mspbe_gradient(self, x: Array, v: Array) -> Array:
        """−2 Aᵀ C⁺ (b − A v), −2 times the mean of GTD(λ)'s step at w = C⁺ E[δe], Eq. (12.12): (d,)."""
        A, b, C = self.key_matrices(x)
        return -2 * A.T @ np.linalg.pinv(C, rcond=NULL, hermitian=True) @ (b - A @ v)  # (12.12)

    # Action values: vectors over pairs (S A,), s major

    def coefficients(self, kind: str) -> Array:
        """c(s, a) of the trace e ← φ + γ c e, Eq. (12.18): (S, A).

        Parameters
        ----------
        kind : {"expected sarsa", "tree backup", "retrace"}
            λρ, λπ, or λ min(1, ρ).
        """
        kinds = {"expected sarsa": self.rho, "tree backup": self.target, "retrace": np.minimum(1, self.rho)}
        if kind not in kinds:
            raise ValueError(f"kind must be one of {', '.join(kinds)}, got {kind!r}")
        return self.lam[:, None] * kinds[kind]

    def _pairs(self, weights: Array) -> Array:
        """P(s'|s, a) γ(s') times weights of (s', a'), between pairs: (S A, S A)."""
        n = weights.size
        return np.einsum("sat,tb->satb", self._step, weights).reshape(n, n)

    def action_key_matrices(self, phi: Array, c: Array) -> tuple[Array, Array, Array]:
        """A_c, b_c and C with E_b[δ_t e_t] = b_c − A_c v for q̂ = vᵀφ(s, a), e ← φ + γ c e, Eq. (12.18).

        With C = E_b[φ_t φ_tᵀ] they are also those of GQ(λ), which corrects the step as GTD(λ) does.

        Parameters
        ----------
        phi : (S, A, d)
        c : (S, A)
            As ``coefficients`` makes them.
        """
        has_shape("c", c, self.target.shape)
        has_shape("phi", phi, (*self.target.shape, np.shape(phi)[-1]))
        phi = np.asarray(phi, dtype=float).reshape(self.target.size, -1)
        weighted = (self.d[:, None] * self.behaviour).reshape(-1, 1) * phi
        z = _sum_over_steps(self._pairs(self.behaviour * c).T, weighted)
        return z.T @ (phi - self._pairs(self.target) @ phi), z.T @ self._reward.ravel(), phi.T @ weighted  # (12.18)

    def action_targets(self, q: Array, c: Array) -> Array:
        """The mean target of the trace for a table, q + (I − P^c)^{-1} (R + P^π q − q), Eq. (12.20): (S, A).

        q_π is its fixed point whatever c is; where b c ≤ π, it is a contraction.

        Parameters
        ----------
        q : (S, A)
        c : (S, A)
        """
        has_shape("q", q, self.target.shape)
        q = np.where(self.d[:, None] > 0, q, 0.0)
        error = self._reward + self._step @ (self.target * q).sum(axis=1) - q
        return q + _sum_over_steps(self._pairs(self.behaviour * c), error.ravel()).reshape(q.shape)  # (12.20)

    # Clipped ratios

    def clipped_target(self, rho_bar: float) -> Array:
        """π_ρ̄ ∝ min(ρ̄ b, π), the policy whose values V-trace learns, Eq. (12.21): (S, A)."""
        positive("rho_bar", rho_bar)
        clipped = np.minimum(rho_bar * self.behaviour, self.target)
        return clipped / clipped.sum(axis=1, keepdims=True)

    def vtrace(self, V: Array, rho_bar: float, c_bar: float) -> Array:
        """The mean target of V-trace with ratios min(ρ̄, ρ) and coefficients λ min(c̄, ρ), Eq. (12.21): (S,).

        Its fixed point is the value of ``clipped_target``, whatever c̄ is.

        Parameters
        ----------
        V : (S,)
        rho_bar, c_bar : float
            ρ̄ > 0 and c̄ in [0, ρ̄].
        """
        has_shape("V", V, self.d.shape)
        positive("rho_bar", rho_bar)
        if not is_number(c_bar, 0, rho_bar):
            raise ValueError(f"c_bar must be a number in [0, rho_bar = {rho_bar:g}], got {c_bar!r}")
        V = np.where(self.d > 0, V, 0.0)
        clipped = np.minimum(rho_bar * self.behaviour, self.target)  # b min(ρ̄, ρ)
        error = (clipped * (self._reward + self._step @ V - V[:, None])).sum(axis=1)
        decay = self._chain(np.minimum(c_bar * self.behaviour, self.target) * self.lam[:, None])
        return V + _sum_over_steps(decay, error)  # (12.21)


def _sum_over_steps(chain: Array, y: Array) -> Array:
    """Σ_k chain^k y, the solution of z = y + chain z."""
    radius = np.abs(np.linalg.eigvals(chain)).max()
    if radius > RADIUS:
        raise ValueError(f"the discounts must make sums over the steps of the target converge, got the radius {radius}")
    return np.linalg.solve(np.eye(len(chain)) - chain, y)


# Stability


def joint_system(A: Array, C: Array, ratio: float, beta: float = 0.0, *, gtd2: bool = False) -> Array:
    """G of the mean updates (v, w)' = G (v, w) + const, in units of α_v, of GTD(λ), TDRC(λ) or GTD2, Eq. (12.14).

    Stable if all its eigenvalues have negative real parts. Off-policy TD has −A, and emphatic TD −A_M. Where features
    are dependent, take the matrices of x Q, with Q = ``scipy.linalg.orth(x.T)``: no step leaves the range of xᵀ.

    Parameters
    ----------
    A, C : (d, d)
        Of ``OffPolicy.key_matrices``, or ``action_key_matrices``.
    ratio : float
        ξ = α_w / α_v.
    beta : float
        Ridge β of TDRC.
    gtd2 : bool
        The step of GTD2.

    Returns
    -------
    (2 d, 2 d)
    """
    has_shape("C", C, np.shape(A))
    positive("ratio", ratio)
    non_negative("beta", beta)
    kappa = 0 if gtd2 else 1
    return np.block([[-kappa * A, A.T - kappa * C], [-ratio * A, -ratio * (C + beta * np.eye(len(A)))]])  # (12.14)


def least_ratio(A: Array, C: Array) -> float:
    """The ξ above which H + ξC ≻ 0, H = ½(A + Aᵀ), so that GTD(λ) with a nonsingular A is stable, Eq. (12.15)."""
    return max(0.0, -float(linalg.eigh((A + A.T) / 2, C, eigvals_only=True)[0]))  # (12.15)


def largest_ridge(A: Array) -> float:
    """The β below which A Aᵀ + βH ≻ 0, so that TDRC(λ) is stable if ξ is above ``least_ratio``, Eq. (12.15)."""
    inverse = np.linalg.inv(A)
    least = float(np.linalg.eigvalsh((inverse + inverse.T) / 2)[0])
    return -1 / least if least < 0 else np.inf
