"""Value functions that are linear in features, and how they are fitted (derivations, chapter 1)."""

# mypy: disable-error-code="no-any-return"

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from ._typing import Array
from .features import Features, dense


def ridge_least_squares(x: Array, y: Array, ridge: float) -> Array:
    """w that minimises Σ (wᵀx_i − y_i)² + κ‖w‖², Eq. (1.14); of the smallest norm where κ = 0 leaves a choice.

    Parameters
    ----------
    x : (B, d)
    y : (B,)
    ridge : float
        κ ≥ 0.

    Returns
    -------
    (d,)

    Raises
    ------
    FloatingPointError
        If x or y is not finite.
    """
    try:
        if ridge == 0:
            return linalg.lstsq(x, y)[0]
        return linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y, assume_a="pos")
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


@dataclass(frozen=True)
class LinearValue:
    """v̂(s; w) = wᵀx(s).

    Parameters
    ----------
    features : features
        x.
    """

    features: Features

    @property
    def n_params(self) -> int:
        """d, the length of w."""
        return self.features.n_features

    def x(self, obs: Array) -> Array:
        """The features of each observation in dense form: (B, d)."""
        return dense(self.features(obs), self.n_params)

    def value(self, w: Array, obs: Array) -> Array:
        """v̂ of each observation: (B,)."""
        return self.x(obs) @ w
