"""Critics that learn online, with eligibility traces, one for each parallel environment (derivations, 7 and 12).

Each is a box of three lines, which an actor–critic calls in the order of its own: ``error``, ``trace``, ``learn``;
``error`` is first, and what it has seen of the step is what the others use. A time limit ends a trace as a termination
does, and is bootstrapped through. Those that learn the values of one policy from the actions of another are given the
ratios of the two in ``trace``.
"""

from collections.abc import Callable
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
OfState = float | Callable[[Array], Array]
"""A number, or a function from observations (N, …) to a number for each (N,)."""


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


def _at(f: OfState, obs: Array) -> float | Array:
    """Its value in each of these states."""
    return f(obs) if callable(f) else f


def _first(f: OfState, obs: Array) -> float:
    """Its value in the first of these states."""
    return float(f(obs)[0]) if callable(f) else f


def _dot(w: Array, x: Array) -> Array:
    """wᵀx of each row, dense or indices of ones: (N,)."""
    return w[x].sum(axis=1) if x.dtype.kind in "iu" else x @ w


def _add(w: Array, x: Array, u: Array) -> None:
    """w ← w + Σ_n u_n x_n, in place."""
    if x.dtype.kind in "iu":
        np.add.at(w, x.ravel(), u.repeat(x.shape[1]))
    else:
        w += u @ x


class OffPolicyTD(Stateful):
    """TD(λ) for the values of π from the actions of b, with ratios in the trace, Eq. (12.7).

        γ' ← γ(S')                             (0 where S' is terminal)
        δ ← R + γ' vᵀx(S') − vᵀx(S)
        e ← ρ(x(S) + γλ(S) e)                  (ρ = π(A|S) / b(A|S))
        v ← v + α_v δe;   γ ← γ'

    with γ = 0 where an episode begins. The mean update is b − Av, Eq. (12.8), which may diverge. Those of N
    environments are averaged, Eq. (8.9).

    Parameters
    ----------
    value : npg.values.Value
        Linear, of states. Its weights are v, and w are second weights, as in the papers on this subject.
    columns : int
        N.
    alpha_v : float
        α_v.
    gamma, lam : float or callable
        γ and λ, numbers or functions of the state, in [0, 1]; the functions are believed.

    Attributes
    ----------
    v0 : float
        v₀ of v̂ = v₀ + vᵀx, what all states are worth before anything is learned; 0 unless it is set.
    gamma_t : (N,)
        γ of the transition that led to S, from ``error`` until ``learn``: for the trace of an actor.

    Raises
    ------
    ValueError
        If γ or λ lies outside [0, 1], a step size is no number of at least 0, or the value is not linear, of states.
    """

    learned: ClassVar[tuple[str, ...]] = ("v", "e", "gamma_t")
    _begins: ClassVar[tuple[tuple[str, float], ...]] = (("e", 0.0), ("gamma_t", 0.0))
    v0 = 0.0

    def __init__(self, value: Value, columns: int, alpha_v: float, gamma: OfState, lam: OfState) -> None:
        at_least("columns", columns, 1)
        non_negative("alpha_v", alpha_v)
        for name, f in (("gamma", gamma), ("lam", lam)):
            if not callable(f):
                unit_interval(name, f)
        if not isinstance(value.model, Linear) or value.model.n_outputs > 1:
            raise ValueError(f"value must be linear and of states, got {value.model}")
        self.value, self.alpha_v, self.gamma, self.lam = value, alpha_v, gamma, lam
        self.v = np.zeros(value.n_params)
        self.e = np.zeros((columns, value.n_params))
        self.gamma_t = np.zeros(columns)

    def _check(self, traj: Trajectories) -> None:
        N = len(self.e)
        if traj.valid.shape != (1, N):
            raise ValueError(f"traj must be one step of columns = {N} environments, got (T, N) = {traj.valid.shape}")

    def error(self, traj: Trajectories) -> Array:
        """δ of one step of each environment, ``traj`` of T = 1 with a valid row; 0 in rows that are not: (N,)."""
        self._check(traj)
        self._valid = traj.valid[0]
        self._n = int(np.count_nonzero(self._valid))
        self._on = self._valid & ~(traj.terminated[0] | traj.truncated[0])
        obs, next_obs = traj.observations()
        self._x, self._x_next = self.value.features(obs), self.value.features(next_obs)
        self._lam_t, self._lam_next = _at(self.lam, obs), _at(self.lam, next_obs) * self._on
        self._gamma_next = _at(self.gamma, next_obs) * ~traj.terminated[0]
        self.gamma_t = self.gamma_t * (traj.t[0] > 0)
        v, v_next = (self.v0 + _dot(self.v, x) for x in (self._x, self._x_next))
        return (traj.rewards[0] + self._gamma_next * v_next - v) * self._valid  # (12.1)

    def trace(self, rho: Array) -> None:
        """e ← ρ(x(S) + γλ(S) e), with the ratios (N,); those of rows that are not valid do not matter."""
        self._follow(rho, np.ones(len(self.e)))

    def _follow(self, rho: Array, M: Array) -> None:
        """e ← ρ(M x(S) + γλ(S) e)."""
        has_shape("rho", rho, self.gamma_t.shape)
        rho = np.where(self._valid, rho, 0.0)
        self.e *= (rho * self.gamma_t * self._lam_t)[:, None]
        self.value.model.accumulate(self.v, self.e, self._x, (rho * M)[:, None])  # (12.7), (12.16)

    def learn(self, delta: Array) -> None:
        """v ← v + α_v δe;  γ ← γ', 0 where an episode has ended."""
        self.v = add_traces(self.v, self.e, self.alpha_v / self._n * delta)
        self._next()

    def _next(self) -> None:
        """γ ← γ', and all that is carried as it begins where an episode has ended."""
        self.gamma_t = self._gamma_next
        if np.count_nonzero(self._on) < len(self._on):
            for name, start in self._begins:
                getattr(self, name)[~self._on] = start

    def update(self, traj: Trajectories, rho: Array) -> Array:
        """The box: δ of one step of each environment, which has been learned from, with its ratios: (N,)."""
        if not traj.valid.any():
            return np.zeros(len(self.e))
        delta = self.error(traj)
        self.trace(rho)
        self.learn(delta)
        return delta


