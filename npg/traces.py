"""Critics that learn online, with eligibility traces, one for each parallel environment (derivations, chapter 7).

Each is a box of three lines, which an actor–critic calls in the order of its own: ``error``, ``trace``, ``learn``;
``error`` is first, and what it has seen of the step is what the others use. A time limit ends a trace as a termination
does, and is bootstrapped through.
"""

from typing import ClassVar

import numpy as np
from scipy.linalg import blas

from ._checks import at_least, has_shape, non_negative, unit_interval
from ._state import Stateful
from ._typing import Array
from .features import OneHot, TileCoding
from .models import Linear
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
    """TD(λ) for a linear value function.

        δ ← R + γ v̂(S'; w) − v̂(S; w)            (v̂ = 0 where S' is terminal)
        z ← γλz + x(S)                          (replacing: γλz_i where x_i(S) = 0, and 1 where it is 1)
        w ← w + αδz

    with z = 0 where an episode begins. With λ = 0 it is the semi-gradient TD(0), Eq. (7.3). Over an episode with frozen
    weights Σ_t δ_t z_t is the sum of λ-return errors times features, Eq. (7.12). The updates of N environments are
    averaged, Eq. (8.9).

    Parameters
    ----------
    value : npg.values.Value
    columns : int
        N.
    alpha, gamma, lam : float
        α, γ, λ. On tile coding with K tilings, α = α'/K moves v̂ by the fraction α' of the error, Eq. (7.22).
    trace : {"accumulating", "replacing"}
        Replacing traces need binary features.

    Raises
    ------
    ValueError
        If λ or γ lies outside [0, 1], α is no number of at least 0, or the trace is none of these for the value.
    """

    learned: ClassVar[tuple[str, ...]] = ("w", "z")
    traces: ClassVar[tuple[str, ...]] = ("accumulating", "replacing")
    of_states: ClassVar[bool] = True

    def __init__(
        self, value: Value, columns: int, alpha: float, gamma: float, lam: float, trace: str = "accumulating"
    ) -> None:
        at_least("columns", columns, 1)
        unit_interval("gamma", gamma)
        unit_interval("lam", lam)
        non_negative("alpha", alpha)
        if trace not in self.traces:
            raise ValueError(f"trace must be one of {', '.join(self.traces)}, got {trace!r}")
        if trace != "accumulating" and not isinstance(value.model, Linear):
            raise ValueError(f"trace={trace!r} needs a linear value, got {value.model}")
        if self.of_states and value.model.n_outputs > 1:
            raise ValueError(f"value must be of states, got one of {value.model.n_outputs} actions")
        if trace == "replacing" and not isinstance(value.features, BINARY):
            raise ValueError(f"trace='replacing' needs binary features (one-hot or tile), got {value.features}")
        self.value, self.alpha, self.gamma, self.lam, self.trace_kind = value, alpha, gamma, lam, trace
        self.w = np.zeros(value.n_params)
        self.z = np.zeros((columns, value.n_params))

    def _check(self, traj: Trajectories) -> int:
        N = len(self.z)
        if traj.valid.shape != (1, N):
            raise ValueError(f"traj must be one step of columns = {N} environments, got (T, N) = {traj.valid.shape}")
        return N

    def _observe(self, traj: Trajectories) -> tuple[Array, Array]:
        """Values at S and at S', where it is not terminal: (N, k) each; and what else ``trace`` and ``learn`` need."""
        N = self._check(traj)
        self._valid, self._ends = traj.valid[0], traj.terminated[0] | traj.truncated[0]
        self._n = int(np.count_nonzero(self._valid))
        self._x, x_next = map(self.value.features, traj.observations())
        self._u = self._valid[:, None].astype(float)
        values = self.value.model.forward(self.w, np.concatenate((self._x, x_next)))
        return values[:N], values[N:] * ~traj.terminated[0][:, None]

    def error(self, traj: Trajectories) -> Array:
        """δ of one step of each environment, ``traj`` of T = 1 with a valid row; 0 in rows that are not: (N,)."""
        v, v_next = (values.squeeze(1) for values in self._observe(traj))
        return (traj.rewards[0] + self.gamma * v_next - v) * self._valid  # (7.1)

    def trace(self) -> None:
        """z ← γλz + x(S), or its replacing form."""
        decay(self.z, self.gamma * self.lam)
        if self.trace_kind == "accumulating":
            self.value.model.accumulate(self.w, self.z, self._x, self._u)  # (7.11)
        else:
            n, a = (index[:, None] for index in np.nonzero(self._u))
            self.z.reshape(*self._u.shape, -1)[n, a, self._x[n[:, 0]]] = 1  # (7.13)

    def learn(self, delta: Array) -> None:
        """w ← w + αδz; z ← 0 where an episode has ended."""
        self.w = add_traces(self.w, self.z, self.alpha / self._n * delta)  # (7.3), (8.9)
        if np.count_nonzero(self._ends):
            self.z[self._ends] = 0  # (8.10)

    def update(self, traj: Trajectories, *pi_next: Array) -> Array:
        """The box, for prediction: δ of one step of each environment, which has been learned from: (N,)."""
        if not traj.valid.any():
            return np.zeros(len(self.z))
        delta = self.error(traj, *pi_next)
        self.trace()
        self.learn(delta)
        return delta


