"""Policy-gradient and actor–critic methods in NumPy, from scratch: every gradient derived, written once, checked."""

__version__ = "0.1.0"

from . import envs, estimators, exact, features, gradcheck, returns, solvers, surrogates
from .algorithms import ALGORITHMS
from .envs import make_env, make_vec
from .policies import GaussianLinear, Policy, SoftmaxLinear, make_policy
from .presets import make_agent
from .rollout import DivergenceError, Episodes, Steps, Trajectories
from .training import History, evaluate, train

__all__ = [
    "ALGORITHMS",
    "DivergenceError",
    "Episodes",
    "GaussianLinear",
    "History",
    "Policy",
    "SoftmaxLinear",
    "Steps",
    "Trajectories",
    "envs",
    "estimators",
    "evaluate",
    "exact",
    "features",
    "gradcheck",
    "make_agent",
    "make_env",
    "make_policy",
    "make_vec",
    "returns",
    "solvers",
    "surrogates",
    "train",
]
