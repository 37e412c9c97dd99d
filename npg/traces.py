"""Critics that learn online, with eligibility traces (derivations, chapter 7)."""

from typing import ClassVar

import numpy as np
from scipy.linalg import blas

from ._checks import at_least, has_shape, non_negative, unit_interval
from ._state import Stateful
from ._typing import Array
from .features import OneHot, TileCoding
from .trajectories import Trajectories
from .values import Value

BINARY = (OneHot, TileCoding)
TRACES = ("accumulating", "replacing", "dutch")


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
    value : npg.values.Value
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
        self, value: Value, columns: int, alpha: float, gamma: float, lam: float, trace: str = "accumulating"
    ) -> None:
        at_least("columns", columns, 1)
        unit_interval("gamma", gamma)
        unit_interval("lam", lam)
        non_negative("alpha", alpha)
        if trace not in TRACES:
            raise ValueError(f"trace must be one of {', '.join(TRACES)}, got {trace!r}")
        if trace == "replacing" and not isinstance(value.features, BINARY):
            raise ValueError(f"trace='replacing' needs binary features (one-hot or tile), got {value.features}")
        k = value.model.n_outputs
        if trace == "dutch" and k > 1:
            raise ValueError(f"trace='dutch' needs a value of states, got one of {k} actions")
        self.value, self.alpha, self.gamma, self.lam, self.trace = value, alpha, gamma, lam, trace
        self.w = np.zeros(value.n_params)
        self.z = np.zeros((columns, value.n_params))
        self.v_old = np.zeros(columns)
        self._one = columns == k == 1 and trace == "accumulating" and isinstance(value.features, BINARY)

    def update(self, traj: Trajectories, pi_next: Array | None = None) -> Array:
        """Learn from one step of each environment, ``traj`` of T = 1, and return δ, 0 where there is none: (N,).

        ``pi_next`` (N, k) is π(·|S'): the values are then of actions, one output of the model for each.

        Raises
        ------
        ValueError
            If ``traj`` is not one step of ``columns`` environments, or ``pi_next`` does not fit the value.
        """
        model, N, k = self.value.model, len(self.z), self.value.model.n_outputs
        if traj.valid.shape != (1, N):
            raise ValueError(f"traj must be one step of columns = {N} environments, got (T, N) = {traj.valid.shape}")
        if self._one and pi_next is None:
            return self._update_one(traj) if traj.valid[0, 0] else np.zeros(1)
        if pi_next is not None or k > 1:
            has_shape("pi_next", pi_next, (N, k), "the value")
        valid = traj.valid[0]
        n = int(np.count_nonzero(valid))
        if n == 0:
            return np.zeros(N)
        x, x_next = map(self.value.features, traj.observations())
        values = model.forward(self.w, np.concatenate((x, x_next)))
        u = valid[:, None].astype(float)
        if pi_next is None:
            v, v_next = values[:N, 0], values[N:, 0]
        else:
            u = u * (traj.actions[0][:, None] == np.arange(k))
            v, v_next = (u * values[:N]).sum(axis=1), (pi_next * values[N:]).sum(axis=1)
        v_next = v_next * ~traj.terminated[0]
        delta = (traj.rewards[0] + self.gamma * v_next - v) * valid
        decay(self.z, self.gamma * self.lam)
        error = delta
        if self.trace == "accumulating":
            model.accumulate(self.w, self.z, x, u)
        elif self.trace == "replacing":
            row, action = np.nonzero(u)
            self.z.reshape(N, model.n_outputs, -1)[row[:, None], action[:, None], x[row]] = 1
        else:
            at_x = np.take_along_axis(self.z, x, 1) if x.dtype.kind in "iu" else self.z * x
            model.accumulate(self.w, self.z, x, u * (1 - self.alpha * at_x.sum(axis=1))[:, None])
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
