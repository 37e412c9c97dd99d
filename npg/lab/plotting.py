"""Pictures of runs, and what the scripts of ``examples/`` share; needs the extra ``plot``."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from .._checks import is_number
from .._typing import Array
from ..algorithms import ALGORITHMS
from .runs import Run


def figure(width: float = 7, height: float = 4.5, rows: int = 1, columns: int = 1) -> tuple[Any, list[Any]]:
    """An empty Figure of that many inches, and its Axes row by row, each with a grid."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plotting needs matplotlib: pip install 'npg[plot]'") from None
    picture = Figure(figsize=(width, height), layout="constrained")
    for axes in picture.subplots(rows, columns, squeeze=False).flat:
        axes.grid(alpha=0.3)
    return picture, picture.axes


def save(picture: Any, name: str) -> None:
    """Write NAME.png to the current folder, and say so."""
    picture.savefig(f"{name}.png", dpi=150)
    print(f"{name}.png")


def mean_and_interval(runs: Array) -> tuple[Array, Array]:
    """Mean over runs, the first axis, and half the width of its 95 % t interval."""
    return runs.mean(axis=0), stdtrit(len(runs) - 1, 0.975) * runs.std(axis=0, ddof=1) / np.sqrt(len(runs))


def band(axes: Any, x: Array, runs: Array, label: str, **style: Any) -> None:
    """A line, the mean of ``runs`` (runs, n) against ``x`` (n,), on a band, its interval."""
    mean, half = mean_and_interval(runs)
    (line,) = axes.plot(x, mean, label=label, **style)
    axes.fill_between(x, mean - half, mean + half, color=line.get_color(), alpha=0.15, linewidth=0)


