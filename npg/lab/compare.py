"""Methods side by side: every method on every environment from every seed, as a table and a figure.

What is compared are run directories, one for each run, DIR/METHOD/ENV/seedS. Workers train in them; all numbers are
then read from them, in the order of the runs, so that neither the workers, nor how many there are, nor which of them is
done first, nor whether they were killed on the way, changes the table. Only seconds are those of the clock.
"""

import csv
import hashlib
import json
import multiprocessing
import os
import re
import signal
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .._checks import at_least, is_integer, is_number
from .._threads import THREADS
from ..algorithms import ALGORITHMS
from ..envs import MAX_ENVS
from . import plotting
from .checks import check_fit
from .presets import preset
from .progress import Progress
from .runs import Run, describe
from .task import VECTOR_SETTINGS, Task, carry_out, end_with_parent

EPISODES = 20
"""A mean return of fewer training episodes does not count as one that has reached the threshold."""
AGAIN = "start the comparison again to go on"


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes
    ----------
    method, env : str
    values : dict
        The settings that are swept, as this run has them.
    seed : int
    score, std : float
        Mean and standard deviation of the returns of 100 episodes, played when training was done; NaN if it failed.
    steps, seconds : float
        Of the whole training.
    solved : bool or None
        Whether the score reaches the threshold; None where there is none.
    steps_to, seconds_to : float
        Of training until the mean return reached the threshold; ∞ if it never did, NaN where there is no threshold. It
        is that of the last 100 training episodes, once there are 20, and for methods that learn off-policy that of the
        evaluations.
    path : path
        The run directory.
    error : str or None
        What ended the run before its end.
    """

    method: str
    env: str
    values: dict[str, Any]
    seed: int
    score: float
    std: float
    steps: float
    seconds: float
    solved: bool | None
    steps_to: float
    seconds_to: float
    path: Path
    error: str | None

    @property
    def name(self) -> str:
        """The method, and the values of the settings that are swept."""
        return _name(self.method, self.values)


@dataclass(frozen=True)
class Summary:
    """The runs of one method on one environment, those that have not failed.

    Attributes
    ----------
    env, name : str
        The environment; the method, with the values of the settings that are swept.
    runs, finished : int
        How many runs there are, and how many of them have not failed.
    mean, half, median, worst : float
        Mean over seeds of the scores, half the width of its 95 % t interval (NaN for a single run), their median, the
        lowest.
    worst_seed : int or None
    difference, difference_half : float
        Mean over the seeds that both have of the score minus that of the first method on this environment, and half the
        width of its 95 % t interval; NaN for the first.
    solved : float
        The fraction of all runs that reach the threshold; NaN where there is none.
    steps_to, seconds_to : float
        Medians over all runs, ∞ where that is never, NaN where there is no threshold.
    """

    env: str
    name: str
    runs: int
    finished: int
    mean: float
    half: float
    median: float
    worst: float
    worst_seed: int | None
    difference: float
    difference_half: float
    solved: float
    steps_to: float
    seconds_to: float


@dataclass(frozen=True)
class Comparison:
    """What ``npg.compare`` returns; ``str`` of it is the table.

    Attributes
    ----------
    out : path
        The directory, with ``results.csv``, a row for each run, and ``compare.png``.
    results : list of Result
        One for each run: by environment, method, values of what is swept, seed.
    summaries : list of Summary
        One for each row of the table.
    thresholds : dict
        By environment, for those that have one.
    """

    out: Path
    results: list[Result]
    summaries: list[Summary]
    thresholds: dict[str, float]

    @property
    def failed(self) -> list[Result]:
        """The runs that failed."""
        return [result for result in self.results if result.error is not None]

    def __str__(self) -> str:
        return "\n\n".join(self._table(env) for env in dict.fromkeys(s.env for s in self.summaries))

    def _table(self, env: str) -> str:
        rows = [s for s in self.summaries if s.env == env]
        table = [["method", "runs", "mean", "median", "worst", f"against {rows[0].name}"]]
        for s in rows:
            worst = "–" if s.worst_seed is None else f"{s.worst:.2f} (seed {s.worst_seed})"
            difference = "–" if np.isnan(s.difference) else _interval(s.difference, s.difference_half, "+")
            table.append([s.name, f"{s.finished}/{s.runs}", _interval(s.mean, s.half), f"{s.median:.2f}", worst])
            table[-1].append(difference)
        title = env
        if env in self.thresholds:
            title += f", threshold {self.thresholds[env]:g}"
            table[0] += ["solved", "steps", "seconds"]
            for line, s in zip(table[1:], rows, strict=True):
                reached = np.isfinite(s.steps_to)
                line += [f"{s.solved * s.runs:.0f}/{s.runs}", f"{s.steps_to:,.0f}" if reached else "–"]
                line += [f"{s.seconds_to:.1f}" if reached else "–"]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in table
        ]
        return "\n".join([title, *lines])


def _interval(mean: float, half: float, sign: str = "") -> str:
    text = f"{mean:{sign}.2f}"
    return text if np.isnan(half) else f"{text} ± {half:.2f}"


def _name(method: str, values: dict[str, Any]) -> str:
    return " ".join([method, *_named(values)])


def _named(values: dict[str, Any]) -> list[str]:
    return [f"{name}={_text(value)}" for name, value in values.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def compare(
    methods: str | Iterable[str],
    envs: str | Iterable[str],
    seeds: int | Iterable[int] = 10,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    out: str | Path | None = None,
    steps: int | None = None,
    num_envs: int | None = None,
    env_settings: dict[str, Any] | None = None,
    sweep: dict[str, Sequence[Any]] | None = None,
    threshold: float | None = None,
    eval_every: int | None = None,
    deterministic: bool = True,
    progress: bool = False,
    **settings: Any,
) -> Comparison:
    """Train every method on every environment from every seed, and compare what they reach.

    Each run is the one of ``npg train METHOD ENV --seed SEED``, in a directory of its own. The same call with the same
    ``out`` goes on where one was stopped or killed, and repeats no run that is finished.

    Parameters
    ----------
    methods : str or iterable of str
        Of ``npg.ALGORITHMS``. Differences are against the first.
    envs : str or iterable of str
        Ids of environments. Every method must be able to act in each.
    seeds : int or iterable of int
        The seeds, or how many, beginning with 0.
    executor : concurrent.futures.Executor, optional
        Runs are submitted to it, in their order, and it is left open. Its workers must see the same files as this
        process. By default there are processes, started anew (spawned), with one thread for linear algebra each; a
        script then needs ``if __name__ == "__main__":``.
    workers : int, optional
        How many processes, by default as many as there are processors; for no other executor.
    out : path, optional
        Directory of the comparison. By default it is in ``runs/``, and its name is made of all arguments that change
        what is trained, but not of the seeds: with more of them only the new ones are trained.
    steps, num_envs : int, optional
        Environment steps of each run, and parallel environments (0 for one scalar environment); by default those of
        the preset, which are others for other methods.
    env_settings : dict, optional
        Of every environment.
    sweep : dict, optional
        Of settings the values to try: every method is trained with every combination of values of those that it has.
    threshold : float, optional
        The score from which an environment is solved, by default its ``reward_threshold``, if it states one.
    eval_every : int, optional
        Environment steps between evaluations during training; by default there is one at its end, and for methods that
        learn off-policy ten.
    deterministic : bool
        Evaluate by the most probable action, or by sampled ones.
    progress : bool
        Report on stderr, every few seconds.
    **settings
        Of ``npg.make_agent``, for all methods that have them.

    Returns
    -------
    Comparison
        It has also been written to ``out``: ``results.csv`` and, with matplotlib, ``compare.png``, learning curves, or
        the scores against the values of what is swept. A run that fails is in it with its error.

    Raises
    ------
    ValueError, TypeError
        Before any run begins: for bad arguments, pairs of a method and an environment that do not fit each other, all
        of which are named, and run directories that were made with other settings.
    """
    names, ids = _words("methods", methods), _words("envs", envs)
    numbers, grid, shared = _seeds(seeds), _grid(sweep or {}), dict(env_settings or {})
    _check_settings(names, settings, grid, shared)
    for name, value, least, most in (
        ("steps", steps, 1, None),
        ("num_envs", num_envs, 0, MAX_ENVS),
        ("eval_every", eval_every, 1, None),
        ("workers", workers, 1, None),
    ):
        if value is not None:
            at_least(name, value, least, most)
    if threshold is not None and not is_number(threshold):
        raise ValueError(f"threshold must be a number, got {threshold!r}")
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {executor!r}")
    if executor is not None and workers is not None:
        raise ValueError(f"workers must be left out where an executor is given, got {workers}")
    trained = [steps, num_envs, shared, grid, eval_every, deterministic, settings]
    out = Path("runs") / _directory(names, ids, trained) if out is None else Path(out)

    tasks = []
    for env, method in product(ids, names):
        default = preset(method, env)
        n = default.steps if steps is None else steps
        often = max(n // 10, 1) if ALGORITHMS[method].off_policy else n
        how: dict[str, Any] = {
            "steps": n,
            "num_envs": default.num_envs if num_envs is None else num_envs,
            "settings": {name: value for name, value in settings.items() if _has(method, name)},
            "env_settings": default.env_settings | shared,
            "eval_every": often if eval_every is None else eval_every,
            "deterministic": bool(deterministic),
        }
        own = {name: values for name, values in grid.items() if _has(method, name)}
        for combination in product(*own.values()):
            values = dict(zip(own, combination, strict=True))
            folder = out.joinpath(method, *(_file(word) for word in (env, *_named(values))))
            tasks += [Task(method, env, seed, values=values, path=folder / f"seed{seed}", **how) for seed in numbers]
    if len({task.path for task in tasks}) < len(tasks):
        raise ValueError(f"values of a sweep must have names that differ as those of files, got {sweep}")
    thresholds, finished = _check_runs(tasks)
    if threshold is not None:
        thresholds = dict.fromkeys(ids, float(threshold))
    out.mkdir(parents=True, exist_ok=True)
    errors = _train(tasks, finished, executor, workers, progress, out)
    results = [_result(task, thresholds.get(task.env), error) for task, error in zip(tasks, errors, strict=True)]
    comparison = Comparison(out, results, _summaries(results), thresholds)
    _write(comparison, list(grid))
    return comparison


def _words(name: str, given: str | Iterable[str]) -> list[str]:
    words = [given] if isinstance(given, str) else list(given)
    if not words or not all(isinstance(word, str) for word in words) or len({*words}) < len(words):
        raise ValueError(f"{name} must be one or several names, each of them once, got {words}")
    for word in words if name == "methods" else []:
        preset(word, None)
    return words


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    if not isinstance(seeds, Iterable):
        at_least("seeds", seeds, 1)
        return list(range(seeds))
    numbers = list(seeds)
    if not numbers or not all(is_integer(seed, 0) for seed in numbers) or len({*numbers}) < len(numbers):
        raise ValueError(f"seeds must be integers of at least 0, each of them once, got {numbers}")
    return [int(seed) for seed in numbers]


def _grid(sweep: dict[str, Sequence[Any]]) -> dict[str, list[Any]]:
    for name, values in sweep.items():
        if isinstance(values, str) or not list(values):
            raise ValueError(f"the sweep of {name} must be one or several values, got {values!r}")
    return {name: list(values) for name, values in sweep.items()}


def _check_settings(
    methods: list[str], settings: dict[str, Any], grid: dict[str, list[Any]], env_settings: dict[str, Any]
) -> None:
    both = settings.keys() & grid.keys()
    if both:
        raise ValueError(f"a setting must have one value or be swept, got both for {', '.join(both)}")
    for name in [*settings, *grid]:
        if not any(_has(method, name) for method in methods):
            known = ", ".join(dict.fromkeys(f.name for m in methods for f in fields(ALGORITHMS[m]) if f.metadata))
            raise ValueError(f"no method has the setting {name!r}; among them they have {known}")
    vector = env_settings.keys() & VECTOR_SETTINGS
    if vector:
        raise ValueError(f"env_settings must be of one environment, got {', '.join(vector)}; num_envs says how many")


def _has(method: str, setting: str) -> bool:
    own = {f.name for f in fields(ALGORITHMS[method]) if f.metadata}
    return setting in own | {"features", "scale_features", "scale"}


def _file(name: str) -> str:
    return re.sub(r"[^\w.,=+-]", "_", name)


def _directory(methods: list[str], envs: list[str], trained: list[Any]) -> str:
    digest = hashlib.sha256(json.dumps([methods, envs, trained], default=repr).encode()).hexdigest()
    return f"compare-{'-'.join(map(_file, methods + envs))[:80]}-{digest[:8]}"


def _check_runs(tasks: list[Task]) -> tuple[dict[str, float], list[bool]]:
    """The thresholds that environments state, and which runs are finished; or raise before anything is trained."""
    thresholds: dict[str, float] = {}
    finished: list[bool] = []
    unfit: dict[tuple[str, str], str] = {}
    described: dict[str, Any] = {}
    before = None
    for task in tasks:
        if task.path.parent != before:  # the first seed
            before = task.path.parent
            env = task.make_env()
            try:
                agent = task.make_agent(env)
                check_fit(agent, env)
                described = describe(agent, env)
            except (ValueError, TypeError) as error:
                unfit.setdefault((task.method, task.env), f"{task.method} on {task.env}: {error}")
            if env.spec is not None and env.spec.reward_threshold is not None:
                thresholds[task.env] = float(env.spec.reward_threshold)
            env.close()
        if (task.method, task.env) not in unfit:
            finished.append(_is_finished(task, described))
    if unfit:
        raise ValueError("; ".join(unfit.values()))
    return thresholds, finished


def _is_finished(task: Task, described: dict[str, Any]) -> bool:
    if not (task.path / "config.json").is_file():
        return False
    run = Run(task.path)
    for name in ("steps", "eval_every", "deterministic"):
        new, old = getattr(task, name), run.config[name]
        if new != old:
            raise ValueError(f"{name} must be {old!r} to go on with {run.path}, as it began, got {new!r}")
    run.check_same(run.config | {"seed": task.seed} | {name: described[name] for name in ("agent", "env")})
    return run.begun and bool(run.load()["count.steps"] >= task.steps)


def _train(
    tasks: list[Task],
    finished: list[bool],
    executor: Executor | None,
    workers: int | None,
    progress: bool,
    out: Path,
) -> list[str | None]:
    """Carry out what is not finished; of each run its error, if it failed."""
    errors: list[str | None] = [None] * len(tasks)
    todo = [i for i, done in enumerate(finished) if not done]
    done: list[int] = []
    started = time.monotonic()

    def now() -> tuple[int, str]:
        ended = list(done)
        failed = [tasks[i].path.relative_to(out) for i in ended if errors[i] is not None]
        words = f"{len(failed)} failed" + (f", the last {failed[-1]}" if failed else "")
        steps, total = (sum(tasks[i].steps for i in which) for which in (ended, todo))
        if 0 < steps < total:
            words += f", about {(time.monotonic() - started) * (total / steps - 1):.0f} s left"
        return len(tasks) - len(todo) + len(ended), words

    with ExitStack() as stack:
        if progress:
            stack.enter_context(Progress(len(tasks), now, "run"))
        if not todo:
            return errors
        own = executor is None
        if executor is None:
            executor = stack.enter_context(_processes(min(workers or os.cpu_count() or 1, len(todo))))
        futures = {}
        try:
            with _interrupts_held() if own else nullcontext():
                for i in todo:
                    task = replace(tasks[i], path=tasks[i].path.absolute())  # workers may be in another directory
                    futures[executor.submit(carry_out, task)] = i
            for future in as_completed(futures):
                try:
                    errors[futures[future]] = future.result()
                except (Exception, SystemExit) as error:  # of the executor, or of a worker that was told to end
                    errors[futures[future]] = f"{type(error).__name__}: {error}; {AGAIN}"
                done.append(futures[future])
        except BaseException as error:
            for future in futures if not own else ():  # of our own processes they end with these
                future.cancel()
            error.add_note(f"{now()[0]} of {len(tasks)} runs are done in {out}; {AGAIN}")
            raise
    return errors


@contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    """A pool of spawned processes with one thread for linear algebra each; an error ends what they are doing."""
    threads = {name: os.environ.get(name) for name in THREADS}
    others = {*multiprocessing.active_children()}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # inherited; NumPy may be imported before any initializer is called
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    try:
        yield pool
    except BaseException:
        for process in {*multiprocessing.active_children()} - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in threads.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C comes after the ``with``, and never to the processes that are started within."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result(task: Task, threshold: float | None, error: str | None) -> Result:
    nan = float("nan")
    score, std, steps, seconds, solved = nan, nan, nan, nan, None if threshold is None else False
    reached = (nan, nan) if threshold is None else (np.inf, np.inf)
    if error is None:
        run = Run(task.path)
        rows, evaluations = run.rows(), run.rows("evaluations")
        score, std = evaluations[-1]["mean"], evaluations[-1]["std"]
        steps, seconds = rows[-1]["steps"], rows[-1]["seconds"]
        if threshold is not None:
            solved = score >= threshold
            if ALGORITHMS[task.method].off_policy:
                crossed = (row["steps"] for row in evaluations if row["mean"] >= threshold)
            else:
                many = (row for row in rows if row["window"] >= EPISODES)
                crossed = (row["steps"] for row in many if row["mean_return"] >= threshold)
            first = next(crossed, np.inf)
            reached = first, next((row["seconds"] for row in rows if row["steps"] >= first), np.inf)
    measured = score, std, steps, seconds, solved, *reached
    return Result(task.method, task.env, task.values, task.seed, *measured, task.path, error)


def _summaries(results: list[Result]) -> list[Summary]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.env, result.name), []).append(result)
    firsts: dict[str, dict[int, float]] = {}
    summaries = []
    for (env, name), group in groups.items():
        scores = {r.seed: r.score for r in group if r.error is None}
        values = np.array([*scores.values()])
        worst = min(scores, key=lambda seed: scores[seed], default=None)
        first = firsts.setdefault(env, scores)
        shared = [seed for seed in scores if seed in first and first is not scores]
        difference = _mean_and_half(np.array([scores[seed] - first[seed] for seed in shared]))
        solved = [np.nan if r.solved is None else float(r.solved) for r in group]
        summary = Summary(
            env,
            name,
            len(group),
            len(scores),
            *_mean_and_half(values),
            float(np.median(values)) if len(values) else np.nan,
            np.nan if worst is None else scores[worst],
            worst,
            *difference,
            float(np.mean(solved)),
            float(np.median([r.steps_to for r in group])),
            float(np.median([r.seconds_to for r in group])),
        )
        summaries.append(summary)
    return summaries


def _mean_and_half(scores: Any) -> tuple[float, float]:
    if len(scores) < 2:
        return (float(scores[0]) if len(scores) else np.nan), np.nan
    mean, half = plotting.mean_and_interval(scores)
    return float(mean), float(half)


def _write(comparison: Comparison, swept: list[str]) -> None:
    """``results.csv`` and ``compare.png``."""
    out = comparison.out
    with open(out / "results.csv", "w", newline="", encoding="utf-8") as file:
        others = [f.name for f in fields(Result) if f.name not in ("method", "env", "values")]
        writer = csv.DictWriter(file, ["method", "env", *swept, *others])
        writer.writeheader()
        for result in comparison.results:
            row = asdict(result)
            values = {name: _text(value) for name, value in row.pop("values").items()}
            writer.writerow(row | values)
    try:
        if swept:
            plotting.sensitivity(_sensitivity(comparison, swept), out / "compare.png")
        else:
            envs = dict.fromkeys(result.env for result in comparison.results)
            runs = {env: [Run(r.path) for r in comparison.results if r.env == env and r.error is None] for env in envs}
            plotting.comparison(runs, comparison.thresholds, out / "compare.png")
    except ImportError as error:
        warnings.warn(f"there is no compare.png: {error}", stacklevel=3)


def _sensitivity(
    comparison: Comparison, swept: list[str]
) -> dict[tuple[str, str], dict[str, list[tuple[Any, float, float]]]]:
    """Of each environment and setting, a curve for each method and values of the other settings."""
    summaries = {(s.env, s.name): s for s in comparison.summaries}
    firsts = {(r.env, r.name): r for r in reversed(comparison.results)}
    panels: dict[tuple[str, str], dict[str, list[tuple[Any, float, float]]]] = {}
    for env in dict.fromkeys(s.env for s in comparison.summaries):
        for setting in swept:
            curves = panels.setdefault((env, setting), {})
            for key, s in summaries.items():
                values = dict(firsts[key].values)
                if s.env == env and setting in values and s.finished:
                    value = values.pop(setting)
                    curves.setdefault(_name(firsts[key].method, values), []).append((value, s.mean, s.half))
    return panels
