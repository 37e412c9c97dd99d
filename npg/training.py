"""The one training loop, evaluation, and run directories.

The loop is the same for every method: collect what the agent asks for, let it update, at every record check that
all is finite and report, and save a checkpoint from where the run can go on exactly. A run directory holds
``config.json``, ``metrics.csv`` and ``checkpoint.npz``; a run that is killed at any moment and resumed ends with the
same arrays as one that is not.
"""

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import scipy
from gymnasium.vector import VectorEnv, VectorWrapper

from . import __version__
from ._checks import at_least
from ._typing import Array
from .algorithms import Agent
from .envs import make_env, make_vec, normalized
from .presets import make_agent
from .rollout import Collector, DivergenceError, Env, Episodes, Steps, normalizers

Row = dict[str, float]
Callback = Callable[[Row], None]
ADVICE = "lower the step size, or scale the observations or the rewards"


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
        return make_agent(env=env, **self.config["agent"])

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

    def saved_steps(self) -> int:
        """Environment steps at the checkpoint."""
        with np.load(self.path / "checkpoint.npz", allow_pickle=False) as arrays:
            return int(arrays["count.steps"])

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
        agent.init(np.random.default_rng(0))
        arrays = self.load()
        agent.load_state(_prefixed(arrays, "agent."))
        _load_statistics(env, _prefixed(arrays, "env."))
        return agent


def _json(config: dict[str, Any]) -> str:
    try:
        return json.dumps(config, indent=2, default=lambda value: value.tolist())  # NumPy's numbers and arrays
    except AttributeError:
        raise TypeError(f"settings must be JSON-able to be kept in a run directory, got {config}") from None


