"""Pictures of runs; needs the extra ``plot``."""

from pathlib import Path

from .runs import Run


def learning_curves(runs: list[Run], path: str | Path) -> None:
    """Mean return of training episodes against environment steps, one line per run.

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
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plotting needs matplotlib: pip install 'npg[plot]'") from None

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for run in runs:
        points = [(r["steps"], r["mean_return"]) for r in run.rows() if r["mean_return"] == r["mean_return"]]
        if not points:
            raise ValueError(f"{run.path} has recorded no finished episode yet")
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) == 1 else None, label=str(run.path))
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("mean return of training episodes")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=150)
