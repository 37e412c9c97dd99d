"""Progress is reported by the clock, on a stderr of any kind, and never ends a run."""

import io
import re
import sys
import time

import pytest
from toy import Walk, toy

import npg
from npg.lab import progress
from npg.lab.progress import Progress

LINE = r"step (\d+) of 60, (no episode yet|mean -?\d+\.\d of \d+ episodes), (\d+\.\d) s\n"


class Stream(io.StringIO):
    """A stderr that keeps what is written, with the time; on a terminal of 40 columns or not."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self.terminal, self.times = terminal, []

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.times.append(time.monotonic())
        return super().write(text)


class Broken(Stream):
    """It takes no more, as a pipe whose other end is closed, or as a file that is."""

    def __init__(self, terminal: bool, error: Exception) -> None:
        super().__init__(terminal)
        self.error = error

    def write(self, text):
        raise self.error


@pytest.fixture
def stderr(monkeypatch):
    def replace(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return replace


def train(slow: float = 0.0, **settings) -> npg.History:
    """60 steps on a walk in updates of 30, the second of which takes so many seconds more."""
    env = Walk()
    agent = toy(env, n=30)
    update = agent.update

    def slowly(traj, rng):
        if agent.updates == 1:
            time.sleep(slow)
        return update(traj, rng)

    agent.update = slowly  # type: ignore[method-assign]
    return npg.train(agent, env, steps=60, **settings)


def test_the_first_line_comes_within_two_seconds_and_the_next_ones_in_ten():
    assert 0 < progress.FIRST <= 1.5
    assert 0 < progress.BETWEEN <= 9


def test_lines_come_by_the_clock_however_long_an_update_takes(stderr, monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 0.1)
    monkeypatch.setattr(progress, "BETWEEN", 0.2)
    stream = stderr(Stream())
    train(slow=1.0, progress=True)
    shown = stream.getvalue()
    assert re.fullmatch(f"({LINE})+", shown)
    lines = re.findall(LINE, shown)
    steps = [step for step, *_ in lines]
    assert steps.count("30") >= 2  # of five, on a machine that has time
    assert len(steps) <= 8
    assert (steps == sorted(steps, key=int), steps.count("60")) == (True, 1)


def test_a_run_says_nothing_unless_asked_and_learns_the_same(capsys):
    assert [row["mean_return"] for row in train().rows] == [row["mean_return"] for row in train(progress=True).rows]
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.fullmatch(LINE, err)


@pytest.mark.parametrize("columns", [30, 45, 200])
def test_the_score_stays_on_a_narrow_terminal(columns, stderr, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda stream: (columns, 24))
    stream = stderr(Stream(terminal=True))
    with Progress(1000, lambda: (250, "mean -123.4 of 100 episodes")) as shown:
        shown.ended.wait(0.01)
    *_, last = stream.getvalue().rstrip("\n").split("\r")
    assert last.startswith("mean -123.4 of 100 episodes")
    assert len(last) <= columns
    assert ("25%" in last) == (columns > 30)
    assert ("250/1.00k [" in last) == (columns > 45)


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(5, "Input/output error"), ValueError("closed file")], ids=repr
)
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_a_stderr_that_fails_does_not_end_a_run(terminal, error, stderr, monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 0.01)
    whole = train()
    stderr(Broken(terminal, error))
    assert train(slow=0.05, progress=True)["mean_return"].tolist() == whole["mean_return"].tolist()


def test_without_a_stderr_nothing_is_shown(stderr, capsys):
    stderr(None)
    assert len(train(progress=True)) == 2
    assert capsys.readouterr().out == ""


def test_an_error_of_the_run_is_not_hidden_by_its_progress(stderr):
    stream = stderr(Stream())
    env = Walk(lambda step, reward: float("nan") if step == 40 else reward)
    with pytest.raises(ValueError, match="a reward that is not finite"):
        npg.train(toy(env), env, steps=60, progress=True)
    assert stream.getvalue().startswith("step 39 of 60, mean ")
