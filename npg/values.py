"""Value functions, features composed with a model, and how they are fitted (derivations, chapters 1 and 7)."""

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from ._checks import EPS, at_least, has_shape, non_negative, unit_interval
from ._typing import Array
from .features import Features, dense
from .models import Linear, Model
from .returns import check_segment
from .trajectories import Trajectories


def ridge_least_squares(x: Array, y: Array, ridge: float, centre: Array | None = None) -> Array:
    """w that minimises Σ (wᵀx_i − y_i)² + κ‖w‖², Eq. (1.14); of the smallest norm where κ = 0 leaves a choice.

    With a centre w_0 the penalty is κ‖w − w_0‖²: it is the fit of y − w_0ᵀx, added to w_0. Where w_0 is the last w,
    what earlier batches taught is kept as far as this one does not tell otherwise.

    On returns it is Monte-Carlo regression, whose limit is the projection of the values, Eq. (7.2).

    Parameters
    ----------
    x : (B, d)
    y : (B,)
    ridge : float
        κ ≥ 0.
    centre : (d,), optional
        w_0, zero by default.

    Returns
    -------
    (d,)

    Raises
    ------
    ValueError
        If shapes disagree, or κ is no number of at least 0, or so small that dependent features stay so.
    FloatingPointError
        If x or y is not finite.
    """
    if np.ndim(x) != 2 or np.shape(y) != np.shape(x)[:1]:
        raise ValueError(f"x and y must have shapes (B, d) and (B,), got {np.shape(x)} and {np.shape(y)}")
    non_negative("ridge", ridge)
    if centre is not None:
        has_shape("centre", centre, np.shape(x)[1:], "x")
        return centre + ridge_least_squares(x, y - x @ centre, ridge)
    try:
        if ridge == 0:
            return linalg.lstsq(x, y, cond=EPS * max(x.shape))[0]
        return linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y, assume_a="pos")  # (1.14)
    except linalg.LinAlgError:
        raise ValueError(f"ridge must be larger where features are dependent, or 0, got {ridge!r}") from None
    except ValueError:
        if np.isfinite(x).all() and np.isfinite(y).all():
            raise
        raise FloatingPointError("the features or targets of a least-squares fit are not finite") from None


def least_mean_squares(w: Array, x: Array, y: Array, alpha: float) -> tuple[Array, Array]:
    """One pass of w ← w + α (y_i − wᵀx_i) x_i over the rows, stochastic gradient steps on the error of Eq. (1.14).

    Parameters
    ----------
    w : (d,)
    x : (B, d)
    y : (B,)
    alpha : float
        Step size α.

    Returns
    -------
    (d,)
        w after the last row.
    (B,)
        Each wᵀx_i before the step on its row.
    """
    before = np.empty(len(x))
    for i, x_i in enumerate(x):
        before[i] = w @ x_i
        w = w + alpha * (y[i] - before[i]) * x_i
    return w, before


def _check_fit(x: Array, x_next: Array, shape: tuple[int, ...], ridge: float) -> None:
    if np.ndim(x) != len(shape) + 1 or np.shape(x)[:-1] != shape or np.shape(x_next) != np.shape(x):
        wanted = f"({', '.join(map(str, shape))}, d)"
        raise ValueError(
            f"x and x_next must have shape {wanted} to go with rewards, got {np.shape(x)} and {np.shape(x_next)}"
        )
    non_negative("ridge", ridge)