class EmphaticTD(OffPolicyTD):
    """Emphatic TD(λ), whose mean update is stable, Eqs. (12.16), (12.17).

        γ' ← γ(S')                             (0 where S' is terminal)
        δ ← R + γ' vᵀx(S') − vᵀx(S)
        F ← i(S) + γρF                         (ρ of the row before)
        M ← λ(S) i(S) + (1 − λ(S)) F
        e ← ρ(M x(S) + γλ(S) e)                (ρ = π(A|S) / b(A|S))
        v ← v + α_v δe;   γ ← γ'

    Parameters as ``OffPolicyTD`` has them, and

    Parameters
    ----------
    interest : float or callable
        i ≥ 0, a number or a function of the state, which is believed.
    """

    learned: ClassVar[tuple[str, ...]] = ("v", "e", "gamma_t", "F", "rho")
    _begins = (*OffPolicyTD._begins, ("F", 0.0), ("rho", 1.0))

    def __init__(
        self, value: Value, columns: int, alpha_v: float, gamma: OfState, lam: OfState, interest: OfState = 1.0
    ) -> None:
        super().__init__(value, columns, alpha_v, gamma, lam)
        if not callable(interest):
            non_negative("interest", interest)
        self.interest = interest
        self.F, self.rho = np.zeros(columns), np.ones(columns)

    def error(self, traj: Trajectories) -> Array:
        """δ of one step of each environment: (N,)."""
        self._interest = _at(self.interest, traj.observations()[0])
        return super().error(traj)

    def trace(self, rho: Array) -> None:
        """F ← i(S) + γρF;  M ← λ(S) i(S) + (1 − λ(S)) F;  e ← ρ(M x(S) + γλ(S) e)."""
        self.F = self._interest + self.gamma_t * self.rho * self.F  # (12.5)
        self._follow(rho, self._lam_t * self._interest + (1 - self._lam_t) * self.F)
        self.rho = rho


class GTDLambda(OffPolicyTD):
    """GTD(λ), TDC for λ = 0: with w at rest, half the gradient of the MSPBE, Eqs. (12.11), (12.12).

        γ' ← γ(S')                             (0 where S' is terminal)
        δ ← R + γ' vᵀx(S') − vᵀx(S)
        e ← ρ(x(S) + γλ(S) e)                  (ρ = π(A|S) / b(A|S))
        v ← v + α_v [δe − γ'(1 − λ(S')) (wᵀe) x(S')]    (λ(S') = 0 at a time limit, where the trace is cut)
        w ← w + α_w [δe − (wᵀx(S)) x(S)]
        γ ← γ'

    both steps with the v and w from before. Stable if α_w / α_v is large enough, Eq. (12.15). Parameters as
    ``OffPolicyTD`` has them, and the step size ``alpha_w`` of w.
    """

    learned: ClassVar[tuple[str, ...]] = ("v", "w", "e", "gamma_t")

    def __init__(
        self, value: Value, columns: int, alpha_v: float, alpha_w: float, gamma: OfState, lam: OfState
    ) -> None:
        super().__init__(value, columns, alpha_v, gamma, lam)
        non_negative("alpha_w", alpha_w)
        self.alpha_w = alpha_w
        self.w = np.zeros(value.n_params)

    def _weigh(self) -> tuple[Array, Array]:
        """wᵀx(S), and γ'(1 − λ(S')) wᵀe: (N,) each."""
        return _dot(self.w, self._x) * self._valid, self._gamma_next * (1 - self._lam_next) * (self.e @ self.w)

    def _regress(self, delta: Array, w_x: Array) -> None:
        """w ← w + α_w [δe − (wᵀx(S)) x(S)]."""
        self.w = add_traces(self.w, self.e, self.alpha_w / self._n * delta)
        _add(self.w, self._x, -self.alpha_w / self._n * w_x)

    def learn(self, delta: Array) -> None:
        """v ← v + α_v [δe − γ'(1 − λ')(wᵀe) x(S')];  w ← w + α_w [δe − (wᵀx(S)) x(S)];  γ ← γ'."""
        w_x, c = self._weigh()
        self.v = add_traces(self.v, self.e, self.alpha_v / self._n * delta)
        _add(self.v, self._x_next, -self.alpha_v / self._n * c)  # (12.11)
        self._regress(delta, w_x)
        self._next()


