"""Value functions that are linear in features, and how they are fitted (derivations, chapters 1 and 7)."""

# mypy: disable-error-code="no-any-return"

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from scipy import linalg
from scipy.linalg import blas

from ._checks import at_least, is_number
from ._state import Stateful
from ._typing import Array
from .features import Features, OneHot, TileCoding, dense
from .models import Linear
from .returns import _check
from .rollout import Trajectories

BINARY = (OneHot, TileCoding)
EPS = float(np.finfo(float).eps)
TRACES = ("accumulating", "replacing", "dutch")


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
    if not (is_number(ridge) and ridge >= 0):
        raise ValueError(f"ridge must be a number of at least 0, got {ridge!r}")
    if centre is not None:
        if np.shape(centre) != np.shape(x)[1:]:
            raise ValueError(f"centre must have shape {np.shape(x)[1:]} to go with x, got {np.shape(centre)}")
        return centre + ridge_least_squares(x, y - x @ centre, ridge)
    try:
        if ridge == 0:
            return linalg.lstsq(x, y, cond=EPS * max(x.shape))[0]
        return linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y, assume_a="pos")
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
    if not (is_number(ridge) and ridge >= 0):
        raise ValueError(f"ridge must be a number of at least 0, got {ridge!r}")


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
    _check(gamma, lam, rewards=rewards, terminated=terminated, truncated=truncated, valid=valid)
    _check_fit(x, x_next, np.shape(rewards), ridge)
    terminated, valid = np.asarray(terminated), np.asarray(valid)
    cut = valid & (terminated | truncated)
    z: Array = np.zeros(np.shape(x))
    now: Array = np.zeros(z.shape[1:])
    with np.errstate(invalid="ignore", over="ignore"):
        for t in range(len(z)):
            z[t] = now = np.where(valid[t, :, None], gamma * lam * now + x[t], now)
            now = np.where(cut[t, :, None], 0.0, now)
        difference = np.where(valid[..., None], x - gamma * np.where(terminated[..., None], 0.0, x_next), 0.0)
        A = np.einsum("tni,tnj->ij", z, difference, optimize=True) + ridge * np.eye(z.shape[2])
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
    if np.shape(w) != np.shape(x)[1:]:
        raise ValueError(f"w must have shape {np.shape(x)[1:]} to go with x, got {np.shape(w)}")
    if not (is_number(gamma) and 0 <= gamma <= 1):
        raise ValueError(f"gamma must lie in [0, 1], got {gamma!r}")
    at_least("sweeps", sweeps, 1)
    successor = np.where(np.asarray(terminated)[:, None], 0.0, x_next)
    for _ in range(sweeps):
        w = ridge_least_squares(x, rewards + gamma * successor @ w, ridge)
    return w


@dataclass(frozen=True)
class LinearValue:
    """v̂(s; w) = wᵀx(s), or q̂(s, ·; w) = W x(s) with one row of W for each action; tabular on one-hot features.

    Parameters
    ----------
    features : features
        x.
    n_actions : int, optional
        k, of an action-value function; without it the values are of states.
    """

    features: Features
    n_actions: int | None = None

    @cached_property
    def model(self) -> Linear:
        """The linear map, which takes dense features and active indices."""
        return Linear(self.features.n_features, self.n_actions or 1)

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
        """v̂ of each observation: (B,); or q̂ of each action: (B, k)."""
        eta = self.model.forward(w, self.features(obs))
        return eta[:, 0] if self.n_actions is None else eta

    def on(self, w: Array, traj: Trajectories) -> tuple[Array, Array, Array]:
        """x(S_t) of the valid rows, and v̂(S_t) and v̂(S_{t+1}), 0 in other rows: (B, …), (T, N), (T, N)."""
        valid = traj.valid
        x = self.features(traj.obs[valid])
        v, v_next = np.zeros((2, *valid.shape))
        v[valid] = self.model.forward(w, x)[:, 0]
        v_next[valid] = self.value(w, traj.next_obs[valid])
        return x, v, v_next

    def fit(self, w: Array, x: Array, G: Array, ridge: float) -> Array:
        """argmin Σ (wᵀx_i − G_i)² + κ‖w − w_old‖² from w_old = ``w``, x as the features return it: (d,)."""
        return ridge_least_squares(dense(x, self.features.n_features), G, ridge, w)


