"""Policies: the chain rule over features, model and distribution (derivations, chapter 3).

    observation --features--> x --model(θ)--> η --distribution--> π(a|s)

    ∇θ log π(a|s) = Jᵀ ∇η log p(a; η)            F(θ) = Σ_i w_i J_iᵀ F_η(η_i) J_i

``theta`` is passed to every method, so that a finite difference, a line search or a comparison of an old and a
new policy is a call with another vector. Shapes: ``theta`` (n,); ``x`` what ``features`` returned for B
observations; ``a`` as the distribution has it, one row each; ``w`` (B,) weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ._checks import has_shape
from ._typing import Array, BoxSpace, DiscreteSpace, Inputs, Rng
from .distributions import Categorical, DiagonalGaussian, Distribution
from .features import Constant, Features, Pair, default_kind, make
from .models import Linear, Model, Parallel


@dataclass(frozen=True)
class Policy:
    """A stochastic policy π_θ(a|s) = p(a; η), η = model(θ, features(s)).

    Parameters
    ----------
    features : callable
        Batch of observations -> x.
    model : npg.models.Linear or npg.models.Parallel
        (θ, x) -> η with its products.
    distribution : npg.distributions.Categorical or npg.distributions.DiagonalGaussian
        η -> actions.

    Raises
    ------
    ValueError
        If the model puts out another number of columns than the distribution takes.
    """

    features: Callable[[Array], Inputs]
    model: Model
    distribution: Distribution

    def __post_init__(self) -> None:
        if self.model.n_outputs != self.distribution.n_eta:
            raise ValueError(
                f"model has {self.model.n_outputs} outputs, but {self.distribution} takes {self.distribution.n_eta}"
            )

    @cached_property
    def n_params(self) -> int:
        """n, the length of θ."""
        return self.model.n_params

    def init(self, rng: Rng) -> Array:
        """Initial θ = 0: uniform over discrete actions; mean 0 and σ = 1 of continuous ones. (n,)."""
        return np.zeros(self.n_params)

    def eta(self, theta: Array, x: Inputs) -> Array:
        """Parameters η of the action distribution, Eq. (3.1): (B, k)."""
        if theta.shape != (self.n_params,):
            has_shape("theta", theta, (self.n_params,))
        return self.model.forward(theta, x)

    def sample(self, theta: Array, x: Inputs, rng: Rng) -> Array:
        """One action per row, drawn from π_θ: (B,) or (B, m)."""
        return self.distribution.sample(self.eta(theta, x), rng)

    def mode(self, theta: Array, x: Inputs) -> Array:
        """The most probable action of each row: (B,) or (B, m)."""
        return self.distribution.mode(self.eta(theta, x))

    def _actions(self, eta: Array, a: Array) -> Array:
        a = np.asarray(a)
        self.distribution.check_actions(a, len(eta))
        return a

    def log_prob(self, theta: Array, x: Inputs, a: Array) -> Array:
        """log π_θ(a|s), Eqs. (2.2), (2.10): (B,)."""
        eta = self.eta(theta, x)
        return self.distribution.log_prob(eta, self._actions(eta, a))

    def log_prob_and_score(self, theta: Array, x: Inputs, a: Array) -> tuple[Array, Array]:
        """log π_θ(a|s) and ∇_η log π_θ(a|s), of which Eq. (3.3) makes the score: (B,), (B, k)."""
        eta = self.eta(theta, x)
        a = self._actions(eta, a)
        return self.distribution.log_prob(eta, a), self.distribution.score(eta, a)

    def score(self, theta: Array, x: Inputs, a: Array) -> Array:
        """∇θ log π_θ(a|s) of each row, Eqs. (3.3), (3.5)–(3.8), for reading and tests: (B, n).

        Its mean under the policy is zero, Eq. (1.6).
        """
        eta = self.eta(theta, x)
        self.distribution.check_actions(np.asarray(a), len(eta))
        psi = np.zeros((len(eta), self.n_params), dtype=eta.dtype)
        self.accumulate_score(psi, theta, x, np.asarray(a), np.ones(len(eta)))  # (3.5), (3.6), (3.7), (3.8)
        return psi

    def accumulate_score(self, z: Array, theta: Array, x: Inputs, a: Array, w: Array) -> None:
        """z_i ← z_i + w_i ∇θ log π_θ(a_i|s_i) in place, for the traces z (B, n) of online methods, Eq. (8.7)."""
        self.model.accumulate(theta, z, x, w[:, None] * self.distribution.score(self.eta(theta, x), a))  # (3.3)

    def weighted_score(self, theta: Array, x: Inputs, a: Array, w: Array) -> Array:
        """Σ_i w_i ∇θ log π_θ(a_i|s_i), Eq. (3.4): (n,).

        With returns as weights, a sample of the log-derivative estimator, Eqs. (1.3), (1.4).
        """
        eta = self.eta(theta, x)
        u = self.distribution.score(eta, self._actions(eta, a))
        return self.model.vjp(theta, x, self._weights(eta, w) * u)  # (3.4)

    def all_actions(self, theta: Array, x: Inputs, q: Array) -> Array:
        """Σ_a q(s_i, a) ∇θ π_θ(a|s_i) of each row, Eqs. (4.10), (5.14), for reading and tests: (B, n).

        Parameters
        ----------
        theta : (n,)
        x : B rows
        q : (B, k)
            A number for each of the k discrete actions.

        Raises
        ------
        TypeError
            If actions are not discrete.
        """
        return np.einsum("bkn,bk->bn", self.model.jacobian(theta, x), self._expected(self.eta(theta, x), q))

    def all_actions_gradient(self, theta: Array, x: Inputs, q: Array, w: Array) -> Array:
        """Σ_i w_i Σ_a q(s_i, a) ∇θ π_θ(a|s_i), Eqs. (1.9), (4.10): (n,)."""
        eta = self.eta(theta, x)
        return self.model.vjp(theta, x, self._weights(eta, w) * self._expected(eta, q))  # (1.9)

    def _expected(self, eta: Array, q: Array) -> Array:
        """Σ_a q(s, a) ∇_η π(a|s) = F_η q, Eq. (4.10)."""
        if not isinstance(self.distribution, Categorical):
            raise TypeError(f"a sum over all actions needs discrete actions, got {self.distribution}")
        has_shape("q", q, eta.shape, "x")
        return self.distribution.fisher_product(eta, q)  # (4.10)

    def entropy(self, theta: Array, x: Inputs) -> Array:
        """Entropy of π_θ(·|s) in nats, Eqs. (2.4), (2.12): (B,)."""
        return self.distribution.entropy(self.eta(theta, x))

    def entropy_grad(self, theta: Array, x: Inputs, w: Array) -> Array:
        """Σ_i w_i ∇θ H_i, Eq. (3.9): (n,)."""
        eta = self.eta(theta, x)
        return self.model.vjp(theta, x, self._weights(eta, w) * self.distribution.entropy_grad(eta))  # (3.9)

    def kl(self, theta_p: Array, theta_q: Array, x: Inputs) -> Array:
        """KL(π_{θ_p}(·|s) ‖ π_{θ_q}(·|s)) in nats, Eqs. (2.6), (2.14): (B,).

        For θ_q = θ_p + Δ it is ½ΔᵀF_sΔ to second order, in either direction, Eq. (9.3).
        """
        return self.distribution.kl(self.eta(theta_p, x), self.eta(theta_q, x))

    def kl_grad(self, theta_p: Array, theta_q: Array, x: Inputs, w: Array) -> Array:
        """Σ_i w_i ∇_{θ_q} KL_i, Eq. (3.9): (n,)."""
        eta_p, eta_q = self.eta(theta_p, x), self.eta(theta_q, x)
        return self.model.vjp(theta_q, x, self._weights(eta_q, w) * self.distribution.kl_grad(eta_p, eta_q))

    def fisher(self, theta: Array, x: Inputs, w: Array | None = None) -> Array:
        """F(θ) = Σ_i w_i J_iᵀ F_η J_i, w_i = 1/B by default, Eq. (3.10): (n, n).

        Also the Hessian of the mean divergence from π_θ, Eqs. (9.4), (9.5). For a softmax it is always singular,
        Eq. (3.12); a null vector added to θ leaves the policies of these rows as they are, Eq. (9.10).
        """
        eta = self.eta(theta, x)
        J = self.model.jacobian(theta, x)
        w = self._weights(eta, w)[:, 0]
        return np.einsum("b,bkn,bkl,blm->nm", w, J, self.distribution.fisher(eta), J, optimize=True)  # (3.10)

    def fisher_vector_product(self, theta: Array, x: Inputs, v: Array, w: Array | None = None) -> Array:
        """F(θ) v = Σ_i w_i J_iᵀ F_η (J_i v) without forming F, Eq. (3.11): (n,)."""
        return self.fisher_operator(theta, x, w)(v)

    def fisher_operator(self, theta: Array, x: Inputs, w: Array | None = None) -> Callable[[Array], Array]:
        """v -> F(θ) v, Eq. (3.11), for several products at one θ: η is computed once, Eq. (10.15)."""
        eta = self.eta(theta, x)
        weights = self._weights(eta, w)

        def product(v: Array) -> Array:
            has_shape("v", v, theta.shape)
            u = self.distribution.fisher_product(eta, self.model.jvp(theta, x, v))
            return self.model.vjp(theta, x, weights * u)  # (3.11), (10.15)

        return product

    def empirical_fisher(self, theta: Array, x: Inputs, a: Array, w: Array | None = None) -> Array:
        """Σ_i w_i ψ_i ψ_iᵀ of the scores ψ of sampled actions, w_i = 1/B by default, Eq. (9.18): (n, n).

        For comparison: where actions are drawn independently given the states its mean is ``fisher``, and its rank is
        at most B.
        """
        psi = self.score(theta, x, a)
        return (self._weights(psi, w) * psi).T @ psi  # (9.18)

    @staticmethod
    def _weights(eta: Array, w: Array | None) -> Array:
        """One weight a row, as a column."""
        if w is None:
            return np.full((len(eta), 1), 1 / max(len(eta), 1))
        has_shape("w", w, (len(eta),), "x")
        return np.asarray(w)[:, None]


def SoftmaxLinear(features: Features, n_actions: int) -> Policy:
    """Softmax over linear logits, Eqs. (3.1), (3.5); tabular on ``OneHot`` features, Eq. (3.8).

    θ = W.ravel(), W of shape (n_actions, d).
    """
    return Policy(features, Linear(features.n_features, n_actions), Categorical(n_actions))


def GaussianLinear(mean_features: Features, scale_features: Features, n_actions: int) -> Policy:
    """Normal actions with linear mean and linear log σ, Eqs. (3.1), (3.6), (3.7).

    θ = [W_mu.ravel(), W_sigma.ravel()] of shapes (n_actions, d_mu) and (n_actions, d_sigma); x is the pair
    (x_mu, x_sigma), computed once where both features are equal.

    Parameters
    ----------
    mean_features, scale_features : features
        ``Constant()`` as ``scale_features`` gives a state-independent σ.
    n_actions : int
        Dimension m of the action.
    """

    model = Parallel(Linear(mean_features.n_features, n_actions), Linear(scale_features.n_features, n_actions))
    return Policy(Pair(mean_features, scale_features), model, DiagonalGaussian(n_actions))


def make_policy(
    observation_space: Any,
    action_space: Any,
    features: Features | None = None,
    scale_features: Features | None = None,
) -> Policy:
    """The policy for a pair of Gymnasium spaces: softmax for Discrete actions, Gaussian for Box actions.

    Parameters
    ----------
    observation_space, action_space : gymnasium.Space
        Of one environment; each Box or Discrete.
    features : features, optional
        Of the logits or of the mean; one-hot (a tabular policy) or affine by default.
    scale_features : features, optional
        Of log σ; a constant, hence a state-independent σ, by default.

    Raises
    ------
    TypeError
        For any other space.
    """
    if not isinstance(observation_space, BoxSpace | DiscreteSpace):
        raise TypeError(f"observation space must be Box or Discrete, got {observation_space}")
    features = features or make(default_kind(observation_space), observation_space)
    if isinstance(action_space, DiscreteSpace):
        return SoftmaxLinear(features, int(action_space.n))
    if isinstance(action_space, BoxSpace):
        return GaussianLinear(features, scale_features or Constant(), int(np.prod(action_space.shape)))
    raise TypeError(f"action space must be Box or Discrete, got {action_space}")
