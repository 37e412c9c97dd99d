"""Run directories, and what a run recorded.

A run directory holds ``config.json``, ``metrics.csv`` and ``checkpoint.npz``. Metrics are appended; other files are
written under another name, flushed and renamed, so that a crash leaves the old one or the new one.
"""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import scipy
from gymnasium.vector import VectorEnv, VectorWrapper

from .._checks import at_least
from .._typing import Array
from .._version import __version__
from ..algorithms import Agent
from ..envs import make_env, make_vec, normalized
from ..envs.spaces import Env, normalizers
from .presets import make_agent
from .statistics import load_statistics

Row = dict[str, float]


class History:
    """What a run recorded: ``history["mean_return"]`` is a column, one entry per record.

    Attributes
    ----------
    rows : list of dict
        One per record: ``steps`` (environment steps so far), ``updates``, ``episodes`` (finished so far),
        ``mean_return`` and ``mean_length`` of the episodes finished since the last record (NaN if none),
        ``seconds``, and the agent's diagnostics of its last update.
    """

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Array:
        return np.array([row[name] for row in self.rows])


class Run:
    """A run directory. Metrics are appended; other files are written under another name, flushed and renamed.

    Parameters
    ----------
    path : path
        The directory; see ``create`` for a new one.

    Raises
    ------
    ValueError
        If it is not a run directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._names: list[str] = []
        if not (self.path / "config.json").is_file():
            raise ValueError(f"{self.path} is not a run directory: it has no config.json")
        try:
            self.config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
            for name in ("seed", "steps", "record_every", "checkpoint_every"):
                at_least(name, self.config[name], 0)
            self.config["agent"]["algorithm"], self.config["env"]["id"], self.config["rebuildable"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path / 'config.json'} is damaged: {error!r}") from None

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any]) -> "Run":
        """A new directory with its config.

        Raises
        ------
        ValueError
            If the directory exists and is not empty.
        OSError
            If it cannot be written.
        """
        path = Path(path)
        text = _json(config)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"run directory {path} already exists; choose another or resume it")
        try:
            path.mkdir(parents=True, exist_ok=True)
            _write(path / "config.json", text.encode())
        except OSError as error:
            raise OSError(f"run directory {path} cannot be written ({error.strerror}); choose another") from None
        return cls(path)

    def new_agent(self, env: Env) -> Agent:
        """The agent as the run began.

        Raises
        ------
        ValueError
            If ``npg.make_agent`` cannot build it from its settings.
        """
        if not self.config["rebuildable"]:
            raise ValueError(f"the agent of {self.path} is not one that npg.make_agent builds; go on in Python")
        try:
            return make_agent(env=env, **self.config["agent"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path} is of another version of npg, or damaged: {error}") from None

    def check_same(self, config: dict[str, Any]) -> None:
        """Raise ``ValueError`` unless ``config`` is that of the run, but for its length and the versions."""
        config = json.loads(_json(config))
        for name in ("seed", "record_every", "checkpoint_every", "env", "agent"):
            new, old = config[name], self.config[name]
            if new != old:
                if isinstance(new, dict) and isinstance(old, dict):
                    name = next(k for k in new | old if new.get(k) != old.get(k))
                    new, old = new.get(name), old.get(name)
                raise ValueError(f"{name} must be {old!r} to resume {self.path}, as the run began, got {new!r}")

    def rows(self) -> list[Row]:
        """The rows of ``metrics.csv``."""
        path = self.path / "metrics.csv"
        if not path.is_file():
            return []
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
            if any(not {"steps", "mean_return"} <= row.keys() for row in rows):
                raise ValueError("columns are missing")
            return [{name: float(value) for name, value in row.items()} for row in rows]
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def append(self, row: Row) -> None:
        """Add one row to ``metrics.csv``."""
        path = self.path / "metrics.csv"
        with open(path, "a", newline="", encoding="utf-8") as file:
            names = self._names = self._names or list(row)
            if set(names) != set(row):
                raise ValueError(f"diagnostics must have the same names at every update: {names}, got {list(row)}")
            writer = csv.DictWriter(file, names)
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())

    def extend(self, steps: int) -> None:
        """Let the run be of more steps, if it is of fewer."""
        if steps > self.config["steps"]:
            self.config = self.config | {"steps": steps}
            _write(self.path / "config.json", _json(self.config).encode())

    def keep_rows(self, count: int) -> list[Row]:
        """Drop all rows after the first ``count``, among them one that a crash cut short."""
        path = self.path / "metrics.csv"
        if not count:
            path.unlink(missing_ok=True)
            return []
        lines = path.read_bytes().splitlines(keepends=True)[: count + 1] if path.is_file() else []
        if len(lines) <= count or not lines[-1].endswith(b"\n"):
            raise ValueError(f"{path} has fewer rows than the checkpoint has records: it was changed or cut")
        _write(path, b"".join(lines))
        rows = self.rows()
        self._names = list(rows[0])
        return rows

    def save(self, arrays: dict[str, Array]) -> None:
        """Replace ``checkpoint.npz``."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        _write(self.path / "checkpoint.npz", buffer.getvalue())

    def load(self) -> dict[str, Array]:
        """The arrays of ``checkpoint.npz``.

        Raises
        ------
        ValueError
            If it is missing, cut short or otherwise damaged.
        """
        path = self.path / "checkpoint.npz"
        if not path.is_file():
            raise ValueError(f"{self.path} has no checkpoint.npz: the run ended before its first checkpoint")
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                loaded = {name: arrays[name] for name in arrays.files}
            json.loads(str(loaded["rng"]))
            return loaded
        except Exception as error:  # zipfile, zlib, struct and NumPy each have their own
            raise ValueError(f"{path} is damaged and cannot be loaded ({error!r})") from None

    def note(self, error: BaseException) -> None:
        """Add to an error that ends a training what is kept of it, and how to go on from there."""
        if (self.path / "checkpoint.npz").is_file():
            goes_on = not isinstance(error, ArithmeticError | ValueError | TypeError)
            advice = f"; go on with: npg train --resume {self.path}" if goes_on else ""
            error.add_note(f"the checkpoint of step {int(self.load()['count.steps'])} is kept in {self.path}{advice}")

    def make_env(self) -> Env:
        """The environment that the run was trained on; ``make_agent`` sets the statistics of its normalisation."""
        env = self.config["env"]
        if env["id"] is None or env["wrappers"]:
            raise ValueError(
                f"{self.path} was trained on an unregistered or wrapped environment; use npg.evaluate in Python"
            )
        kwargs, num_envs = env["kwargs"], env["num_envs"]
        made = make_vec(env["id"], num_envs, **kwargs) if num_envs else make_env(env["id"], **kwargs)
        return normalized(made, **env["normalize"]) if "normalize" in env else made

    def make_agent(self, env: Env) -> Agent:
        """The agent as the last checkpoint has it; so are then the statistics by which ``env`` normalises.

        Raises
        ------
        ValueError
            If the checkpoint is missing or damaged, or ``env`` does not normalise what it did in training.
        """
        agent = self.new_agent(env)
        agent.init(np.random.default_rng(0), env.num_envs if isinstance(env, VectorEnv) else 1)
        arrays = self.load()
        agent.load_state(prefixed(arrays, "agent."))
        load_statistics(env, prefixed(arrays, "env."))
        return agent


