"""One run of a comparison, as it is sent to a worker.

Importing this module loads neither NumPy nor Gymnasium, so that a worker that has only begun can still be told to use
one thread for linear algebra: it has to be before NumPy is first imported.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._threads import THREADS

if TYPE_CHECKING:
    from ..algorithms import Agent
    from ..envs.spaces import Env

VECTOR_SETTINGS = {"num_envs", "vectorization_mode", "vector_kwargs", "wrappers"}
"""What Gymnasium's ``make_vec`` takes that is no setting of one environment."""


@dataclass(frozen=True)
class Task:
    """What is trained on what, from which seed, and the directory of the run; ``values`` are swept settings."""

    method: str
    env: str
    seed: int
    steps: int
    num_envs: int
    settings: dict[str, Any]
    values: dict[str, Any]
    env_settings: dict[str, Any]
    eval_every: int
    deterministic: bool
    path: Path

    def make_env(self) -> "Env":
        """The environment, or so many of them in a vector."""
        from ..envs import make_env, make_vec

        if self.num_envs:
            return make_vec(self.env, self.num_envs, **self.env_settings)
        return make_env(self.env, **self.env_settings)

    def make_agent(self, env: "Env") -> "Agent":
        """The agent, not initialised."""
        from .presets import make_agent

        return make_agent(self.method, env, **self.settings, **self.values)


def carry_out(task: Task) -> str | None:
    """Train and evaluate, or go on with what there is of it in its directory; an error in words, if one ends it."""
    if "numpy" not in sys.modules:
        os.environ.update(dict.fromkeys(THREADS, "1"))
    from .training import train

    try:
        env, eval_env = task.make_env(), task.make_env()
        agent = task.make_agent(env)
        how: dict[str, Any] = {name: getattr(task, name) for name in ("steps", "seed", "eval_every", "deterministic")}
        resume = (task.path / "config.json").is_file()
        train(agent, env, **how, eval_env=eval_env, out=task.path, resume=resume)
    except Exception as error:  # whatever the environment has for us: the other runs go on
        return f"{type(error).__name__}: {error}"
    return None


def end_with_parent() -> None:
    """Let this process, a worker, end when the one that started it does, however that ends."""
    from multiprocessing import parent_process
    from threading import Thread

    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)  # as if killed: what is on disk is whole at any moment

    Thread(target=wait, daemon=True).start()