class OneBinaryGTD(GTDLambda):
    """``GTDLambda`` for one environment and binary features, on numbers instead of rows: half the time."""

    def error(self, traj: Trajectories) -> Array:
        """δ of one step: (1,)."""
        self._check(traj)
        features, obs, next_obs, v = self.value.features, traj.obs[0], traj.next_obs[0], self.v
        self._active, self._active_next = features(obs)[0], features(next_obs)[0]
        terminated = bool(traj.terminated[0, 0])
        self._end = terminated or traj.truncated[0, 0]
        self._lam_t, self._lam_next = _first(self.lam, obs), 0.0 if self._end else _first(self.lam, next_obs)
        if not traj.t[0, 0]:
            self.gamma_t[0] = 0
        gamma_next = self._of_next = 0.0 if terminated else _first(self.gamma, next_obs)
        v_next = gamma_next * (self.v0 + v[self._active_next].sum())
        return np.array([traj.rewards[0, 0] + v_next - self.v0 - v[self._active].sum()])

    def trace(self, rho: Array) -> None:
        """e ← ρ(x(S) + γλ(S) e)."""
        has_shape("rho", rho, (1,))
        e = self.e[0]  # NumPy has a fast loop for vectors
        ratio = rho[0]
        blas.dscal(ratio * self.gamma_t[0] * self._lam_t, e)
        e[self._active] += ratio  # no index occurs twice in a row of binary features

    def learn(self, delta: Array) -> None:
        """v ← v + α_v [δe − γ'(1 − λ')(wᵀe) x(S')];  w ← w + α_w [δe − (wᵀx(S)) x(S)];  γ ← γ'."""
        e, w_x = self.e[0], self.w[self._active].sum()
        c = self._of_next * (1 - self._lam_next) * blas.ddot(e, self.w)
        self.v = blas.daxpy(e, self.v, a=self.alpha_v * delta[0])
        self.v[self._active_next] -= self.alpha_v * c
        self.w = blas.daxpy(e, self.w, a=self.alpha_w * delta[0])
        self.w[self._active] -= self.alpha_w * w_x
        self.gamma_t[0] = self._of_next
        if self._end:
            e[:], self.gamma_t[:] = 0, 0


class GTD2(GTDLambda):
    """GTD2 with traces, stable for every α_w / α_v, Eqs. (12.10), (12.15); in the box of ``GTDLambda``

        v ← v + α_v [(wᵀx(S)) x(S) − γ'(1 − λ(S')) (wᵀe) x(S')]

    takes the place of its line. Parameters as ``GTDLambda`` has them.
    """

    def learn(self, delta: Array) -> None:
        """v ← v + α_v [(wᵀx(S)) x(S) − γ'(1 − λ')(wᵀe) x(S')];  w ← w + α_w [δe − (wᵀx(S)) x(S)];  γ ← γ'."""
        w_x, c = self._weigh()
        _add(self.v, self._x, self.alpha_v / self._n * w_x)
        _add(self.v, self._x_next, -self.alpha_v / self._n * c)  # (12.10)
        self._regress(delta, w_x)
        self._next()


class TDRC(GTDLambda):
    """TDRC(λ), which holds w near 0 with a ridge, Eqs. (12.13), (12.15); in the box of ``GTDLambda``

        w ← w + α_w [δe − (wᵀx(S)) x(S) − βw]

    takes the place of its line. Parameters as ``GTDLambda`` has them, and the ridge ``beta`` of at least 0.
    """

    def __init__(
        self,
        value: Value,
        columns: int,
        alpha_v: float,
        alpha_w: float,
        gamma: OfState,
        lam: OfState,
        beta: float = 1.0,
    ) -> None:
        super().__init__(value, columns, alpha_v, alpha_w, gamma, lam)
        non_negative("beta", beta)
        self.beta = beta

    def _regress(self, delta: Array, w_x: Array) -> None:
        """w ← w + α_w [δe − (wᵀx(S)) x(S) − βw]."""
        self.w *= 1 - self.alpha_w * self.beta  # (12.13)
        super()._regress(delta, w_x)


def gradient_critic(
    value: Value, columns: int, alpha_v: float, alpha_w: float, gamma: OfState, lam: OfState
) -> GTDLambda:
    """GTD(λ), the faster one where it serves."""
    one_binary = columns == 1 and isinstance(value.features, BINARY)
    return (OneBinaryGTD if one_binary else GTDLambda)(value, columns, alpha_v, alpha_w, gamma, lam)