def clipped_error(v: Array, v_old: Array, G: Array, c: float) -> Array:
    """Minus the derivative by v of ½ max((v − G)², (v_old + clip(v − v_old, −c, c) − G)²), Eq. (11.16): (B,).

    It is G − v, but 0 where v has gone further than c from v_old towards G. Without c > 0, G − v.

    Parameters
    ----------
    v, v_old, G : (B,)
        Values, those before the batch, and targets.
    c : float
        At least 0.
    """
    near = v.clip(v_old - c, v_old + c)
    return np.where((np.abs(near - G) > np.abs(v - G)) & (c > 0), 0.0, G - v)


def add_traces(w: Array, z: Array, error: Array) -> Array:
    """w + Σ_n error_n z_n, in place: one call of BLAS, because this is most of an online step. (n,).

    Parameters
    ----------
    w : (n,)
    z : (N, n)
    error : (N,)
    """
    if len(z) == 1:
        return blas.daxpy(z[0], w, a=error[0])
    return blas.dgemv(1.0, z.T, error, 1.0, w, overwrite_y=True)


def decay(z: Array, factor: float) -> None:
    """z ← factor z, in place, by BLAS as ``add_traces``: (N, n)."""
    blas.dscal(factor, z.reshape(-1))


def observations(traj: Trajectories) -> tuple[Array, Array]:
    """S and S' of one step of each environment, ``traj`` of T = 1, of which at least one is valid: (N, …).

    Rows that are no transitions get those of one that is, because their zeros need not be an observation.
    """
    obs, next_obs, valid = traj.obs[0], traj.next_obs[0], traj.valid[0]
    if np.count_nonzero(valid) < len(valid):
        rows = np.where(valid, np.arange(len(valid)), valid.argmax())
        obs, next_obs = obs[rows], next_obs[rows]
    return obs, next_obs


