"""The one loop, training on top of it, and evaluation.

The loop is the same for every method: collect what the agent asks for, let it update. Training checks at every record
that all is finite and reports, and saves a checkpoint from where the run can go on exactly: a run that is killed at any
moment and resumed ends with the same arrays as one that is not.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .._checks import at_least
from .._typing import Array, Rng
from ..algorithms import Agent
from ..envs.spaces import Env
from ..trajectories import DivergenceError, Episodes, Steps
from .collect import Collector
from .runs import History, Row, Run, describe, prefixed
from .statistics import begin_statistics, frozen_statistics, load_statistics, statistics

Callback = Callable[[Row], None]
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
        except (DivergenceError, FloatingPointError) as error:
            raise DivergenceError(f"{error}, at step {steps}; {ADVICE}") from None
        steps += n
        yield steps, diagnostics


class _Progress:
    """Where a run is: what its agent, environment and generators hold, and when the next record and checkpoint are."""

    def __init__(self, agent: Agent, env: Env, steps: int, seed: int, every: dict[str, int | None]) -> None:
        self.agent, self.env, self.steps = agent, env, steps
        self.collector = Collector(env, seed)
        columns = self.collector.n_columns
        defaults = {"record": max(steps // 50, 1), "checkpoint": 2000 * columns}
        self.every: dict[str, int] = {name: defaults[name] if n is None else n for name, n in every.items()}
        for name, n in self.every.items():
            at_least(f"{name}_every", n, 1)
        self.counts = dict.fromkeys(("steps", "updates", "episodes", "records", "resets"), 0) | self.every
        rng_init, self.rng_act, self.rng_update = (
            np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,))) for purpose in (1, 2, 3)
        )
        agent.init(rng_init, columns)
        begin_statistics(env)
        self.started = time.perf_counter()

    def state(self) -> dict[str, Array]:
        """Copies of all that is learned, of the agent and of the environment's normalisation."""
        arrays = {f"agent.{name}": a for name, a in self.agent.state().items()}
        return arrays | {f"env.{name}": a for name, a in statistics(self.env).items()}

    def checkpoint(self) -> dict[str, Array]:
        """``state``, and all else that the run goes on from."""
        counts = {f"count.{name}": np.array(n) for name, n in self.counts.items()}
        generators = {name: rng.bit_generator.state for name, rng in self._generators.items()}
        return self.state() | counts | {"rng": np.array(json.dumps(generators))}

    def load(self, arrays: dict[str, Array], seconds: float) -> None:
        """Take back a ``checkpoint``, of a run that has taken so many seconds."""
        self.agent.load_state(prefixed(arrays, "agent."))
        load_statistics(self.env, prefixed(arrays, "env."))
        self.counts = {name: int(n) for name, n in prefixed(arrays, "count.").items()}
        self.collector.resets = self.counts["resets"]
        for name, state in json.loads(str(arrays["rng"])).items():
            self._generators[name].bit_generator.state = state
        self.started = time.perf_counter() - seconds

    @property
    def _generators(self) -> dict[str, Rng]:
        return {"act": self.rng_act, "update": self.rng_update}

    def cut(self, request: Steps | Episodes) -> bool:
        """Whether the next collection is to cut the episodes at its end, for a checkpoint."""
        counts, online = self.counts, isinstance(request, Steps)
        due = self.due = min(counts["record"], self.steps)
        reach = counts["steps"] + online * request.n * self.collector.n_columns
        if online and reach < due:  # nothing is recorded after it
            self.cuts = False
            return False
        # A collection may be longer than the distance of records.
        self.saves = not online or max(due, reach) >= min(counts["checkpoint"], self.steps)
        self.cuts = online and self.saves
        return self.cuts

    def updates(self) -> Iterator[Row]:
        """The loop until the run has its steps: the diagnostics of each update after which a record is due."""
        counts = self.counts
        if counts["steps"] >= self.steps:
            return
        for steps, diagnostics in updates(
            self.agent, self.collector, self.rng_act, self.rng_update, counts["steps"], self.cut
        ):
            counts["steps"] = steps
            counts["updates"] += 1
            if self.cuts or steps >= self.due:
                yield diagnostics
            if steps >= self.steps:
                return

    def record(self, diagnostics: Row) -> Row:
        """The record of now. The next one, and the next checkpoint where this one is saved, are due later."""
        finished, counts = self.collector.finished, self.counts
        counts["episodes"] += len(finished)
        counts["records"] += 1
        counts["resets"] = self.collector.resets
        self.collector.finished = []
        for name in ("record", "checkpoint") if self.saves else ("record",):
            while counts[name] <= max(counts["steps"], self.due):
                counts[name] += self.every[name]
        mean_return, mean_length = np.mean(finished, axis=0) if finished else (np.nan, np.nan)
        row: dict[str, Any] = {name: counts[name] for name in ("steps", "updates", "episodes")}
        row |= {"mean_return": mean_return, "mean_length": mean_length, "seconds": time.perf_counter() - self.started}
        return {name: float(value) for name, value in (row | diagnostics).items()}


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
    if resume and out is None:
        raise ValueError("resume=True needs out, the run directory, got None")
    run = Run(out) if resume and out is not None else None
    every = {"record": record_every, "checkpoint": checkpoint_every}
    if run:
        every = {name: run.config[f"{name}_every"] if n is None else n for name, n in every.items()}
    progress, history = _Progress(agent, env, steps, int(seed), every), History([])
    if out is not None:
        config = {"seed": seed, "steps": steps} | {f"{name}_every": n for name, n in progress.every.items()}
        config |= describe(agent, env)
    if run:
        run.check_same(config)
        arrays = run.load()
        history.rows = run.keep_rows(int(arrays["count.records"]))
        progress.load(arrays, history.rows[-1]["seconds"] if history.rows else 0.0)
        run.extend(steps)
    elif out is not None:
        run = Run.create(out, config)
    try:
        if run and not resume:
            run.save(progress.checkpoint())
        with np.errstate(all="ignore"):  # what overflows is found at the next record
            for diagnostics in progress.updates():
                _check_finite(progress.state(), progress.counts["steps"], diagnostics)
                row = progress.record(diagnostics)
                history.rows.append(row)
                if run:
                    run.append(row)
                    if progress.saves:
                        run.save(progress.checkpoint())
                if callback:
                    callback(row)
    except BaseException as error:
        error.history = history  # type: ignore[attr-defined]
        if run:
            run.note(error)
        raise
    return history


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
    with frozen_statistics(env):
        traj = collector.collect(agent, Episodes(episodes), rng, explore=not deterministic)
    returns: Array = collector.raw(traj.episode_returns()[:episodes])
    return returns
