"""Policy-gradient and actor–critic methods in NumPy, from scratch: every gradient derived, written once, checked.

Public names are imported when they are first used (PEP 562), so that the mathematics loads no Gymnasium.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

_HOMES = {
    ".algorithms": ("ALGORITHMS",),
    ".envs": ("make_env", "make_vec"),
    ".lab.compare": ("compare",),
    ".lab.presets": ("make_agent",),
    ".lab.runs": ("History",),
    ".lab.training": ("evaluate", "train"),
    ".policies": ("GaussianLinear", "Policy", "SoftmaxLinear", "make_policy"),
    ".trajectories": ("DivergenceError", "Episodes", "Steps", "Trajectories"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = "algorithms baselines distributions envs estimators exact features gradcheck lab lqr models optimizers"
_MODULES += " policies problems returns solvers surrogates traces trajectories values"

if TYPE_CHECKING:
    from . import algorithms as algorithms
    from . import baselines as baselines
    from . import distributions as distributions
    from . import envs as envs
    from . import estimators as estimators
    from . import exact as exact
    from . import features as features
    from . import gradcheck as gradcheck
    from . import lab as lab
    from . import lqr as lqr
    from . import models as models
    from . import optimizers as optimizers
    from . import policies as policies
    from . import problems as problems
    from . import returns as returns
    from . import solvers as solvers
    from . import surrogates as surrogates
    from . import traces as traces
    from . import trajectories as trajectories
    from . import values as values
    from .algorithms import ALGORITHMS as ALGORITHMS
    from .envs import make_env as make_env
    from .envs import make_vec as make_vec
    from .lab.compare import compare as compare
    from .lab.presets import make_agent as make_agent
    from .lab.runs import History as History
    from .lab.training import evaluate as evaluate
    from .lab.training import train as train
    from .policies import GaussianLinear as GaussianLinear
    from .policies import Policy as Policy
    from .policies import SoftmaxLinear as SoftmaxLinear
    from .policies import make_policy as make_policy
    from .trajectories import DivergenceError as DivergenceError
    from .trajectories import Episodes as Episodes
    from .trajectories import Steps as Steps
    from .trajectories import Trajectories as Trajectories
else:
    __all__ = sorted([*_HOME, *_MODULES.split()])

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            value = globals()[name] = getattr(import_module(_HOME[name], __name__), name)
            return value
        if name in __all__:
            return import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return ["__version__", *__all__]
