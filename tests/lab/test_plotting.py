"""Learning curves show what was recorded."""

import sys
from pathlib import Path

import numpy as np
import pytest
from toy import Toy, Walk

import npg
from npg.lab.plotting import learning_curves
from npg.lab.runs import Run

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in order."""
    from matplotlib.figure import Figure

    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (figures.append(self), savefig(self, *args, **kwargs))[0]
    )
    return figures


def walk_run(path: Path, seed: int = 0, steps: int = 200, record_every: int = 5) -> Run:
    env = Walk()
    agent = Toy(npg.make_policy(env.observation_space, env.action_space), n=2)
    npg.train(agent, env, steps=steps, seed=seed, record_every=record_every, out=path)
    return Run(path)


def test_each_run_is_a_line_through_its_finished_records(tmp_path, drawn):
    runs = [walk_run(tmp_path / str(seed), seed) for seed in (0, 1)]
    learning_curves(runs, tmp_path / "curves.png")
    ((axes,),) = (figure.axes for figure in drawn)
    assert len(axes.lines) == 2
    for line, run in zip(axes.lines, runs, strict=True):
        rows = [(row["steps"], row["mean_return"]) for row in run.rows()]
        finished = [row for row in rows if not np.isnan(row[1])]
        assert 0 < len(finished) < len(rows)
        np.testing.assert_array_equal(line.get_xydata(), finished)


def test_a_picture_says_what_is_on_its_axes_and_which_line_is_which_run(tmp_path, drawn):
    runs = [walk_run(tmp_path / name) for name in ("one", "two")]
    learning_curves(runs, tmp_path / "curves.png")
    (axes,) = drawn[0].axes
    assert axes.get_xlabel() == "environment steps"
    assert "mean return" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [str(run.path) for run in runs]


def test_a_single_point_is_visible(tmp_path, drawn):
    learning_curves([walk_run(tmp_path / "run", steps=40, record_every=40)], tmp_path / "curves.png")
    (line,) = drawn[0].axes[0].lines
    assert len(line.get_xydata()) == 1
    assert line.get_marker() not in (None, "None", "")


@pytest.mark.parametrize(
    ("name", "begins"), [("curves.png", b"\x89PNG\r\n"), ("curves.svg", b"<?xml"), ("curves.pdf", b"%PDF")]
)
def test_the_ending_gives_the_format(name, begins, tmp_path):
    learning_curves([walk_run(tmp_path / "run")], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_run_without_finished_episodes_is_named_and_no_picture_is_written(tmp_path):
    run = walk_run(tmp_path / "run", steps=1, record_every=1)
    with pytest.raises(ValueError, match=f"{run.path} has recorded no finished episode yet"):
        learning_curves([run], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    run = walk_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plotting needs matplotlib: pip install 'npg\[plot\]'"):
        learning_curves([run], tmp_path / "curves.png")


def test_drawing_leaves_the_state_of_pyplot_alone(tmp_path):
    before = set(sys.modules)
    learning_curves([walk_run(tmp_path / "run")], tmp_path / "curves.png")
    assert "matplotlib.pyplot" not in set(sys.modules) - before