class OneBinaryTD(TDLambda):
    """``TDLambda`` for one environment and binary features, on numbers instead of rows: half the time."""

    traces = ("accumulating",)

    def error(self, traj: Trajectories) -> Array:
        """δ of one step: (1,)."""
        if traj.valid.shape != (1, 1):
            self._check(traj)
        features, terminated = self.value.features, bool(traj.terminated[0, 0])
        self._active, active_next = features(traj.obs[0])[0], features(traj.next_obs[0])[0]
        self._end = terminated or traj.truncated[0, 0]
        v_next = 0.0 if terminated else self.w[active_next].sum()
        return np.array([traj.rewards[0, 0] + self.gamma * v_next - self.w[self._active].sum()])

    def trace(self) -> None:
        """z ← γλz + x(S)."""
        z = self.z[0]  # NumPy has a fast loop for vectors
        blas.dscal(self.gamma * self.lam, z)
        z[self._active] += 1  # no index occurs twice in a row of binary features

    def learn(self, delta: Array) -> None:
        """w ← w + αδz; z ← 0 where an episode has ended."""
        self.w = blas.daxpy(self.z[0], self.w, a=self.alpha * delta[0])
        if self._end:
            self.z[:] = 0


class TrueOnlineTD(TDLambda):
    """True online TD(λ), with the dutch trace: after each step w is that of the online λ-return algorithm, Eq. (7.15).

        δ ← R + γ v̂(S'; w) − v̂(S; w)
        z ← γλz + (1 − αγλ zᵀx)x
        w ← w + α(δ + v̂(S) − v_old)z − α(v̂(S) − v_old)x;   v_old ← v̂(S')

    with z = 0 and v_old = 0 where an episode begins. Parameters as ``TDLambda`` has them.
    """

    learned: ClassVar[tuple[str, ...]] = ("w", "z", "v_old")
    traces = ("dutch",)

    def __init__(
        self, value: Value, columns: int, alpha: float, gamma: float, lam: float, trace: str = "dutch"
    ) -> None:
        super().__init__(value, columns, alpha, gamma, lam, trace)
        self.v_old = np.zeros(columns)

    def _observe(self, traj: Trajectories) -> tuple[Array, Array]:
        self._v, self._v_next = super()._observe(traj)
        return self._v, self._v_next

    def trace(self) -> None:
        """z ← γλz + (1 − αγλ zᵀx)x."""
        x, z = self._x, self.z
        decay(z, self.gamma * self.lam)
        at_x = np.take_along_axis(z, x, 1) if x.dtype.kind in "iu" else z * x
        self.value.model.accumulate(self.w, z, x, self._u * (1 - self.alpha * at_x.sum(axis=1))[:, None])  # (7.14)

    def learn(self, delta: Array) -> None:
        """w ← w + α(δ + v̂(S) − v_old)z − α(v̂(S) − v_old)x; z ← 0 and v_old ← 0 where an episode has ended."""
        change = (self._v[:, 0] - self.v_old) * self._valid
        self.w -= self.alpha / self._n * self.value.model.vjp(self.w, self._x, change[:, None])
        self.v_old = self._v_next[:, 0] * self._valid
        super().learn(delta + change)
        self.v_old[self._ends] = 0


class ExpectedSarsa(TDLambda):
    """Expected Sarsa(λ), TD(λ) for action values, one output of the model for each action.

        δ ← R + γ Σ_a π(a|S') q̂(S', a; w) − q̂(S, A; w)       (q̂ = 0 where S' is terminal)
        z ← γλz + x(S, A),  x(S) in the block of A            (or replacing)
        w ← w + αδz

    Parameters as ``TDLambda`` has them.
    """

    of_states = False

    def error(self, traj: Trajectories, pi_next: Array) -> Array:  # type: ignore[override]
        """δ with π(·|S') (N, k): (N,)."""
        has_shape("pi_next", pi_next, (self._check(traj), self.value.model.n_outputs), "the value")
        q, q_next = self._observe(traj)
        self._u = self._u * (traj.actions[0][:, None] == np.arange(q.shape[1]))
        expected = (pi_next * q_next).sum(axis=1)
        return (traj.rewards[0] + self.gamma * expected - (self._u * q).sum(axis=1)) * self._valid  # (8.5)


def online_critic(
    value: Value, columns: int, alpha: float, gamma: float, lam: float, trace: str = "accumulating"
) -> TDLambda:
    """The critic of state values with a trace of ``TRACES``."""
    if trace == "dutch":
        return TrueOnlineTD(value, columns, alpha, gamma, lam)
    binary = isinstance(value.features, BINARY) and isinstance(value.model, Linear)
    one_binary = columns == 1 and trace == "accumulating" and binary
    return (OneBinaryTD if one_binary else TDLambda)(value, columns, alpha, gamma, lam, trace)
