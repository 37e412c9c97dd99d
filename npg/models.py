"""Maps from parameters and features to η, with hand-derived products (derivations, chapter 3).

A model is a function η = f(θ, x) and the two products with its Jacobian J = ∂η/∂θ that the chain rule needs:
``vjp`` (Σ_i J_iᵀ u_i, backwards, a gradient) and ``jvp`` (J_i v, forwards, a directional derivative). θ is
always one flat vector, so that a line search or a finite difference is a call with another vector.

Shapes: ``theta`` (n,); ``x`` as the features return it, B rows; ``eta`` and ``u`` (B, k); ``v`` (n,).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ._checks import at_least
from ._typing import Array, Inputs
from .features import dense


@dataclass(frozen=True)
class Linear:
    """η = W x with θ = W.ravel(), W of shape (k, d), Eq. (3.1).

    A float ``x`` (B, d) is dense. An integer ``x`` (B, j) holds the indices of the active ones of d binary
    features, Eq. (3.13); an index that occurs twice counts twice. Both give the same numbers.

    Parameters
    ----------
    n_features, n_outputs : int
        d ≥ 1 and k ≥ 1.
    """

    n_features: int
    n_outputs: int

    def __post_init__(self) -> None:
        at_least("n_features", self.n_features, 1)
        at_least("n_outputs", self.n_outputs, 1)

    @cached_property
    def n_params(self) -> int:
        """n = k d."""
        return self.n_features * self.n_outputs

    @cached_property
    def _first_columns(self) -> Array:
        """The index of the first parameter of each output: (k, 1)."""
        return self.n_features * np.arange(self.n_outputs)[:, None]

    def _single(self, x: Inputs) -> Array:
        if isinstance(x, tuple) or x.ndim != 2 or (x.dtype.kind == "f" and x.shape[1] != self.n_features):
            got = f"{len(x)} blocks" if isinstance(x, tuple) else f"shape {x.shape}"
            raise ValueError(
                f"x must be an array of one row of {self.n_features} features per observation "
                f"(or of active-feature indices), got {got}"
            )
        return x

    def forward(self, theta: Array, x: Inputs) -> Array:
        """η = W x for each row, Eqs. (3.1), (3.13): (B, k)."""
        x = self._single(x)
        W = theta.reshape(self.n_outputs, self.n_features)
        if x.dtype.kind in "iu":
            x = x if x.dtype == np.intp else x.astype(np.intp)
            return np.add.reduce(W.take(x, axis=1), axis=-1).T  # (3.13)
        return x @ W.T  # (3.1)

    def vjp(self, theta: Array, x: Inputs, u: Array) -> Array:
        """Σ_i J_iᵀ u_i = vec(Uᵀ X), Eqs. (3.2), (3.4), (3.13): (n,)."""
        x = self._single(x)
        if x.dtype.kind in "iu":
            grad = np.zeros(self.n_params, dtype=u.dtype)
            flat = self._first_columns + x.astype(np.intp)[:, None, :]  # (B, k, j)
            np.add.at(grad, flat.ravel(), np.repeat(u.ravel(), x.shape[1]))
            return grad
        return (u.T @ x).ravel()  # (3.4)

    def jvp(self, theta: Array, x: Inputs, v: Array) -> Array:
        """J_i v = V x_i for each row, Eq. (3.2): (B, k)."""
        return self.forward(v, x)

    def accumulate(self, theta: Array, z: Array, x: Inputs, u: Array) -> None:
        """z_i ← z_i + J_iᵀ u_i in place, row by row, for z (B, n): Eq. (3.2) without the sum, for traces."""
        x = self._single(x)
        if x.dtype.kind not in "iu":
            z += (u[:, :, None] * x[:, None, :]).reshape(z.shape)
            return
        columns = (x if len(x) == 1 else x[:, None, :]) + self._first_columns
        if x.dtype != np.intp:
            columns = columns.astype(np.intp)
        if len(z) == 1:  # NumPy has a fast loop for vectors
            np.add.at(z[0], columns.ravel(), u[0].repeat(x.shape[1]))
        else:
            np.add.at(z, (np.arange(len(z))[:, None, None], columns), u[:, :, None])

    def jacobian(self, theta: Array, x: Inputs) -> Array:
        """J = I_k ⊗ xᵀ for each row, Eq. (3.2), for reading and tests: (B, k, n)."""
        x = dense(self._single(x), self.n_features)
        J = np.einsum("ij,bd->bijd", np.eye(self.n_outputs), x)  # (3.2)
        return J.reshape(len(x), self.n_outputs, self.n_params)


@dataclass(frozen=True)
class Parallel:
    """Two linear maps side by side, η = (W₁ x₁, W₂ x₂) and θ = [vec W₁, vec W₂], Eq. (3.1).

    The mean and the log standard deviation of a Gaussian policy, each on its own features: ``x`` is the pair
    (x₁, x₂).
    """

    first: Linear
    second: Linear

    @cached_property
    def _stacked(self) -> Linear:
        """Both maps as one, of the same θ, where x₁ = x₂."""
        return Linear(self.first.n_features, self.n_outputs)

    @cached_property
    def n_outputs(self) -> int:
        """k = k₁ + k₂."""
        return self.first.n_outputs + self.second.n_outputs

    @cached_property
    def n_params(self) -> int:
        """n = n₁ + n₂."""
        return self.first.n_params + self.second.n_params

    def forward(self, theta: Array, x: Inputs) -> Array:
        """η = (W₁ x₁, W₂ x₂), Eq. (3.1): (B, k₁ + k₂)."""
        if not isinstance(x, tuple) or len(x) != 2:
            raise ValueError(f"x must be the pair (x_mu, x_sigma), got {type(x).__name__}")
        if len(x[0]) != len(x[1]):
            raise ValueError(f"x must be a pair of as many rows each, got {len(x[0])} and {len(x[1])}")
        if x[0] is x[1]:
            return self._stacked.forward(theta, x[0])
        n = self.first.n_params
        return np.concatenate([self.first.forward(theta[:n], x[0]), self.second.forward(theta[n:], x[1])], axis=-1)

    def vjp(self, theta: Array, x: Inputs, u: Array) -> Array:
        """Σ_i J_iᵀ u_i, block by block, Eq. (3.2): (n,)."""
        n, k = self.first.n_params, self.first.n_outputs
        return np.concatenate([self.first.vjp(theta[:n], x[0], u[:, :k]), self.second.vjp(theta[n:], x[1], u[:, k:])])

    def jvp(self, theta: Array, x: Inputs, v: Array) -> Array:
        """J_i v for each row, Eq. (3.2): (B, k)."""
        return self.forward(v, x)

    def accumulate(self, theta: Array, z: Array, x: Inputs, u: Array) -> None:
        """z_i ← z_i + J_iᵀ u_i in place, block by block: Eq. (3.2) without the sum, for traces."""
        if x[0] is x[1]:
            self._stacked.accumulate(theta, z, x[0], u)
            return
        n, k = self.first.n_params, self.first.n_outputs
        self.first.accumulate(theta[:n], z[:, :n], x[0], u[:, :k])
        self.second.accumulate(theta[n:], z[:, n:], x[1], u[:, k:])

    def jacobian(self, theta: Array, x: Inputs) -> Array:
        """Block-diagonal J for each row, Eq. (3.2), for reading and tests: (B, k, n)."""
        J = np.zeros((len(x[0]), self.n_outputs, self.n_params))
        n, k = self.first.n_params, self.first.n_outputs
        J[:, :k, :n] = self.first.jacobian(theta[:n], x[0])
        J[:, k:, n:] = self.second.jacobian(theta[n:], x[1])
        return J


Model = Linear | Parallel