def _prefixed(arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
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


def _where_statistics_are(env: Env) -> dict[str, tuple[Any, str]]:
    """Owner and attribute of all that the ``normalizers`` of ``env`` have gathered, by dotted name."""
    found: dict[str, tuple[Any, str]] = {}
    for name, wrapper in normalizers(env).items():
        running = wrapper.obs_rms if name == "observation" else wrapper.return_rms
        found |= {f"{name}.{attribute}": (running, attribute) for attribute in ("mean", "var", "count")}
        if name == "reward":
            attribute = "accumulated_reward" if isinstance(wrapper, VectorEnv) else "discounted_reward"
            found["reward.accumulated"] = wrapper, attribute
    return found


def _statistics(env: Env) -> dict[str, Array]:
    return {name: np.array(getattr(*where)) for name, where in _where_statistics_are(env).items()}


def _load_statistics(env: Env, statistics: dict[str, Array]) -> None:
    own = {name: array.shape for name, array in _statistics(env).items()}
    given = {name: array.shape for name, array in statistics.items()}
    if own != given:
        raise ValueError(f"env must be normalised by statistics of shapes {given}, as in training, got {own}")
    for name, where in _where_statistics_are(env).items():
        setattr(*where, statistics[name])


def _begin_statistics(env: Env) -> None:
    # As Gymnasium begins them, but in float64 whatever the observations are.
    initial = {"mean": 0.0, "var": 1.0, "count": 1e-4, "accumulated": 0.0}
    shapes = {name: array.shape for name, array in _statistics(env).items()}
    _load_statistics(env, {name: np.full(shape, initial[name.partition(".")[2]]) for name, shape in shapes.items()})


@contextmanager
def _frozen_statistics(env: Env) -> Iterator[None]:
    wrappers, before = normalizers(env).values(), _statistics(env)
    updated = [wrapper.update_running_mean for wrapper in wrappers]
    try:
        for wrapper in wrappers:
            wrapper.update_running_mean = False
        yield
    finally:
        for wrapper, update in zip(wrappers, updated, strict=True):
            wrapper.update_running_mean = update
        _load_statistics(env, before)  # the discounted sum of rewards goes on even where the rest is frozen


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


def _row(counts: dict[str, int], finished: list[tuple[float, int]], seconds: float, diagnostics: Row) -> Row:
    mean_return, mean_length = np.mean(finished, axis=0) if finished else (np.nan, np.nan)
    row: dict[str, Any] = {name: counts[name] for name in ("steps", "updates", "episodes")}
    row |= {"mean_return": mean_return, "mean_length": mean_length, "seconds": seconds} | diagnostics
    return {name: float(value) for name, value in row.items()}


def train(
    agent: Agent,
    env: Env,
    *,
    steps: int,
    seed: int = 0,
    out: str | Path | None = None,
    callback: Callback | None = None,
    record_every: int | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> History:
    """Train ``agent`` on ``env``.

    Parameters
    ----------
    agent : Agent
        Initialised here from ``seed``.
    env : gymnasium.Env or gymnasium.vector.VectorEnv
        The statistics of its normalisation (``npg.envs.normalized``), if there is one, begin anew.
    steps : int
        Environment steps, summed over parallel environments; the last collection may go beyond.
    seed : int
        All randomness comes from it: the same seed gives the same arrays.
    out : path, optional
        Run directory, new or (``resume=True``) an old one.
    callback : callable, optional
        Called with each record.
    record_every : int, optional
        Environment steps between records, ``steps`` / 50 by default.
    checkpoint_every : int, optional
        Environment steps between checkpoints of a ``Steps`` agent, at the next record, and at the end. Its episodes
        are cut there, as if by a time limit, so that the run can be resumed exactly; 2000 steps of each environment
        by default. An ``Episodes`` agent has a checkpoint at each record.
    resume : bool
        Go on from the checkpoint in ``out``, as if it had never stopped. More ``steps`` than before are allowed.

    Returns
    -------
    History

    Raises
    ------
    ValueError, TypeError
        For bad arguments, and where the environment returns something that is not finite.
    DivergenceError
        When anything learned is not finite at a record; such a state is never saved.

    Any exception that ends the training, KeyboardInterrupt among them, has the attribute ``history``; the last
    checkpoint stays on disk, to be resumed.
    """
    at_least("steps", steps, 1)
    at_least("seed", seed, 0)
    run = None
    if resume:
        if out is None:
            raise ValueError("resume=True needs out, the run directory, got None")
        run = Run(out)
        record_every = run.config["record_every"] if record_every is None else record_every
        checkpoint_every = run.config["checkpoint_every"] if checkpoint_every is None else checkpoint_every
    collector = Collector(env, int(seed))
    columns = getattr(agent, "columns", collector.n_columns)
    if columns != collector.n_columns:
        raise ValueError(f"columns must be {collector.n_columns}, the number of parallel environments, got {columns}")
    record_every = max(steps // 50, 1) if record_every is None else record_every
    checkpoint_every = 2000 * collector.n_columns if checkpoint_every is None else checkpoint_every
    at_least("record_every", record_every, 1)
    at_least("checkpoint_every", checkpoint_every, 1)
    rng_init, rng_act, rng_update = (
        np.random.default_rng(np.random.SeedSequence(int(seed), spawn_key=(purpose,))) for purpose in (1, 2, 3)
    )
    generators = {"act": rng_act.bit_generator, "update": rng_update.bit_generator}
    counts = dict.fromkeys(("steps", "updates", "episodes", "records", "resets"), 0)
    counts |= {"record": record_every, "checkpoint": checkpoint_every}  # when the next ones are due
    history = History([])
    agent.init(rng_init)
    _begin_statistics(env)
    seconds = 0.0

    def checkpoint(state: dict[str, Array]) -> None:
        if run:
            arrays = {f"agent.{name}": a for name, a in state.items()}
            arrays |= {f"env.{name}": a for name, a in _statistics(env).items()}
            arrays |= {f"count.{name}": np.array(n) for name, n in counts.items()}
            states = {name: generator.state for name, generator in generators.items()}
            run.save(arrays | {"rng": np.array(json.dumps(states))})

    if out is not None:
        config = {
            "seed": seed,
            "steps": steps,
            "record_every": record_every,
            "checkpoint_every": checkpoint_every,
            "env": _env_config(env),
            "agent": agent.config,
            "rebuildable": _is_rebuildable(agent, env),
            "versions": _versions(),
        }
    if run:
        run.check_same(config)
        arrays = run.load()
        agent.load_state(_prefixed(arrays, "agent."))
        _load_statistics(env, _prefixed(arrays, "env."))
        counts = {name: int(n) for name, n in _prefixed(arrays, "count.").items()}
        for name, state in json.loads(str(arrays["rng"])).items():
            generators[name].state = state
        collector.resets = counts["resets"]
        history.rows = run.keep_rows(counts["records"])
        if steps > run.config["steps"]:
            _write(run.path / "config.json", _json(run.config | {"steps": steps}).encode())
        seconds = history.rows[-1]["seconds"] if history.rows else 0.0
    elif out is not None:
        run = Run.create(out, config)

    started = time.perf_counter() - seconds
    try:
        if not resume:
            checkpoint(agent.state())
        with np.errstate(all="ignore"):  # what overflows is found at the next record
            while counts["steps"] < steps:
                request, due = agent.collect, min(counts["record"], steps)
                online = isinstance(request, Steps)
                reach = counts["steps"] + online * request.n * collector.n_columns
                # A collection may be longer than the distance of records.
                save = not online or max(due, reach) >= min(counts["checkpoint"], steps)
                cut = online and save and reach >= due
                try:
                    traj = collector.collect(agent, request, rng_act, cut=cut)
                    diagnostics = agent.update(traj, rng_update)
                except (DivergenceError, FloatingPointError) as error:
                    raise DivergenceError(f"{error}, at step {counts['steps']}; {ADVICE}") from None
                counts["steps"] += int(np.count_nonzero(traj.valid))
                counts["updates"] += 1
                if not (cut or counts["steps"] >= due):
                    continue
                state = agent.state()
                _check_finite(state | _statistics(env), counts["steps"], diagnostics)
                counts["episodes"] += len(collector.finished)
                row = _row(counts, collector.finished, time.perf_counter() - started, diagnostics)
                history.rows.append(row)
                collector.finished = []
                counts["records"] += 1
                counts["resets"] = collector.resets
                for name, every in (("record", record_every), ("checkpoint", checkpoint_every if save else 0)):
                    while every and counts[name] <= max(counts["steps"], due):
                        counts[name] += every
                if run:
                    run.append(row)
                if save:
                    checkpoint(state)
                if callback:
                    callback(row)
    except BaseException as error:
        error.history = history  # type: ignore[attr-defined]
        if run and (run.path / "checkpoint.npz").is_file():
            advice = (
                ""
                if isinstance(error, DivergenceError | ValueError | TypeError)
                else f"; go on with: npg train --resume {run.path}"
            )
            error.add_note(f"the checkpoint of step {run.saved_steps()} is kept in {run.path}{advice}")
        raise
    return history


def _is_rebuildable(agent: Agent, env: Env) -> bool:
    try:
        return make_agent(env=env, **agent.config) == agent
    except (ValueError, TypeError):
        return False


def _check_finite(state: dict[str, Array], step: int, diagnostics: Row) -> None:
    for name, array in state.items():
        if not np.isfinite(array).all():
            shown = ", ".join(f"{k} {v:.4g}" for k, v in diagnostics.items())
            raise DivergenceError(f"{name} is no longer finite at step {step} ({shown}); {ADVICE}")


def evaluate(agent: Agent, env: Env, episodes: int = 100, seed: int = 0, deterministic: bool = True) -> Array:
    """Undiscounted returns of whole episodes; nothing is learned.

    An environment that normalises does it by the statistics that it has, and has the same ones afterwards; the
    returns are those of the rewards before they are normalised.

    Parameters
    ----------
    agent : Agent
    env : gymnasium.Env or gymnasium.vector.VectorEnv
    episodes : int
        At least 1; each column of a vector environment plays the same number.
    seed : int
        The episodes are others than ``train`` sees with the same seed.
    deterministic : bool
        The most probable action, or sampled ones.

    Returns
    -------
    (episodes,)
    """
    at_least("episodes", episodes, 1)
    at_least("seed", seed, 0)
    sequence = np.random.SeedSequence(seed, spawn_key=(4,))
    collector = Collector(env, int(sequence.generate_state(1, np.uint64)[0]))
    rng = np.random.default_rng(sequence)
    with _frozen_statistics(env):
        traj = collector.collect(agent, Episodes(episodes), rng, explore=not deterministic)
    returns: Array = collector.raw(traj.episode_returns()[:episodes])
    return returns
