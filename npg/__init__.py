"""Policy-gradient and actor–critic methods in NumPy, from scratch: every gradient derived, written once, checked.

Public names are imported when they are first used (PEP 562), so that the mathematics loads no Gymnasium.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

_HOMES = {
    ".algorithms": ("ALGORITHMS",),
    ".envs": ("make_env", "make_vec"),
    ".lab.presets": ("make_agent",),
    ".lab.runs": ("History",),
    ".lab.training": ("evaluate", "train"),
    ".policies": ("GaussianLinear", "Policy", "SoftmaxLinear", "make_policy"),
    ".trajectories": ("DivergenceError", "Episodes", "Steps", "Trajectories"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

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
    "algorithms",
    "distributions",
    "envs",
    "estimators",
    "evaluate",
    "exact",
    "features",
    "gradcheck",
    "lqr",
    "make_agent",
    "make_env",
    "make_policy",
    "make_vec",
    "models",
    "optimizers",
    "policies",
    "problems",
    "returns",
    "solvers",
    "surrogates",
    "traces",
    "train",
    "trajectories",
    "values",
]

if TYPE_CHECKING:
    from . import (
        algorithms,
        distributions,
        envs,
        estimators,
        exact,
        features,
        gradcheck,
        lqr,
        models,
        optimizers,
        policies,
        problems,
        returns,
        solvers,
        surrogates,
        traces,
        trajectories,
        values,
    )
    from .algorithms import ALGORITHMS
    from .envs import make_env, make_vec
    from .lab.presets import make_agent
    from .lab.runs import History
    from .lab.training import evaluate, train
    from .policies import GaussianLinear, Policy, SoftmaxLinear, make_policy
    from .trajectories import DivergenceError, Episodes, Steps, Trajectories
else:

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            value = globals()[name] = getattr(import_module(_HOME[name], __name__), name)
            return value
        if name in __all__:
            return import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
