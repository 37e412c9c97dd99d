"""The console entry, also ``python -m npg``: one thread for linear algebra, then the command line.

Matrices here are small, so that one thread is fastest, and sums come out the same however many there could be. The
number has to be set before NumPy is first imported.
"""

import os
import sys

from ._threads import THREADS


def main() -> int:
    """Run the command line; the exit status."""
    os.environ.update(dict.fromkeys(THREADS, "1"))
    for name in ("stdout", "stderr"):  # closed, or of an encoding without Greek letters
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="replace")
    try:
        from .lab.cli import main
    except KeyboardInterrupt:
        print("npg: interrupted", file=sys.stderr)
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(main())
