"""Live progress on stderr, by the clock: however long an update takes."""

import io
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

FIRST, BETWEEN = 1.0, 5.0
"""Seconds to the first line, and between lines."""


class _Lenient:
    """A stream that ends nothing when it takes no more: a pipe whose other end is closed, a full disk."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self.stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()


class Progress:
    """A tqdm bar on a terminal that has tqdm, plain lines otherwise; ``with`` begins and ends it.

    Parameters
    ----------
    total : int
        Steps of the run.
    now : callable
        Returns the steps so far, and what else is to be shown of them, a few words.
    unit : str
        What is counted, if it is not steps.
    """

    def __init__(self, total: int, now: Callable[[], tuple[int, str]], unit: str = "step") -> None:
        self.total, self.now, self.unit = total, now, unit
        self.out: Any = _Lenient(sys.stderr or io.StringIO())
        self.bar: Any = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._report, daemon=True)

    def __enter__(self) -> "Progress":
        self.started = time.monotonic()
        with suppress(ValueError):  # of one that is closed
            if self.out.isatty():
                self._begin_bar()
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.thread.join()
        self._show()
        if self.bar is not None:
            self.bar.close()

    def _begin_bar(self) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            return
        layout = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"  # the score first
        begun: dict[str, Any] = {"total": self.total, "initial": min(self.now()[0], self.total)}
        self.bar = tqdm(**begun, unit_scale=self.unit == "step", bar_format=layout, dynamic_ncols=True, file=self.out)

    def _report(self) -> None:
        wait = FIRST
        while not self.ended.wait(wait):
            self._show()
            wait = 0.2 if self.bar is not None else BETWEEN

    def _show(self) -> None:
        steps, words = self.now()
        if self.bar is not None:
            self.bar.set_description_str(words, refresh=False)
            self.bar.n = min(steps, self.total)
            self.bar.refresh()
        else:
            seconds = time.monotonic() - self.started
            print(f"{self.unit} {steps} of {self.total}, {words}, {seconds:.1f} s", file=self.out, flush=True)
