"""Pictures show what was recorded, and scripts share arguments, runs and intervals."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from toy import Toy, Walk

import npg
from npg.lab.plotting import arguments, band, figure, learning_curves, mean_and_interval, repeated, save
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


def walk_run(path: Path, seed: int = 0, steps: int = 200, record_every: int = 5, alpha=0.05, eval_every=None) -> Run:
    env = Walk()
    agent = Toy(npg.make_policy(env.observation_space, env.action_space), n=2, alpha=alpha)
    how = {"steps": steps, "seed": seed, "record_every": record_every, "eval_every": eval_every}
    npg.train(agent, env, **how, out=path)
    return Run(path)


def points(run: Run, table: str = "metrics", name: str = "mean_return") -> np.ndarray:
    rows = np.array([(row["steps"], row[name]) for row in run.rows(table)])
    return rows[~np.isnan(rows[:, 1])]


def lines(axes, labelled: bool) -> list:
    return [line for line in axes.lines if line.get_label().startswith("_") != labelled]


def test_a_run_is_a_line_through_its_finished_records(tmp_path, drawn):
    runs = [walk_run(tmp_path / str(alpha), alpha=alpha) for alpha in (0.05, 0.1)]
    learning_curves(runs, tmp_path / "curves.png")
    ((axes,),) = (figure.axes for figure in drawn)
    assert (len(axes.lines), len(axes.collections)) == (2, 0)
    for line, run in zip(axes.lines, runs, strict=True):
        assert 0 < len(points(run)) < len(run.rows())
        np.testing.assert_array_equal(line.get_xydata(), points(run))


def test_runs_of_one_configuration_are_thin_lines_and_their_mean_on_its_interval(tmp_path, drawn):
    runs = [walk_run(tmp_path / str(seed), seed, steps=160 + 40 * seed, record_every=5 + seed) for seed in range(3)]
    other = walk_run(tmp_path / "other", alpha=0.1)
    learning_curves([runs[0], other, *runs[1:]], tmp_path / "curves.png")
    ((axes,),) = (figure.axes for figure in drawn)
    thin, (mean, single) = lines(axes, labelled=False), lines(axes, labelled=True)
    for line, run in zip(thin, runs, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), points(run))
        assert line.get_linewidth() < mean.get_linewidth()
        assert line.get_color() == mean.get_color() != single.get_color()
    curves = [points(run) for run in runs]
    x, y = mean.get_xydata().T
    assert (x[0], x[-1]) == (max(curve[0, 0] for curve in curves), 160)  # where all of them have records
    assert {*curves[0][:, 0][curves[0][:, 0] >= x[0]]} <= {*x}
    expected, half = mean_and_interval(np.array([np.interp(x, *curve.T) for curve in curves]))
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    (area,) = axes.collections
    outline = {tuple(point) for point in area.get_paths()[0].vertices}
    assert outline == {*zip(x, expected - half, strict=True), *zip(x, expected + half, strict=True)}
    np.testing.assert_array_equal(single.get_xydata(), points(other))


def test_evaluations_of_a_run_are_points_and_those_of_several_their_mean_with_its_interval(tmp_path, drawn):
    runs = [walk_run(tmp_path / str(seed), seed, eval_every=100) for seed in range(3)]
    evaluated = [points(run, "evaluations", "mean") for run in runs]
    for number, some in enumerate((runs[:1], runs, [*runs[:2], walk_run(tmp_path / "last", 3, eval_every=90)])):
        learning_curves(some, tmp_path / "curves.png")
        (axes,) = drawn[number].axes
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        assert [text.get_text() for text in axes.get_legend().get_texts()][-1].endswith(", evaluated")
        if len(some) == 1:
            np.testing.assert_array_equal(dots[0].get_xydata(), evaluated[0])
        elif some is runs:
            ((container,), mean_half) = axes.containers, mean_and_interval(np.array(evaluated)[:, :, 1])
            data, _, (bars,) = container
            np.testing.assert_array_equal(data.get_xydata(), np.stack((evaluated[0][:, 0], mean_half[0]), axis=1))
            ends = np.array([segment[:, 1] for segment in bars.get_segments()])
            np.testing.assert_allclose(ends, np.stack((mean_half[0] - mean_half[1], sum(mean_half)), axis=1))
        else:  # at other steps: each for itself
            assert len(dots) == 3
            np.testing.assert_array_equal(dots[1].get_xydata(), evaluated[1])


def test_a_picture_says_what_is_on_its_axes_and_which_line_is_which(tmp_path, drawn):
    one, two, other = (walk_run(tmp_path / str(k), k, alpha=alpha) for k, alpha in enumerate((0.05, 0.05, 0.1)))
    for runs, names in (
        ([one, other], [str(one.path), str(other.path)]),
        ([one, two], ["toy, None, 2 runs"]),
        ([one, two, other], [f"{one.path}, 2 runs", str(other.path)]),
    ):
        learning_curves(runs, tmp_path / "curves.png")
        (axes,) = drawn[-1].axes
        assert axes.get_xlabel() == "environment steps"
        assert axes.get_ylabel() == "mean return of the last 100 training episodes"
        assert [text.get_text() for text in axes.get_legend().get_texts()] == names


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


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_the_interval_of_a_mean_is_that_of_a_t_test(n):
    x = np.random.default_rng(n).normal(3.0, 2.0, size=(n, 4))
    mean, half = mean_and_interval(x)
    low, high = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    np.testing.assert_allclose((mean - half, mean + half), (low, high), rtol=1e-10)


def test_the_interval_of_a_mean_covers_it_in_95_of_100_experiments():
    x = np.random.default_rng(0).normal(1.0, 5.0, size=(5, 20_000))
    mean, half = mean_and_interval(x)
    assert abs((abs(mean - 1) <= half).mean() - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 20_000)


def test_a_band_is_the_mean_of_the_runs_between_the_ends_of_its_interval():
    x, runs = np.arange(7.0), np.random.default_rng(0).normal(size=(4, 7))
    _, (axes,) = figure()
    band(axes, x, runs, "a method", linestyle="--")
    (line,), (area,) = axes.lines, axes.collections
    mean, half = mean_and_interval(runs)
    np.testing.assert_array_equal(line.get_xydata(), np.stack((x, mean), axis=1))
    assert (line.get_label(), line.get_linestyle()) == ("a method", "--")
    outline = {tuple(point) for point in area.get_paths()[0].vertices}
    assert outline == {*zip(x, mean - half, strict=True), *zip(x, mean + half, strict=True)}
    np.testing.assert_array_equal(area.get_facecolor()[0, :3], matplotlib.colors.to_rgb(line.get_color()))


def test_a_figure_has_its_panels_row_by_row():
    picture, panels = figure(6, 4, rows=2, columns=3)
    assert panels == picture.axes
    places = [axes.get_subplotspec() for axes in panels]
    assert [(p.rowspan.start, p.colspan.start) for p in places] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert tuple(picture.get_size_inches()) == (6, 4)


def test_a_picture_is_saved_in_the_current_folder_and_named(tmp_path, monkeypatch, capsys):
    from matplotlib.image import imread

    monkeypatch.chdir(tmp_path)
    save(figure(4, 2)[0], "something")
    assert capsys.readouterr().out == "something.png\n"
    assert imread("something.png").shape[:2] == (300, 600)


OPTIONS = {"runs": (10, 2), "delta": (0.01, 0, 0.02), "method": ("reinforce", "a2c")}


def given(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["script.py", *argv])
    return vars(arguments("What it shows.", **OPTIONS))


def test_arguments_have_the_type_of_their_defaults(monkeypatch):
    assert given(monkeypatch) == {"runs": 10, "delta": 0.01, "method": "reinforce"}
    assert given(monkeypatch, "--runs", "2", "--delta", "0.02", "--method", "a2c") == {
        "runs": 2,
        "delta": 0.02,
        "method": "a2c",
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--runs", "1"], "--runs must be at least 2, got 1"),
        (["--delta", "-0.01"], "--delta must be at least 0 and at most 0.02, got -0.01"),
        (["--delta", "0.03"], "--delta must be at least 0 and at most 0.02, got 0.03"),
        (["--delta", "nan"], "--delta must be at least 0 and at most 0.02, got nan"),
        (["--runs", "2.5"], "argument --runs: invalid int value: '2.5'"),
        (["--method", "dqn"], "argument --method: invalid choice: 'dqn'"),
        (["--seed", "0"], "unrecognized arguments: --seed 0"),
    ],
)
def test_a_wrong_argument_is_one_error_that_names_it(argv, message, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        given(monkeypatch, *argv)
    *usage, error = capsys.readouterr().err.splitlines()
    assert error.startswith(f"script.py: error: {message}")
    assert all(line.startswith(("usage: ", " ")) for line in usage)


def test_the_help_of_a_script_is_its_docstring_and_its_defaults(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        given(monkeypatch, "--help")
    shown = capsys.readouterr().out
    assert "What it shows." in shown
    assert "0.01 by default" in shown


def test_runs_are_repeated_with_the_seeds_that_their_seed_spawns():
    draws = repeated(lambda seed: seed.generate_state(2).tolist(), 3, seed=5)
    assert draws == [seed.generate_state(2).tolist() for seed in np.random.SeedSequence(5).spawn(3)]
    assert len({tuple(draw) for draw in draws}) == 3


def until(complete):
    """A run that Ctrl-C interrupts after so many complete ones."""

    def run(seed):
        if seed.spawn_key[0] == complete:
            raise KeyboardInterrupt
        return seed.spawn_key[0]

    return run


def test_an_interrupt_leaves_the_complete_runs_and_says_so(capsys):
    assert repeated(until(3), 10, seed=0) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert err.endswith("interrupted: what follows is of the 3 runs that are complete\n")
    assert out == ""


@pytest.mark.parametrize("complete", [0, 1])
def test_an_interrupt_before_two_runs_are_complete_ends_the_script(complete):
    with pytest.raises(SystemExit, match="interrupted before two runs were complete"):
        repeated(until(complete), 10, seed=0)


@pytest.mark.process
def test_the_module_needs_the_extra_only_when_it_draws():
    code = (
        "import sys, npg.lab.plotting; sys.exit(any(m in sys.modules for m in ('matplotlib', 'tqdm', 'scipy.stats')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_returns_of_a_behaviour_are_said_to_be_its_own(tmp_path, drawn):
    env = npg.make_env("npg/ShortCorridor-v0")
    npg.train(npg.make_agent("off_pac", env), env, steps=400, eval_every=200, out=tmp_path / "run")
    learning_curves([Run(tmp_path / "run")], tmp_path / "curves.png")
    ((axes,),) = (figure.axes for figure in drawn)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [label.rpartition(", ")[2] for label in labels] == ["its behaviour", "evaluated"]