def arguments(doc: str | None, **options: tuple[Any, ...]) -> argparse.Namespace:
    """Arguments of a script. A wrong one ends it with one line that names it.

    Parameters
    ----------
    doc : str
        The docstring of the script, for ``--help``.
    **options
        Of each ``--name`` the default, whose type is that of all values, then the least and perhaps the largest value;
        of a string the default, then all else that it may be.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, *others) in options.items():
        choices = (default, *others) if isinstance(default, str) else None
        help = f"{default} by default"
        parser.add_argument(f"--{name}", type=type(default), default=default, choices=choices, help=help)
    args = parser.parse_args()
    for name, (_, *limits) in options.items():
        value = getattr(args, name)
        if not (isinstance(value, str) or limits[0] <= value <= (*limits, np.inf)[1]):
            parser.error(f"--{name} must be at least {' and at most '.join(map(str, limits))}, got {value}")
    return args


def repeated(run: Callable[[np.random.SeedSequence], Any], runs: int, seed: int) -> list[Any]:
    """What ``run`` returns for each of the seeds that ``seed`` spawns, with progress on stderr.

    After Ctrl-C it is what ``run`` has returned by then; if only once or never, the script ends.
    """
    from tqdm import tqdm

    results = []
    try:
        for each in tqdm(np.random.SeedSequence(seed).spawn(runs), unit="run"):
            results.append(run(each))
    except KeyboardInterrupt:
        if len(results) < 2:
            sys.exit("interrupted before two runs were complete: there is nothing to show")
        print(f"interrupted: what follows is of the {len(results)} runs that are complete", file=sys.stderr)
    return results


def learning_curves(runs: list[Run], path: str | Path) -> None:
    """Mean return of the last 100 training episodes against environment steps, and of evaluations.

    Each run is a thin line. Runs that differ in nothing but their seed also have their mean, where all of them have
    records, on a band, its 95 % t interval; so have their evaluations, points with bars, or points of a single run.

    Parameters
    ----------
    runs : list of Run
    path : path
        The picture to write; its ending gives the format.

    Raises
    ------
    ValueError
        If a run has no finished episode.
    """
    picture, (axes,) = figure()
    _curves(axes, runs)
    picture.savefig(path, dpi=150)


def comparison(panels: dict[str, list[Run]], thresholds: dict[str, float], path: str | Path) -> None:
    """``learning_curves`` in a panel for each title, with a line at its threshold if it has one.

    Runs that have recorded no finished episode are left out.
    """
    picture, places = _panels(len(panels))
    for axes, (title, runs) in zip(places, panels.items(), strict=False):
        axes.set_title(title)
        if title in thresholds:
            axes.axhline(thresholds[title], color="0.4", linestyle=":", label=f"threshold {thresholds[title]:g}")
        shown = [run for run in runs if any(np.isfinite(row["mean_return"]) for row in run.rows())]
        if shown:
            _curves(axes, shown)
    picture.savefig(path, dpi=150)


def sensitivity(panels: dict[tuple[str, str], dict[str, list[tuple[Any, float, float]]]], path: str | Path) -> None:
    """Scores against the value of a setting, in a panel for each title and setting.

    The axis is logarithmic where all values are positive numbers and the largest is at least ten times the smallest;
    values that are not all numbers have equal distances.

    Parameters
    ----------
    panels : dict
        Of each title and name of a setting, by the name of a curve, (value, mean, half the width of its interval).
    path : path
        The picture to write; its ending gives the format.
    """
    picture, places = _panels(len(panels))
    for axes, ((title, setting), curves) in zip(places, panels.items(), strict=False):
        values = [value for points in curves.values() for value, _, _ in points]
        numbers = all(is_number(value) for value in values)
        for label, points in curves.items():
            x, mean, half = zip(*points, strict=True)
            axes.errorbar(x if numbers else list(map(str, x)), mean, half, fmt="o-", capsize=2, label=label)
        if values and numbers and min(values) > 0 and max(values) >= 10 * min(values):
            axes.set_xscale("log")
        axes.set(title=title, xlabel=setting, ylabel="mean return of the final evaluation")
        if curves:
            axes.legend(loc="best", fontsize="small")
    picture.savefig(path, dpi=150)


def _panels(n: int) -> tuple[Any, list[Any]]:
    """A figure of n panels, at most three in a row."""
    columns = min(n, 3)
    rows = -(-n // columns)
    picture, places = figure(6 * columns, 4.5 * rows, rows, columns)
    for axes in places[n:]:
        axes.set_visible(False)
    return picture, places


def _curves(axes: Any, runs: list[Run]) -> None:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        alike = {name: run.config[name] for name in ("agent", "env")}
        groups.setdefault(json.dumps(alike, sort_keys=True), []).append(run)
    for number, group in enumerate(groups.values()):
        color, name = f"C{number % 10}", _label(group, list(groups.values()))
        method = ALGORITHMS.get(group[0].config["agent"]["algorithm"])
        trained = f"{name}, its behaviour" if method and method.off_policy else name
        curves = [_points(run, "metrics", "mean_return") for run in group]
        for curve in curves:
            several = len(group) > 1
            style: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.5} if several else {"label": trained}
            axes.plot(*curve.T, marker="o" if len(curve) == 1 else None, color=color, **style)
        if len(group) > 1:
            low, high = (end(curve[i, 0] for curve in curves) for end, i in ((max, 0), (min, -1)))
            x = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
            x = x[(low <= x) & (x <= high)]
            band(axes, x, np.array([np.interp(x, *curve.T) for curve in curves]), trained, color=color)
        points = [_points(run, "evaluations", "mean") for run in group if run.rows("evaluations")]
        if points:
            x = points[0][:, 0]
            if len(points) > 1 and all(np.array_equal(each[:, 0], x) for each in points):
                mean, half = mean_and_interval(np.array([each[:, 1] for each in points]))
                axes.errorbar(x, mean, half, fmt="o", markersize=4, capsize=2, color=color, label=f"{name}, evaluated")
            else:
                label: str | None = f"{name}, evaluated"
                for each in points:
                    axes.plot(*each.T, "o", markersize=4, color=color, label=label)
                    label = None
    axes.set(xlabel="environment steps", ylabel="mean return of the last 100 training episodes")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="best", fontsize="small")


def _points(run: Run, table: str, name: str) -> Array:
    points = [(row["steps"], row[name]) for row in run.rows(table) if np.isfinite(row[name])]
    if not points:
        raise ValueError(f"{run.path} has recorded no finished episode yet")
    return np.array(points)


def _label(group: list[Run], groups: list[list[Run]]) -> str:
    """What tells a group from the others: its method and environment, if they do, or the directory of its first run."""
    names = [f"{each[0].config['agent']['algorithm']}, {each[0].config['env']['id']}" for each in groups]
    name = f"{group[0].config['agent']['algorithm']}, {group[0].config['env']['id']}"
    name = name if names.count(name) == 1 and len(group) > 1 else str(group[0].path)
    return f"{name}, {len(group)} runs" if len(group) > 1 else name
