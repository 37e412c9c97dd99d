"""Run directories, and what a run recorded.

A run directory holds ``config.json``, ``metrics.csv``, ``checkpoint.npz``, ``evaluations.csv`` if there were any, and
``lock``. Rows are appended; other files are written under another name, flushed and renamed, so that a crash leaves the
old one or the new one.
"""

import csv
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import gymnasium
import numpy as np
import scipy
from gymnasium.vector import VectorEnv, VectorWrapper

from .._checks import at_least
from .._threads import THREADS
from .._typing import Array
from .._version import __version__
from ..algorithms import Agent
from ..envs import load_module, make_env, make_vec, normalized
from ..envs.spaces import Env, normalizers
from .presets import make_agent
from .statistics import load_statistics

Row = dict[str, float]
LOCKED = 1 << 30


class History:
    """What a run recorded: ``history["mean_return"]`` is a column, one entry per record.

    Attributes
    ----------
    rows : list of dict
        One per record: ``steps`` (environment steps so far), ``updates``, ``episodes`` (finished so far),
        ``mean_return`` and ``mean_length`` of the last 100 of them, ``window`` (how many that are; with 0 the means are
        NaN), ``seconds``, and the agent's diagnostics of its last update.
    evaluations : list of dict
        One per evaluation: ``steps``, and of the returns ``mean``, ``std`` and ``count``.
    """

    def __init__(self, rows: list[Row], evaluations: list[Row] | None = None) -> None:
        self.rows, self.evaluations = rows, evaluations or []

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
        if not (self.path / "config.json").is_file():
            raise ValueError(f"{self.path} is not a run directory: it has no config.json")
        try:
            self.config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
            for name in ("seed", "steps", "record_every", "checkpoint_every"):
                at_least(name, self.config[name], 0)
            env, agent, machine = (self.config[name] for name in ("env", "agent", "machine"))
            tables = [env, agent, machine, env["kwargs"], env.get("normalize", {})]
            if not all(isinstance(table, dict) for table in tables) or not isinstance(env["wrappers"], list):
                raise TypeError("what must be tables and lists are others")
            if not isinstance(env["id"], str | None) or not isinstance(self.config["deterministic"], bool):
                raise TypeError("env.id must be a string, and deterministic true or false")
            at_least("num_envs", env["num_envs"], 0)
            at_least("eval_every", 1 if self.config["eval_every"] is None else self.config["eval_every"], 1)
            agent["algorithm"], self.config["rebuildable"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{self.path / 'config.json'} is damaged, or of another version: {error!r:.200}") from None

    @classmethod
    @contextmanager
    def create(cls, path: str | Path, config: dict[str, Any]) -> Iterator["Run"]:
        """A new directory with its config, locked within the ``with``.

        Raises
        ------
        ValueError
            If the directory exists and is not empty.
        OSError
            If it cannot be written.
        """
        path = Path(path)
        text = _json(config)
        _check_new(path)
        with ExitStack() as stack:
            try:
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(path))
                _check_new(path)  # nobody was quicker
                _write(path / "config.json", text.encode())
            except OSError as error:
                raise OSError(f"run directory {path} cannot be written ({error.strerror}); choose another") from None
            yield cls(path)

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
        there, here = self.config["machine"], config["machine"]
        threads = [[machine.get(name) for name in THREADS] for machine in (there, here)]
        if threads[0] != threads[1] or (None in threads[0] and there.get("cores") != here["cores"]):
            warnings.warn(f"the run began with {there} and goes on with {here}: it may end otherwise", stacklevel=3)

    def rows(self, name: str = "metrics") -> list[Row]:
        """The rows of ``metrics.csv``, or of ``evaluations.csv``."""
        path = self.path / f"{name}.csv"
        if not path.is_file():
            return []
        try:
            whole_lines = path.read_bytes().rpartition(b"\n")[0]  # the last one may have been cut short by a crash
            reader = csv.DictReader(whole_lines.decode().splitlines(), quoting=csv.QUOTE_NONE)
            rows = list(reader)
            needed = {"steps", {"metrics": "mean_return"}.get(name, "mean")}
            whole = all(None not in row and None not in row.values() for row in rows)
            if not (whole and (reader.fieldnames is None or needed <= {*reader.fieldnames})):
                raise ValueError("columns are missing")
            return [{key: float(value) for key, value in row.items()} for row in rows]
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def append(self, row: Row, name: str = "metrics") -> None:
        """Add one row to ``metrics.csv``, or to ``evaluations.csv``."""
        path = self.path / f"{name}.csv"
        with open(path, "a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            names = file.readline().strip().split(",") if path.stat().st_size else list(row)
            if set(names) != set(row):
                raise ValueError(f"diagnostics must have the same names at every update: {names}, got {list(row)}")
            writer = csv.DictWriter(file, names)
            if not path.stat().st_size:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())

    def extend(self, steps: int) -> None:
        """Let the run be of more steps, if it is of fewer."""
        if steps > self.config["steps"]:
            self.config = self.config | {"steps": steps}
            _write(self.path / "config.json", _json(self.config).encode())

    def keep_rows(self, count: int, steps: int) -> History:
        """Drop all rows after the first ``count``, and evaluations after ``steps``, and any that a crash cut short."""
        path = self.path / "metrics.csv"
        lines = path.read_bytes().splitlines(keepends=True)[: count + 1] if path.is_file() else []
        if count and (len(lines) <= count or not lines[-1].endswith(b"\n")):
            raise ValueError(f"{path} has fewer rows than the checkpoint has records: it was changed or cut")
        _replace_rows(path, lines if count else [])
        path = self.path / "evaluations.csv"
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        if lines and not lines[-1].endswith(b"\n"):
            _replace_rows(path, lines[:-1])
        kept = sum(row["steps"] <= steps for row in self.rows("evaluations"))
        _replace_rows(path, lines[: kept + 1] if kept else [])
        history = History(self.rows(), self.rows("evaluations"))
        if len(history) != count or any(row["steps"] > steps for row in history.rows):
            raise ValueError(f"{self.path / 'metrics.csv'} must have {count} whole rows up to step {steps}")
        return history

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint, or was: a directory of a config alone is of a run that has learned nothing."""
        return any((self.path / name).is_file() for name in ("checkpoint.npz", "metrics.csv", "evaluations.csv"))

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
            raise ValueError(f"{self.path} has no checkpoint.npz: the run ended before its first checkpoint or lost it")
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                loaded = {name: arrays[name] for name in arrays.files}
        except Exception as error:  # zipfile, zlib, struct and NumPy each have their own
            raise ValueError(f"{path} is damaged and cannot be loaded ({error!r:.200})") from None
        for name, array in loaded.items():
            if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
                raise ValueError(f"{path} is damaged: {name} must hold finite real numbers, got {array!r:.200}")
        return loaded

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """A ``ValueError`` of what does not take the checkpoint names the checkpoint."""
        try:
            yield
        except ValueError as error:
            path = self.path / "checkpoint.npz"
            raise ValueError(str(error) if str(path) in str(error) else f"{path} cannot be used: {error}") from None

    def note(self, error: BaseException) -> None:
        """Add to an error that ends a training what is kept of it, and how to go on from there."""
        if self.begun:
            goes_on = not isinstance(error, ArithmeticError | ValueError | TypeError)
            advice = f"; go on with: npg train --resume {self.path}" if goes_on else ""
            with suppress(ValueError, KeyError):  # of a checkpoint that somebody else has damaged
                step = int(self.load()["count.steps"])
                error.add_note(f"the checkpoint of step {step} is kept in {self.path}{advice}")

    def make_env(self, allow_import: str | None = None) -> Env:
        """The environment that the run was trained on; ``make_agent`` sets the statistics of its normalisation.

        A run directory may be a stranger's: a module is imported only if it is ``allow_import``.
        """
        env = self.config["env"]
        module = env["id"].rpartition(":")[0] if env["id"] else ""
        if module and module != allow_import:
            raise ValueError(
                f"the environment of {self.path} is in the module {module!r}, which is imported and so executed only "
                f"with --allow-import {module}"
            )
        if allow_import:
            load_module(allow_import)
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
        with self.refusing():
            arrays = self.load()
            agent.load_state(prefixed(arrays, "agent."))
            load_statistics(env, prefixed(arrays, "env."))
        return agent


def _json(config: dict[str, Any]) -> str:
    try:
        # NumPy's numbers and arrays, and Gymnasium's autoreset modes
        return json.dumps(config, indent=2, default=lambda value: getattr(value, "value", None) or value.tolist())
    except AttributeError:
        raise TypeError(f"settings must be JSON-able to be kept in a run directory, got {config}") from None


def prefixed(arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
    """The arrays whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def _check_new(path: Path) -> None:
    nothing = {"lock", "config.json.tmp"}  # of a process that was killed before its run began
    if path.exists() and not (path.is_dir() and {file.name for file in path.iterdir()} <= nothing):
        raise ValueError(f"run directory {path} already exists; choose another or resume it")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else trains in a run directory within the ``with``; the lock ends with the process at the latest.

    Raises
    ------
    ValueError
        If another process, whose id it names, has the lock.
    """
    with open(path / "lock", "a+", encoding="utf-8", opener=_open_no_link) as file:
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(f"run directory {path} is being trained in by process {file.read().strip()}") from None
        except OSError as error:
            message = f"run directory {path} cannot be locked ({error.strerror}): train in it only once at a time"
            warnings.warn(message, stacklevel=4)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _open_no_link(path: str, flags: int) -> int:
    """For ``open``: a stranger's directory may hold a link to a file that is not to be written."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _lock(file: TextIO) -> None:
    """Lock a file for this process, or raise ``BlockingIOError`` where another has it."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(LOCKED)  # a byte beyond the contents, which others are to read
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from None
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _replace_rows(path: Path, lines: list[bytes]) -> None:
    if lines:
        _write(path, b"".join(lines))
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # or a link of that name would be followed
        with open(temporary, "xb") as file:
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
        "machine": {"cores": os.cpu_count()} | {name: os.environ.get(name) for name in THREADS},
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
            config["kwargs"].setdefault("max_episode_steps", env.spec.max_episode_steps)  # a vector's own is no other
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