def lstd(
    x: Array,
    rewards: Array,
    x_next: Array,
    terminated: Array,
    truncated: Array,
    valid: Array,
    gamma: float,
    lam: float,
    ridge: float,
) -> Array:
    """LSTD(λ): w = (Â + κI)^{-1} b̂ with Â = Σ_t z_t (x_t − γ x_{t+1})ᵀ and b̂ = Σ_t z_t R_{t+1}, Eq. (7.17).

    z_t = γλ z_{t−1} + x_t is the accumulating trace, Eq. (7.11), zero at the start of a column and after a row that
    terminates or is truncated. x_{t+1} counts as zero where the row terminated, and only there, Eq. (8.10). With
    the exact means of Â and b̂ this is the fixed point of TD(λ), ``TabularMDP.td_fixed_point``, Eq. (7.16).

    Parameters
    ----------
    x : (T, N, d)
        x(S_t), time-major and dense.
    rewards : (T, N)
        R_{t+1}.
    x_next : (T, N, d)
        x(S_{t+1}) of the true successor.
    terminated, truncated : (T, N) boolean
    valid : (T, N) boolean
        Which rows are transitions. The others add nothing and leave the trace as it is.
    gamma, lam : float
        γ and λ in [0, 1].
    ridge : float
        κ ≥ 0. A singular system is solved by least squares, with the smallest w.

    Returns
    -------
    (d,)

    Raises
    ------
    ValueError, TypeError
        For γ or λ outside [0, 1], κ < 0, shapes that do not go together, flags that are not boolean.
    FloatingPointError
        If x, rewards or x_next is not finite in a valid row.

    References
    ----------
    S. J. Bradtke and A. G. Barto (1996); J. A. Boyan (2002).
    """
    check_segment(gamma, lam, rewards=rewards, terminated=terminated, truncated=truncated, valid=valid)
    _check_fit(x, x_next, np.shape(rewards), ridge)
    terminated, valid = np.asarray(terminated), np.asarray(valid)
    cut = valid & (terminated | truncated)
    z: Array = np.zeros(np.shape(x))
    now: Array = np.zeros(z.shape[1:])
    with np.errstate(invalid="ignore", over="ignore"):
        for t in range(len(z)):
            z[t] = now = np.where(valid[t, :, None], gamma * lam * now + x[t], now)
            now = np.where(cut[t, :, None], 0.0, now)  # (8.10)
        difference = np.where(valid[..., None], x - gamma * np.where(terminated[..., None], 0.0, x_next), 0.0)
        A = np.einsum("tni,tnj->ij", z, difference, optimize=True) + ridge * np.eye(z.shape[2])  # (7.17)
        b = np.einsum("tni,tn->i", z, np.where(valid, rewards, 0.0), optimize=True)
    if not (np.isfinite(A).all() and np.isfinite(b).all()):
        raise FloatingPointError("the features or rewards of a least-squares fit are not finite")
    return np.linalg.lstsq(A, b)[0]


def fitted_td(
    w: Array, x: Array, rewards: Array, x_next: Array, terminated: Array, gamma: float, ridge: float, sweeps: int
) -> Array:
    """Fitted TD(0): regressions on targets that the last w gives and that are held, Eq. (7.18).

        w ← argmin_w Σ_t (wᵀx_t − [R_{t+1} + γ w_oldᵀ x_{t+1}])² + κ‖w‖²,  ``sweeps`` times

    Its fixed point is that of ``lstd`` with λ = 0. It converges where γ (XᵀX + κI)^{-1} XᵀX_next has a spectral
    radius below one, as it has if all episodes in the data terminate, and may diverge where some are truncated.

    Parameters
    ----------
    w : (d,)
        Where to start; it only matters through the targets.
    x : (B, d)
        x(S_t), one row per transition.
    rewards : (B,)
        R_{t+1}.
    x_next : (B, d)
        x(S_{t+1}) of the true successor; counts as zero where the row terminated.
    terminated : (B,) boolean
    gamma : float
        γ in [0, 1].
    ridge : float
        κ ≥ 0.
    sweeps : int
        At least 1.

    Returns
    -------
    (d,)

    Raises
    ------
    ValueError, TypeError
        For γ outside [0, 1], κ < 0, ``sweeps`` < 1, shapes that do not go together, flags that are not boolean.
    FloatingPointError
        If w, x, rewards or x_next is not finite.
    """
    if np.ndim(rewards) != 1 or np.shape(terminated) != np.shape(rewards):
        raise ValueError(
            f"rewards and terminated must have one shape (B,), got {np.shape(rewards)} and {np.shape(terminated)}"
        )
    if np.asarray(terminated).dtype != np.bool_:
        raise TypeError(f"terminated must be boolean, got {np.asarray(terminated).dtype}")
    _check_fit(x, x_next, np.shape(rewards), ridge)
    has_shape("w", w, np.shape(x)[1:], "x")
    unit_interval("gamma", gamma)
    at_least("sweeps", sweeps, 1)
    successor = np.where(np.asarray(terminated)[:, None], 0.0, x_next)
    for _ in range(sweeps):
        w = ridge_least_squares(x, rewards + gamma * successor @ w, ridge)  # (7.18)
    return w


