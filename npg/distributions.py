"""Action distributions as functions of η alone (derivations, chapter 2).

Nothing here knows of observations or of θ: a distribution maps the numbers η that a model puts out, one row
per observation, to samples, log-probabilities and their closed-form derivatives with respect to η.

Shapes: ``eta`` is (B, k); a categorical action is (B,) integers, a Gaussian action (B, m) floats with k = 2m.
B may be 0. All functions of η but ``sample`` and ``mode`` keep a complex dtype, so that the complex step can
differentiate through them.
"""

from dataclasses import dataclass

import numpy as np

from ._checks import at_least, has_shape
from ._typing import Array, Rng

LOG_2PI = float(np.log(2 * np.pi))


def log_softmax(eta: Array) -> Array:
    """Logarithm of the softmax of each row, Eq. (2.2).

    Shifting by the largest real part leaves the result unchanged and no exponential can overflow.

    Parameters
    ----------
    eta : (B, k)

    Returns
    -------
    (B, k)
    """
    shifted = eta - eta.real.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # (2.2)


@dataclass(frozen=True)
class Categorical:
    """Softmax distribution over ``n_actions`` actions 0, …, k − 1; η is the vector of logits.

    Parameters
    ----------
    n_actions : int
        k ≥ 1.
    """

    n_actions: int

    def __post_init__(self) -> None:
        at_least("n_actions", self.n_actions, 1)

    @property
    def n_eta(self) -> int:
        """Number of columns of η."""
        return self.n_actions

    def sample(self, eta: Array, rng: Rng) -> Array:
        """Draw one action per row by the Gumbel-max identity, Eq. (2.9): (B,) integers."""
        return (eta + rng.gumbel(size=eta.shape)).argmax(axis=-1)  # (2.9)

    def mode(self, eta: Array) -> Array:
        """Most probable action per row, the first of equals: (B,) integers."""
        return eta.argmax(axis=-1)

    def check_actions(self, a: Array, rows: int) -> None:
        """Raise ``ValueError`` unless ``a`` holds one action for each of ``rows`` rows."""
        has_shape("a", a, (rows,), "x")
        if a.dtype.kind not in "iu" or (a.size and not 0 <= a.min() <= a.max() < self.n_actions):
            raise ValueError(f"a must hold integers from 0 to {self.n_actions - 1}, got {a}")

    def probabilities(self, eta: Array) -> Array:
        """p = softmax(η), Eq. (2.2): (B, k)."""
        return np.exp(log_softmax(eta))

    def log_prob(self, eta: Array, a: Array) -> Array:
        """log p(a; η), Eq. (2.2): (B,)."""
        return log_softmax(eta)[np.arange(len(a)), a]

    def score(self, eta: Array, a: Array) -> Array:
        """∇_η log p(a; η) = e_a − p, Eq. (2.3): (B, k)."""
        s = -self.probabilities(eta)
        s[np.arange(len(a)), a] += 1  # (2.3)
        return s

    def entropy(self, eta: Array) -> Array:
        """H = −Σ p log p in nats, Eq. (2.4): (B,)."""
        log_p = log_softmax(eta)
        return -(np.exp(log_p) * log_p).sum(axis=-1)  # (2.4)

    def entropy_grad(self, eta: Array) -> Array:
        """∇_η H = −p (log p + H), Eq. (2.5): (B, k)."""
        log_p = log_softmax(eta)
        p = np.exp(log_p)
        H = -(p * log_p).sum(axis=-1, keepdims=True)
        return -p * (log_p + H)  # (2.5)

    def kl(self, eta_p: Array, eta_q: Array) -> Array:
        """KL(p‖q) = Σ p (log p − log q) in nats, Eq. (2.6): (B,).

        At least twice the squared total variation, Eq. (6.12).
        """
        log_p = log_softmax(eta_p)
        return (np.exp(log_p) * (log_p - log_softmax(eta_q))).sum(axis=-1)  # (2.6)

    def kl_grad(self, eta_p: Array, eta_q: Array) -> Array:
        """∇_{η_q} KL(p‖q) = q − p, Eq. (2.7): (B, k)."""
        return self.probabilities(eta_q) - self.probabilities(eta_p)  # (2.7)

    def fisher(self, eta: Array) -> Array:
        """F_η = diag(p) − p pᵀ, Eqs. (2.1), (2.8): (B, k, k)."""
        p = self.probabilities(eta)
        return p[:, :, None] * (np.eye(self.n_actions) - p[:, None, :])

    def fisher_product(self, eta: Array, u: Array) -> Array:
        """F_η u = p ⊙ (u − pᵀu), Eq. (2.8): (B, k)."""
        p = self.probabilities(eta)
        return p * (u - (p * u).sum(axis=-1, keepdims=True))  # (2.8)


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normal action components; η = (μ, log σ), means first.

    Parameters
    ----------
    n_actions : int
        m ≥ 1, the dimension of the action; η has 2m columns.
    """

    n_actions: int

    def __post_init__(self) -> None:
        at_least("n_actions", self.n_actions, 1)

    @property
    def n_eta(self) -> int:
        """Number of columns of η."""
        return 2 * self.n_actions

    def _split(self, eta: Array) -> tuple[Array, Array]:
        return eta[:, : self.n_actions], eta[:, self.n_actions :]

    def sample(self, eta: Array, rng: Rng) -> Array:
        """Draw μ + σ ε with ε ~ N(0, I): (B, m)."""
        mu, log_sigma = self._split(eta)
        return mu + np.exp(log_sigma) * rng.standard_normal(mu.shape)

    def mode(self, eta: Array) -> Array:
        """The mean: (B, m)."""
        return self._split(eta)[0].copy()

    def check_actions(self, a: Array, rows: int) -> None:
        """Raise ``ValueError`` unless ``a`` holds one action for each of ``rows`` rows."""
        has_shape("a", a, (rows, self.n_actions), "x")

    def log_prob(self, eta: Array, a: Array) -> Array:
        """log p(a; η) = Σ_j [−z_j²/2 − log σ_j − ½ log 2π], z = (a − μ)/σ, Eq. (2.10): (B,)."""
        mu, log_sigma = self._split(eta)
        z = (a - mu) * np.exp(-log_sigma)
        return (-0.5 * z**2 - log_sigma - 0.5 * LOG_2PI).sum(axis=-1)  # (2.10)

    def score(self, eta: Array, a: Array) -> Array:
        """∇_η log p(a; η) = (z/σ, z² − 1), Eq. (2.11): (B, 2m)."""
        mu, log_sigma = self._split(eta)
        inv_sigma = np.exp(-log_sigma)
        z = (a - mu) * inv_sigma
        return np.concatenate([z * inv_sigma, z * z - 1], axis=-1)  # (2.11)

    def entropy(self, eta: Array) -> Array:
        """H = Σ log σ_j + m (1 + log 2π)/2 in nats, Eq. (2.12): (B,)."""
        return self._split(eta)[1].sum(axis=-1) + 0.5 * self.n_actions * (1 + LOG_2PI)  # (2.12)

    def entropy_grad(self, eta: Array) -> Array:
        """∇_η H = (0, 1), Eq. (2.13): (B, 2m)."""
        return np.repeat([[0.0, 1.0]], self.n_actions, axis=1).repeat(len(eta), axis=0)  # (2.13)

    def kl(self, eta_p: Array, eta_q: Array) -> Array:
        """KL(p‖q) = Σ_j ½(e^{2Δ} − 1 − 2Δ) + ½((μ_p − μ_q)/σ_q)², Δ = log σ_p − log σ_q, Eq. (2.14): (B,).

        Where p and q are close it loses a factor 1/|Δ| of precision; the textbook form loses 1/Δ².
        """
        (mu_p, log_sigma_p), (mu_q, log_sigma_q) = self._split(eta_p), self._split(eta_q)
        delta = log_sigma_p - log_sigma_q
        z = (mu_p - mu_q) * np.exp(-log_sigma_q)
        return (0.5 * (np.expm1(2 * delta) - 2 * delta) + 0.5 * z**2).sum(axis=-1)  # (2.14)

    def kl_grad(self, eta_p: Array, eta_q: Array) -> Array:
        """∇_{η_q} KL(p‖q) = ((μ_q − μ_p)/σ_q², 1 − (σ_p² + (μ_p − μ_q)²)/σ_q²), Eq. (2.15): (B, 2m)."""
        (mu_p, log_sigma_p), (mu_q, log_sigma_q) = self._split(eta_p), self._split(eta_q)
        inv_sigma_q = np.exp(-log_sigma_q)
        z = (mu_q - mu_p) * inv_sigma_q
        grad_log_sigma = -np.expm1(2 * (log_sigma_p - log_sigma_q)) - z**2
        return np.concatenate([z * inv_sigma_q, grad_log_sigma], axis=-1)  # (2.15)

    def _fisher_diagonal(self, eta: Array) -> Array:
        log_sigma = self._split(eta)[1]
        return np.concatenate([np.exp(-2 * log_sigma), np.full_like(log_sigma, 2)], axis=-1)  # (2.16)

    def fisher(self, eta: Array) -> Array:
        """F_η = diag(1/σ², 2), Eqs. (2.1), (2.16): (B, 2m, 2m)."""
        return self._fisher_diagonal(eta)[:, :, None] * np.eye(self.n_eta)

    def fisher_product(self, eta: Array, u: Array) -> Array:
        """F_η u = (u_μ/σ², 2 u_{log σ}), Eq. (2.16): (B, 2m)."""
        return self._fisher_diagonal(eta) * u


Distribution = Categorical | DiagonalGaussian
