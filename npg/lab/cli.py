"""The command line: results on stdout, progress on stderr."""

import argparse
import json
import os
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import gymnasium

from .._checks import at_least
from .._typing import Array
from .._version import __version__
from ..algorithms import ALGORITHMS
from ..envs import make_env, make_vec, normalized
from ..features import KINDS
from . import equations
from .cases import run_cases
from .presets import PRESETS, make_agent, preset
from .runs import Row, Run
from .training import evaluate, train


class Progress:
    """Live progress on stderr: a tqdm bar on a terminal that has tqdm, plain lines otherwise."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total = total
        self.printed = -float("inf")
        self.bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=total, initial=min(done, total), unit="step", unit_scale=True, file=sys.stderr)

    def __call__(self, row: Row) -> None:
        steps = int(row["steps"])
        score = f"mean {row['mean_return']:.1f}"
        if self.bar is not None:
            self.bar.set_postfix_str(score, refresh=False)
            self.bar.update(min(steps, self.total) - self.bar.n)
        elif time.monotonic() - self.printed >= 1 or steps >= self.total:
            self.printed = time.monotonic()
            print(f"step {steps} of {self.total}, {score}, {row['seconds']:.1f} s", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()


def _summary(returns: Array) -> str:
    return f"mean return {returns.mean():.2f} (std {returns.std():.2f}, {len(returns)} episodes)"


def _settings(pairs: list[str]) -> dict[str, Any]:
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"--set must be NAME=VALUE, got {pair!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = {"True": True, "False": False, "None": None}.get(value, value)
    return settings


def _new_directory(algorithm: str, env_id: str, seed: int) -> Path:
    base = Path("runs") / f"{algorithm}-{env_id.replace('/', '_').replace(':', '_')}-seed{seed}"
    candidate, k = base, 1
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            if not Path("runs").is_dir():
                raise
        k += 1
        candidate = base.with_name(f"{base.name}-{k}")


def _train(args: argparse.Namespace) -> int:
    if args.resume:
        given = {"ALGORITHM": args.algorithm, "--seed": args.seed, "--set": args.set or None, "--out": args.out}
        given |= {"--num-envs": args.num_envs, "--normalize-observations": args.normalize_observations or None}
        for name, value in (given | {"--normalize-rewards": args.normalize_rewards or None}).items():
            if value is not None:
                raise ValueError(f"--resume goes on as the run began; {name} cannot be given with it")
        run = Run(args.resume)
        out, config = run.path, run.config
        env = run.make_env()
        agent = run.new_agent(env)
        seed = config["seed"]
        steps = args.steps if args.steps is not None else config["steps"]
        done = int(run.load()["count.steps"])
    else:
        if not (args.algorithm and args.env):
            raise ValueError("npg train needs ALGORITHM and ENV, or --resume DIR")
        defaults = preset(args.algorithm, args.env)
        num_envs = defaults.num_envs if args.num_envs is None else args.num_envs
        at_least("--num-envs", num_envs, 0)
        env = make_vec(args.env, num_envs) if num_envs else make_env(args.env)
        if args.normalize_observations:
            env = normalized(env)
        agent = make_agent(args.algorithm, env, **_settings(args.set))
        env = normalized(env, False, args.normalize_rewards, getattr(agent, "gamma", 0.99))
        seed, done = args.seed or 0, 0
        steps = defaults.steps if args.steps is None else args.steps
        at_least("seed", seed, 0)
        at_least("steps", steps, 1)
        out = Path(args.out) if args.out else _new_directory(args.algorithm, args.env, seed)
    progress = Progress(steps, done)
    try:
        train(agent, env, steps=steps, seed=seed, out=out, callback=progress, resume=bool(args.resume))
    finally:
        progress.close()
    print(f"run {out}", flush=True)
    try:
        print(_summary(evaluate(agent, env, seed=seed, deterministic=not args.sample)))
    except BaseException as error:
        error.add_note(f"the run is complete; evaluate it with: npg evaluate {out}")
        raise
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    run = Run(args.dir)
    env = run.make_env()
    agent = run.make_agent(env)
    print(_summary(evaluate(agent, env, args.episodes, args.seed, deterministic=not args.sample)))
    return 0


def _list(args: argparse.Namespace) -> int:
    for algorithm, cls in ALGORITHMS.items():
        print(f"{algorithm}: {(cls.__doc__ or '').splitlines()[0]}")
        for f in fields(cls):
            if f.metadata:
                default = "" if f.default is MISSING else f"={json.dumps(f.default)}"
                print(f"  {f.name}{default}  {f.metadata['expected']}: {f.metadata['doc'].replace('``', '')}")
        for (name, env_id), p in PRESETS.items():
            if name == algorithm:
                print(f"  preset {env_id}: {p.num_envs} environments, {p.steps} steps, {json.dumps(p.settings)}")
    print("settings of every policy: features, scale_features (of log σ, for Box actions), scale")
    print(f"features: {', '.join(KINDS)}")
    own = ", ".join(name for name in gymnasium.registry if name.startswith("npg/"))
    print(f"environments: any Gymnasium id with Box or Discrete observations and actions; our own are {own}")
    return 0


def _check(args: argparse.Namespace) -> int:
    print(f"{'quantity':<50} {'equation':<9} {'method':<8} {'instances':>9} {'worst rel. error':>17}  verdict")
    results = []
    for r in run_cases(args.instances, args.seed):
        results.append(r)
        verdict = "ok" if r.passed else "FAILED"
        print(
            f"{r.case.quantity:<50} {f'({r.case.equation})':<9} {r.method:<8} {r.instances:>9} "
            f"{r.max_rel_error:>17.1e}  {verdict}",
            flush=True,
        )
    failed = sum(not r.passed for r in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _equations(args: argparse.Namespace) -> int:
    if args.write:
        for chapter in equations.write():
            print(chapter)
        return 0
    for number, entry in equations.equation_map().items():
        tests = entry.defining + entry.tests * args.all
        print(f"{f'({number})':<8}{entry.home}  {entry.home and entry.home.name}")
        for test in tests:
            print(f"        {test}  {test.name}")
    return 0


def _plot(args: argparse.Namespace) -> int:
    from .plotting import learning_curves

    runs = [Run(d) for d in args.dirs]
    out = Path(args.out) if args.out else runs[0].path / "learning_curve.png"
    learning_curves(runs, out)
    print(out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="npg", description="Policy-gradient methods, from scratch, in NumPy.")
    parser.add_argument("--version", action="version", version=f"npg {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("train", help="train an agent, then evaluate it")
    p.add_argument("algorithm", nargs="?", metavar="ALGORITHM", help="one of: " + ", ".join(ALGORITHMS))
    p.add_argument("env", nargs="?", metavar="ENV", help="a Gymnasium id")
    p.add_argument("--seed", type=int, help="0 by default")
    p.add_argument("--steps", type=int, help="environment steps")
    p.add_argument("--num-envs", type=int, help="parallel environments; 0 steps one scalar environment")
    p.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting; VALUE is JSON or a word"
    )
    p.add_argument(
        "--normalize-observations",
        action="store_true",
        help="to mean 0 and variance 1; features then need a scale in standard deviations, as in --set scale=1",
    )
    p.add_argument("--normalize-rewards", action="store_true", help="by the deviation of their discounted sum")
    p.add_argument("--out", metavar="DIR", help="run directory, runs/… by default")
    p.add_argument("--resume", metavar="DIR", help="go on with a run")
    p.add_argument("--sample", action="store_true", help="evaluate with sampled actions instead of the most probable")
    p.set_defaults(run=_train)

    p = commands.add_parser("evaluate", help="play episodes with a trained agent")
    p.add_argument("dir", metavar="DIR", help="a run directory")
    p.add_argument("--episodes", type=int, default=100)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--sample", action="store_true", help="sampled actions instead of the most probable")
    p.set_defaults(run=_evaluate)

    p = commands.add_parser("list", help="methods, presets and environments")
    p.set_defaults(run=_list)

    p = commands.add_parser("check", help="compare every registered gradient with numerical ones")
    p.add_argument("--instances", type=int, default=20, help="random instances of each")
    p.add_argument("--seed", type=int, default=0)
    p.set_defaults(run=_check)

    p = commands.add_parser("equations", help="the map equation, line of code, test that defines it")
    p.add_argument("--all", action="store_true", help="and all other tests that verify it")
    p.add_argument("--write", action="store_true", help="renew the tables that end the chapters")
    p.set_defaults(run=_equations)

    p = commands.add_parser("plot", help="draw learning curves of runs")
    p.add_argument("dirs", nargs="+", metavar="DIR")
    p.add_argument("--out", metavar="FILE", help="DIR/learning_curve.png by default")
    p.set_defaults(run=_plot)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status. ``NPG_TRACEBACK=1`` shows where an error came from."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt as error:
        print("", file=sys.stderr)
        return _report("interrupted", error, 130)
    except BrokenPipeError:  # npg equations | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, ArithmeticError, OSError, ImportError) as error:
        if os.environ.get("NPG_TRACEBACK"):
            raise
        return _report(f"error: {error}", error, 1)


def _report(message: str, error: BaseException, status: int) -> int:
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", []))
    print("npg:", *(message + notes).split(), file=sys.stderr)  # on one line
    return status