@dataclass(frozen=True)
class Value:
    """v̂(s; w), or q̂(s, ·; w) with one output for each action: features composed with a model, as a policy is.

    Parameters
    ----------
    features : features
        x.
    model : model
        (w, x) -> v̂ (B, 1) or q̂ (B, k), with its products.
    """

    features: Features
    model: Model

    def __post_init__(self) -> None:
        d, takes = self.features.n_features, getattr(self.model, "n_features", None)
        if takes not in (None, d):
            raise ValueError(f"model takes {takes} features, but {self.features} are {d}")

    @property
    def n_params(self) -> int:
        """Length of w."""
        return self.model.n_params

    def x(self, obs: Array, actions: Array | None = None) -> Array:
        """The features of each observation in dense form, for fits: (B, d).

        With ``actions`` (B,), those of the pairs, x(s) in the block of the action and 0 elsewhere: (B, k d). Every fit
        and target of this module is then one of action values.
        """
        x = dense(self.features(obs), self.features.n_features)
        if actions is None:
            return x
        blocks = np.zeros((len(x), self.model.n_outputs, x.shape[1]))
        blocks[np.arange(len(x)), actions] = x
        return blocks.reshape(len(x), -1)

    def value(self, w: Array, obs: Array) -> Array:
        """v̂ of each observation: (B,)."""
        return self.model.forward(w, self.features(obs)).squeeze(1)

    def action_values(self, w: Array, obs: Array) -> Array:
        """q̂ of each action: (B, k)."""
        return self.model.forward(w, self.features(obs))

    def on(self, w: Array, traj: Trajectories) -> tuple[Array, Array, Array]:
        """x(S_t) of the valid rows, and v̂(S_t) and v̂(S_{t+1}), 0 in other rows: (B, …), (T, N), (T, N)."""
        valid = traj.valid
        x = self.features(traj.obs[valid])
        v, v_next = np.zeros((2, *valid.shape))
        v[valid] = self.model.forward(w, x).squeeze(1)
        v_next[valid] = self.value(w, traj.next_obs[valid])
        return x, v, v_next

    def at_limits(self, w: Array, traj: Trajectories) -> Array:
        """v̂(S_{t+1}) where a time limit cut the episode, 0 elsewhere: (T, N)."""
        v_next = np.zeros(traj.rewards.shape)
        v_next[traj.truncated] = self.value(w, traj.next_obs[traj.truncated])
        return v_next

    def fit(self, w: Array, x: Array, G: Array, ridge: float) -> Array:
        """argmin Σ (wᵀx_i − G_i)² + κ‖w − w_old‖² from w_old = ``w``, x as the features return it: (d,)."""
        return ridge_least_squares(dense(x, self.features.n_features), G, ridge, w)


def LinearValue(features: Features, n_outputs: int = 1) -> Value:
    """v̂(s; w) = wᵀx(s), or q̂(s, ·; w) = W x(s) with a row of W for each action; tabular on one-hot features."""
    return Value(features, Linear(features.n_features, n_outputs))


def clipped_error(v: Array, v_old: Array, G: Array, c: float | None) -> Array:
    """Minus the derivative by v of ½ max((v − G)², (v_old + clip(v − v_old, −c, c) − G)²), Eq. (11.16): (B,).

    It is G − v, but 0 where v has gone further than c from v_old towards G.

    Parameters
    ----------
    v, v_old, G : (B,)
        Values, those before the batch, and targets.
    c : float or None
        Positive; None is no limit.
    """
    if c is None:
        return G - v
    near = v.clip(v_old - c, v_old + c)
    return np.where(np.abs(near - G) > np.abs(v - G), 0.0, G - v)  # (11.16)
