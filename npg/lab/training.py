"""The one loop, training on top of it, and evaluation.

The loop is the same for every method: collect what the agent asks for, let it update. Training checks at every record
that all is finite and reports, and saves a checkpoint from where the run can go on exactly: a run that is killed at any
moment and resumed ends with the same arrays as one that is not.
"""

import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from .._checks import at_least
from .._state import check_alike, packed, unpack
from .._typing import Array, Rng
from ..algorithms import Agent
from ..envs.spaces import Env
from ..trajectories import DivergenceError, Episodes, Steps
from .checks import check_fit
from .collect import Collector
from .progress import Progress
from .runs import History, Row, Run, describe, locked, prefixed
from .statistics import begin_statistics, frozen_statistics, load_statistics, share_statistics, statistics

Callback = Callable[[Row], None]
WINDOW = 100
"""The mean return is that of so many episodes."""
MAX_EPISODES = 1_000_000
SAVE_SECONDS = 30
"""A checkpoint is saved after so many seconds, even without a record."""
ADVICE = "lower the step size, or scale the observations or the rewards"


def updates(
    agent: Agent,
    collector: Collector,
    rng_act: Rng,
    rng_update: Rng,
    steps: int = 0,
    cut: Callable[[Steps | Episodes], bool] = lambda request: False,
) -> Iterator[tuple[int, Row]]:
    """The loop, for ever: collect what the agent asks for, and let it learn from that.

    Parameters
    ----------
    agent : Agent
        Initialised.
    collector : Collector
    rng_act, rng_update : numpy.random.Generator
        For the agent's actions and for its updates.
    steps : int
        Environment steps so far.
    cut : callable
        Called with what is about to be collected: whether ``Collector.collect`` is to cut episodes at its end.

    Yields
    ------
    steps : int
        Environment steps after an update, summed over parallel environments.
    diagnostics : dict
        What the update returned.

    Raises
    ------
    DivergenceError
        If an update or an action meets numbers that are not finite.
    """
    diagnostics: Row = {}
    while True:
        request = agent.collect
        try:
            traj = collector.collect(agent, request, rng_act, cut=cut(request))
            n = int(np.count_nonzero(traj.valid))  # of reset steps alone there is nothing to learn
            diagnostics = agent.update(traj, rng_update) if n else dict.fromkeys(diagnostics, 0.0)
            if not isinstance(diagnostics, dict):
                raise TypeError(f"{type(agent).__name__}.update must return a dict of diagnostics, got {diagnostics!r}")
        except (DivergenceError, FloatingPointError) as error:
            raise DivergenceError(f"{error}, at step {steps}; {ADVICE}") from None
        steps += n
        yield steps, diagnostics