def _json(config: dict[str, Any]) -> str:
    try:
        return json.dumps(config, indent=2, default=lambda value: value.tolist())  # NumPy's numbers and arrays
    except AttributeError:
        raise TypeError(f"settings must be JSON-able to be kept in a run directory, got {config}") from None


def prefixed(arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
    """The arrays whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def describe(agent: Agent, env: Env) -> dict[str, Any]:
    """What of a run's config is of the agent and the environment, with the versions of packages."""
    return {
        "env": _env_config(env),
        "agent": agent.config,
        "rebuildable": _is_rebuildable(agent, env),
        "versions": _versions(),
    }


def _is_rebuildable(agent: Agent, env: Env) -> bool:
    try:
        return make_agent(env=env, **agent.config) == agent
    except (ValueError, TypeError):
        return False


def _env_config(env: Env) -> dict[str, Any]:
    num_envs = env.num_envs if isinstance(env, VectorEnv) else 0
    config: dict[str, Any] = {"id": None, "num_envs": num_envs, "kwargs": {}}
    wrappers, inner = [], env
    while isinstance(inner, VectorWrapper):
        wrappers.append(type(inner).__name__)
        inner = inner.env
    if env.spec is not None:
        config |= {"id": env.spec.id, "kwargs": {k: v for k, v in env.spec.kwargs.items() if k != "num_envs"}}
        if env.spec.max_episode_steps is not None:
            config["kwargs"]["max_episode_steps"] = env.spec.max_episode_steps
        wrappers += [wrapper.name for wrapper in env.spec.additional_wrappers]
    normalizing = normalizers(env)
    if normalizing:
        gamma = normalizing["reward"].gamma if "reward" in normalizing else 0.99
        config["normalize"] = {f"{name}s": name in normalizing for name in ("observation", "reward")} | {"gamma": gamma}
        if all(wrapper.epsilon == 1e-8 for wrapper in normalizing.values()):  # as ``normalized`` makes them again
            wrappers = [name for name in wrappers if name not in ("NormalizeObservation", "NormalizeReward")]
    return config | {"wrappers": wrappers}


def _versions() -> dict[str, str]:
    numpy, scipy_, gym = np.__version__, scipy.__version__, gymnasium.__version__
    return {"npg": __version__, "numpy": numpy, "scipy": scipy_, "gymnasium": gym}