class TDLambda(Stateful):
    """Online TD(λ) for a linear value function, with one trace per parallel environment.

    δ = R + γ v̂(S'; w) − v̂(S; w), Eq. (7.1), and with z zero at the start of each episode

    - accumulating, Eq. (7.11): z ← γλz + x; w ← w + αδz; with λ = 0 the semi-gradient TD(0), Eq. (7.3);
    - replacing, Eq. (7.13): z_i ← 1 where x_i = 1, γλz_i elsewhere; w ← w + αδz;
    - dutch, Eq. (7.14): z ← γλz + (1 − αγλ zᵀx)x; w ← w + α(δ + v̂(S) − v_old)z − α(v̂(S) − v_old)x, which is true
      online TD(λ): after each step w is that of the online λ-return algorithm, Eq. (7.15).

    Over an episode with frozen weights Σ_t δ_t z_t is the sum of λ-return errors times features, Eq. (7.12). The
    updates of N environments are averaged. For action values x is that of the pair (S, A), and v̂(S') becomes
    Σ_a π(a|S') q̂(S', a), expected Sarsa(λ), Eq. (8.5).

    Parameters
    ----------
    value : LinearValue
        Of states, or of actions.
    columns : int
        N.
    alpha, gamma, lam : float
        α, γ, λ. On tile coding with K tilings, α = α'/K moves v̂ by the fraction α' of the error, Eq. (7.22).
    trace : {"accumulating", "replacing", "dutch"}

    Raises
    ------
    ValueError
        If λ or γ lies outside [0, 1], α is no number of at least 0, ``trace`` is none of the three, or it is
        replacing and the features are not binary, or dutch and the values are of actions.
    """

    learned: ClassVar[tuple[str, ...]] = ("w", "z", "v_old")

    def __init__(
        self, value: LinearValue, columns: int, alpha: float, gamma: float, lam: float, trace: str = "accumulating"
    ) -> None:
        at_least("columns", columns, 1)
        for name, setting in (("gamma", gamma), ("lam", lam)):
            if not (is_number(setting) and 0 <= setting <= 1):
                raise ValueError(f"{name} must lie in [0, 1], got {setting!r}")
        if not (is_number(alpha) and alpha >= 0):
            raise ValueError(f"alpha must be a number of at least 0, got {alpha!r}")
        if trace not in TRACES:
            raise ValueError(f"trace must be one of {', '.join(TRACES)}, got {trace!r}")
        if trace == "replacing" and not isinstance(value.features, BINARY):
            raise ValueError(f"trace='replacing' needs binary features (one-hot or tile), got {value.features}")
        if trace == "dutch" and value.n_actions is not None:
            raise ValueError(f"trace='dutch' needs a value of states, got one of {value.n_actions} actions")
        self.value, self.alpha, self.gamma, self.lam, self.trace = value, alpha, gamma, lam, trace
        self.w = np.zeros(value.n_params)
        self.z = np.zeros((columns, value.n_params))
        self.v_old = np.zeros(columns)
        of_states, binary = value.n_actions is None, isinstance(value.features, BINARY)
        self._one = columns == 1 and of_states and trace == "accumulating" and binary

    def update(self, traj: Trajectories, pi_next: Array | None = None) -> Array:
        """Learn from one step of each environment, ``traj`` of T = 1, and return δ, 0 where there is none: (N,).

        ``pi_next`` (N, k) is π(·|S'), which action values need.

        Raises
        ------
        ValueError
            If ``traj`` is not one step of ``columns`` environments, or ``pi_next`` does not fit the value.
        """
        model, N, k = self.value.model, len(self.z), self.value.n_actions
        if traj.valid.shape != (1, N):
            raise ValueError(f"traj must be one step of columns = {N} environments, got (T, N) = {traj.valid.shape}")
        if self._one and pi_next is None:
            return self._update_one(traj) if traj.valid[0, 0] else np.zeros(1)
        given = None if pi_next is None else pi_next.shape
        if given != (None if k is None else (N, k)):
            raise ValueError(f"pi_next must be {'None for values of states' if k is None else (N, k)}, got {given}")
        valid = traj.valid[0]
        n = int(np.count_nonzero(valid))
        if n == 0:
            return np.zeros(N)
        x, x_next = map(self.value.features, observations(traj))
        values = model.forward(self.w, np.concatenate((x, x_next)))
        u = valid[:, None].astype(float)
        if k is None or pi_next is None:
            v, v_next = values[:N, 0], values[N:, 0]
        else:
            u = u * (traj.actions[0][:, None] == np.arange(k))
            v, v_next = (u * values[:N]).sum(axis=1), (pi_next * values[N:]).sum(axis=1)
        v_next = v_next * ~traj.terminated[0]
        delta = (traj.rewards[0] + self.gamma * v_next - v) * valid
        decay(self.z, self.gamma * self.lam)
        error = delta
        if self.trace == "accumulating":
            model.accumulate(self.z, x, u)
        elif self.trace == "replacing":
            row, action = np.nonzero(u)
            self.z.reshape(N, model.n_outputs, -1)[row[:, None], action[:, None], x[row]] = 1
        else:
            at_x = np.take_along_axis(self.z, x, 1) if x.dtype.kind in "iu" else self.z * x
            model.accumulate(self.z, x, u * (1 - self.alpha * at_x.sum(axis=1))[:, None])
            change = (v - self.v_old) * valid
            error = delta + change
            self.w -= self.alpha / n * model.vjp(self.w, x, change[:, None])
            self.v_old = v_next * valid
        self.w = add_traces(self.w, self.z, self.alpha / n * error)
        ends = traj.terminated[0] | traj.truncated[0]
        if np.count_nonzero(ends):
            self.z[ends] = 0
            self.v_old[ends] = 0
        return delta

    def _update_one(self, traj: Trajectories) -> Array:
        """``update`` for one environment and binary features, on numbers instead of rows: half the time."""
        features = self.value.features
        active, active_next = features(traj.obs[0])[0], features(traj.next_obs[0])[0]
        terminated, w, z = bool(traj.terminated[0, 0]), self.w, self.z[0]
        v_next = 0.0 if terminated else w[active_next].sum()
        delta = traj.rewards[0, 0] + self.gamma * v_next - w[active].sum()
        decay(z, self.gamma * self.lam)
        z[active] += 1  # no index occurs twice in a row of binary features
        blas.daxpy(z, w, a=self.alpha * delta)
        if terminated or traj.truncated[0, 0]:
            z[:] = 0
        return np.array([delta])