class _Progress:
    """Where a run is: what its agent, environment and generators hold, and when the next record and checkpoint are."""

    def __init__(self, agent: Agent, collector: Collector, steps: int, seed: int, every: dict[str, int | None]) -> None:
        self.agent, self.collector, self.env, self.steps = agent, collector, collector.env, steps
        columns = collector.n_columns
        defaults = {"record": max(steps // 50, 1), "checkpoint": 2000 * columns}
        self.every: dict[str, int] = {name: defaults[name] if n is None else n for name, n in every.items()}
        for name, n in self.every.items():
            at_least(f"{name}_every", n, 1)
        self.counts = dict.fromkeys(("steps", "updates", "episodes", "records"), 0) | self.every
        self.window: list[tuple[float, int]] = []
        rng_init, self.rng_act, self.rng_update = (
            np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,))) for purpose in (1, 2, 3)
        )
        agent.init(rng_init, columns)
        begin_statistics(self.env)
        self.saves = self.cuts = False
        self.started = time.perf_counter()

    def state(self) -> dict[str, Array]:
        """Copies of all that is learned, of the agent and of the environment's normalisation."""
        arrays = {f"agent.{name}": a for name, a in self.agent.state().items()}
        return arrays | {f"env.{name}": a for name, a in statistics(self.env).items()}

    def checkpoint(self) -> dict[str, Array]:
        """``state``, and all else that the run goes on from."""
        arrays = {f"count.{name}": np.array(n) for name, n in self.counts.items()}
        arrays |= {f"rng.{name}": packed(rng) for name, rng in self._generators.items()}
        arrays |= {f"collector.{name}": a for name, a in self.collector.state().items()}
        return self.state() | arrays | {"window": np.array(self.window, dtype=float).reshape(-1, 2)}

    def load(self, arrays: dict[str, Array]) -> None:
        """Take back a ``checkpoint``."""
        self.agent.load_state(prefixed(arrays, "agent."))
        load_statistics(self.env, prefixed(arrays, "env."))
        counts, own = prefixed(arrays, "count."), {name: np.array(n) for name, n in self.counts.items()}
        check_alike("the counts of the checkpoint", own, counts)
        self.counts = {name: int(n) for name, n in counts.items()}
        self._check_counts()
        episodes = min(self.counts["episodes"], WINDOW)
        check_alike(
            "the checkpoint", {"window": np.zeros((episodes, 2))}, {"window": arrays.get("window", np.zeros(0))}
        )
        self.window = [(float(total), int(t)) for total, t in arrays["window"]]
        if any(t < 1 for _, t in self.window) or not np.array_equal(
            arrays["window"][:, 1].round(), arrays["window"][:, 1]
        ):
            raise ValueError(f"the window must hold returns and lengths of episodes, got {arrays['window']}")
        own = {name: packed(rng) for name, rng in self._generators.items()}
        check_alike("the generators of the checkpoint", own, prefixed(arrays, "rng."))
        for name, rng in self._generators.items():
            unpack(rng, arrays[f"rng.{name}"])
        self.collector.load_state(prefixed(arrays, "collector."))

    def _check_counts(self) -> None:
        counts, request = self.counts, self.agent.collect
        # A record that is cut may come before its mark, by as many reset steps as there are in a collection.
        beyond = counts["steps"] + (request.n * self.collector.n_columns if isinstance(request, Steps) else 0)
        agree = [min(counts.values()) >= 0, counts["records"] <= counts["updates"], counts["record"] > counts["steps"]]
        agree += [counts["updates"] <= 2 * counts["steps"] + 1, counts["episodes"] <= counts["steps"]]
        agree += [counts[name] % n == 0 and counts[name] <= beyond + n for name, n in self.every.items()]
        if not all(agree):
            raise ValueError(f"the counts of the checkpoint must be at least 0 and agree, got {counts}")

    @property
    def _generators(self) -> dict[str, Rng]:
        return {"act": self.rng_act, "update": self.rng_update}

    def cut(self, request: Steps | Episodes) -> bool:
        """Whether the next collection is to cut the episodes at its end, because no checkpoint could hold them."""
        counts, online = self.counts, isinstance(request, Steps)
        due = self.due = min(counts["record"], self.steps)
        reach = counts["steps"] + online * request.n * self.collector.n_columns
        # A collection may be longer than the distance of records.
        self.saves = not online or max(due, reach) >= min(counts["checkpoint"], self.steps)
        self.cuts = online and reach >= due and self.saves and not self.collector.restorable
        return self.cuts

    def updates(self) -> Iterator[tuple[Row, bool]]:
        """The loop until the run has its steps: the diagnostics of each update, and whether a record is due."""
        counts = self.counts
        if counts["steps"] >= self.steps:
            return
        for steps, diagnostics in updates(
            self.agent, self.collector, self.rng_act, self.rng_update, counts["steps"], self.cut
        ):
            counts["steps"] = steps
            counts["updates"] += 1
            yield diagnostics, self.cuts or steps >= self.due
            if steps >= self.steps:
                return

    def record(self, diagnostics: Row) -> Row:
        """The record of now. The next one, and the next checkpoint where this one is saved, are due later."""
        counts, steps = self.counts, max(self.counts["steps"], self.due)
        counts["episodes"] += len(self.collector.finished)
        counts["records"] += 1
        self.window = (self.window + self.collector.finished)[-WINDOW:]
        self.collector.finished = []
        for name in ("record", "checkpoint") if self.saves else ("record",):
            counts[name] = max(counts[name], self.every[name] * (steps // self.every[name] + 1))
        mean_return, mean_length = np.mean(self.window, axis=0) if self.window else (np.nan, np.nan)
        row: dict[str, Any] = {name: counts[name] for name in ("steps", "updates", "episodes")}
        row |= {"mean_return": mean_return, "mean_length": mean_length, "window": len(self.window)}
        row["seconds"] = time.perf_counter() - self.started
        return {name: float(value) for name, value in (row | diagnostics).items()}

    def now(self) -> tuple[int, str]:
        """The steps so far, and in words how it goes."""
        latest = (self.window + self.collector.finished)[-WINDOW:]
        score = (
            f"mean {np.mean([total for total, _ in latest]):.1f} of {len(latest)} episodes"
            if latest
            else "no episode yet"
        )
        return self.counts["steps"], score


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
    eval_env: Env | None = None,
    eval_every: int | None = None,
    deterministic: bool | None = None,
    progress: bool = False,
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
        Called with each record. What it does with ``env``, such as ``npg.evaluate``, does not change what is learned.
    record_every : int, optional
        Environment steps between records, ``steps`` / 50 by default.
    checkpoint_every : int, optional
        Environment steps between checkpoints, at the next record, and at the end; 2000 steps of each environment by
        default. An ``Episodes`` agent has one at each record. There is one every 30 seconds too, and one before Ctrl-C
        or SIGTERM ends the run, after the update in hand; a second Ctrl-C ends it at once. A ``Steps`` agent on an
        environment whose state cannot be saved (``AsyncVectorEnv``, vector environments and vector wrappers of others)
        has only the former, and its episodes are cut there, as if by a time limit; a warning says so.
    eval_env : gymnasium.Env or gymnasium.vector.VectorEnv, optional
        Where to evaluate during training; ``env`` by default. It must normalise what ``env`` does.
    eval_every : int, optional
        Environment steps between evaluations of 100 episodes, each of the same ones, and one at the end; none by
        default, or ``steps`` / 10 if there is an ``eval_env``. They do not change what is learned.
    deterministic : bool, optional
        Evaluate by the most probable action, as by default, or by sampled ones.
    progress : bool
        Report on stderr, every few seconds.
    resume : bool
        Go on from the checkpoint in ``out``, as if it had never stopped, with evaluations as before unless others are
        asked for. More ``steps`` than before are allowed.

    Returns
    -------
    History

    Raises
    ------
    ValueError, TypeError
        For bad arguments, an agent that does not fit the environment, and where the environment returns something that
        is not finite.
    DivergenceError
        When anything learned is not finite at a record; such a state is never saved.

    Any exception that ends the training, KeyboardInterrupt among them, has the attribute ``history``; the last
    checkpoint stays on disk, to be resumed.
    """
    check_fit(agent, env)
    at_least("steps", steps, 1)
    at_least("seed", seed, 0)
    if resume and out is None:
        raise ValueError("resume=True needs out, the run directory, got None")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of a record, got {callback!r}")
    run = Run(out) if resume and out is not None else None
    every = {"record": record_every, "checkpoint": checkpoint_every}
    if run:
        every = {name: run.config[f"{name}_every"] if n is None else n for name, n in every.items()}
        eval_every = run.config["eval_every"] if eval_every is None else eval_every
        began = run.config["deterministic"]
        if eval_every is not None and deterministic not in (None, began):
            raise ValueError(f"deterministic must be {began}, as the evaluations began, got {deterministic}")
        deterministic = began if deterministic is None else deterministic
    deterministic = deterministic is not False
    if eval_env is not None:
        check_fit(agent, eval_env, "eval_env")
        eval_every = max(steps // 10, 1) if eval_every is None else eval_every
    if eval_every is not None:
        at_least("eval_every", eval_every, 1)
    described = describe(agent, env) if out is not None else {}
    with ExitStack() as stack:
        collector = stack.enter_context(Collector(env, int(seed)))
        state, history = _Progress(agent, collector, steps, int(seed), every), History([])
        exact = collector.restorable or isinstance(agent.collect, Episodes)
        config = {"seed": seed, "steps": steps} | {f"{name}_every": n for name, n in state.every.items()} | described
        config |= {"eval_every": eval_every, "deterministic": deterministic}
        if eval_every is not None and eval_env is None and not exact:
            raise ValueError(f"eval_env must be given, because the state of {env} cannot be saved while it evaluates")
        if eval_env is not None:
            share_statistics(env, eval_env)
        if not exact:
            warnings.warn(
                f"episodes are cut every {state.every['checkpoint']} steps, as if by a time limit, because the state "
                f"of {env} cannot be saved",
                stacklevel=2,
            )
        if run:
            stack.enter_context(locked(run.path))
            run = Run(run.path)  # as it is now
            run.check_same(config)
            if run.begun:
                with run.refusing():
                    state.load(run.load())
            history = run.keep_rows(state.counts["records"], state.counts["steps"])
            state.started -= history.rows[-1]["seconds"] if history.rows else 0.0
            run.extend(steps)
        elif out is not None:
            run = stack.enter_context(Run.create(out, config))
        signals = stack.enter_context(_deferred_signals(progress)) if run and exact else []
        if progress:
            stack.enter_context(Progress(steps, state.now))
        try:
            with np.errstate(all="ignore"):  # what overflows is found at the next record
                if run and not run.begun:
                    run.save(state.checkpoint())
                saved, evaluated, ended = time.perf_counter(), state.counts["steps"], state.counts["episodes"]
                for diagnostics, due in state.updates():
                    now = state.counts["steps"]
                    late = run is not None and exact and time.perf_counter() - saved >= SAVE_SECONDS
                    evaluates = eval_every and (now // eval_every > evaluated // eval_every or now >= steps)
                    if not (due or late or signals or evaluates):
                        continue
                    _check_finite(state.state(), now, diagnostics)
                    if evaluates:
                        begun, evaluated = time.perf_counter(), now
                        history.evaluations.append(
                            _evaluation(agent, collector, eval_env, now, int(seed), deterministic)
                        )
                        state.started += time.perf_counter() - begun
                        if run:
                            run.append(history.evaluations[-1], "evaluations")
                    if due:
                        history.rows.append(state.record(diagnostics))
                        if state.cuts and state.counts["episodes"] == ended:
                            warnings.warn(f"no episode has ended before it was cut, at step {now}", stacklevel=2)
                        ended = state.counts["episodes"] if state.cuts else ended
                        if run:
                            run.append(history.rows[-1])
                    if run and ((due and state.saves) or late):
                        run.save(state.checkpoint())
                        saved = time.perf_counter()
                    if due and callback:
                        with collector.kept():
                            callback(history.rows[-1])
                    if run and signals:
                        run.save(state.checkpoint())
                        break
                if signals:
                    raise KeyboardInterrupt if signals[0] == signal.SIGINT else SystemExit(128 + signals[0])
        except BaseException as error:
            error.history = history  # type: ignore[attr-defined]
            if run:
                run.note(error)
            raise
    return history


def _evaluation(
    agent: Agent, collector: Collector, eval_env: Env | None, steps: int, seed: int, deterministic: bool
) -> Row:
    with collector.kept():
        env = collector.env if eval_env is None else eval_env
        share_statistics(collector.env, env)
        returns = evaluate(agent, env, seed=seed, deterministic=deterministic)
    measured = {"mean": returns.mean(), "std": returns.std(), "count": len(returns)}
    return {"steps": float(steps)} | {name: float(value) for name, value in measured.items()}


@contextmanager
def _deferred_signals(say: bool) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM goes to the list instead of ending the run; after it they do what they did."""
    received: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) is usual:
                before[number] = usual

    def restore() -> None:
        for number, usual in before.items():
            signal.signal(number, usual)

    def receive(number: int, frame: object) -> None:
        received.append(number)
        restore()
        if say and sys.stderr is not None:
            with suppress(OSError, ValueError, RuntimeError):  # of one that takes no more, or is being written to
                print("stopping after the update in hand; another Ctrl-C stops at once", file=sys.stderr)

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()


def _check_finite(state: dict[str, Array], step: int, diagnostics: Row) -> None:
    for name, array in state.items():
        if not np.isfinite(array).all():
            shown = ", ".join(f"{k} {v:.4g}" for k, v in diagnostics.items())
            raise DivergenceError(f"{name.partition('.')[2]} is no longer finite at step {step} ({shown}); {ADVICE}")


def evaluate(agent: Agent, env: Env, episodes: int = 100, seed: int = 0, deterministic: bool = True) -> Array:
    """Undiscounted returns of whole episodes; nothing is learned.

    An environment that normalises does it by the statistics that it has, and has the same ones afterwards; the
    returns are those of the rewards before they are normalised.

    Parameters
    ----------
    agent : Agent
    env : gymnasium.Env or gymnasium.vector.VectorEnv
    episodes : int
        At least 1 and at most 1,000,000; each column of a vector environment plays the same number.
    seed : int
        The episodes are others than ``train`` sees with the same seed.
    deterministic : bool
        The most probable action, or sampled ones.

    Returns
    -------
    (episodes,)
    """
    check_fit(agent, env)
    at_least("episodes", episodes, 1, MAX_EPISODES)
    at_least("seed", seed, 0)
    sequence = np.random.SeedSequence(seed, spawn_key=(4,))
    rng = np.random.default_rng(sequence)
    with frozen_statistics(env), Collector(env, int(sequence.generate_state(1, np.uint64)[0])) as collector:
        collector.play(agent.play, episodes, rng, explore=not deterministic)
    return np.array([total for total, _ in collector.finished[:episodes]])
