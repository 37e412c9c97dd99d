"""The map equation ↔ line of code ↔ test, read off the derivations, the package and the tests' marks.

An equation is cited by a comment that begins with its number, ``# (11.2)`` or ``# (10.4), (10.14)``, on the line that
computes it, and by docstrings, ``Eq. (11.2)``. Its home is the citing line lowest in the order of imports; without one,
the function whose docstring cites it; for a claim that nothing computes, the test that defines it.
Everything is read as text, so that nothing is imported or run.
"""

import ast
import re
import tokenize
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TAG = re.compile(r"\\tag\{(\d+\.\d+)\}")
CITATION = re.compile(r"Eqs?\.\s+((?:\(\d+\.\d+\)(?:\s*(?:,|–|and)\s*)?)+)")
COMMENT = re.compile(r"# (\(\d+\.\d+\)(?:, \(\d+\.\d+\))*)")
HEAD = "| equation | function | test |"


@dataclass(frozen=True)
class Place:
    """A line of a file, path and line, and the function or class around it, by dotted name."""

    path: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass
class Entry:
    """Where an equation is at home, which functions' docstrings cite it, and what tests it, the defining test first."""

    home: Place | None = None
    lines: list[Place] = field(default_factory=list)
    functions: list[Place] = field(default_factory=list)
    defining: list[Place] = field(default_factory=list)
    tests: list[Place] = field(default_factory=list)


def chapters() -> list[Path]:
    """The numbered chapters of the derivations.

    Raises
    ------
    FileNotFoundError
        Where the package is installed without them.
    """
    found = sorted(p for p in (ROOT / "derivations").glob("[0-9][0-9]-*.md") if not p.name.startswith("00"))
    if not found:
        raise FileNotFoundError("the derivations are not part of an installed package: use a clone of the repository")
    return found


def tags(chapter: Path) -> list[str]:
    """The numbers of a chapter's equations, in order."""
    return TAG.findall(chapter.read_text(encoding="utf-8"))


def cited(text: str) -> list[str]:
    """The equation numbers that ``Eq. (c.k)``, ``Eqs. (c.k), (c.l)`` and ``Eqs. (c.k)–(c.l)`` name."""
    numbers: list[str] = []
    for citation in CITATION.findall(text):
        for first, last in re.findall(r"\((\d+\.\d+)\)(?:\s*–\s*\((\d+\.\d+)\))?", citation):
            chapter, low = first.split(".")
            high = last.split(".")[1] if last else low
            numbers += [f"{chapter}.{k}" for k in range(int(low), int(high) + 1)]
    return numbers


def _modules() -> list[Path]:
    """The modules of the package, each after all that it imports."""
    paths = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted((ROOT / "npg").rglob("*.py"))}

    @cache
    def depth(module: str) -> int:
        below = [-1]
        for node in ast.walk(ast.parse(paths[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*module.split(".")[: -node.level], *(node.module or "").split(".")]
                names = [".".join(filter(None, [*base, alias.name])) for alias in node.names]
                below += [depth(name) for name in {".".join(filter(None, base)), *names} & paths.keys()]
        return 1 + max(below)

    return [paths[name] for name in sorted(paths, key=lambda name: (name == "npg.__init__", depth(name), name))]


def _definitions(path: Path) -> list[tuple[str, ast.AST]]:
    """The module, its classes and functions, and those inside them, by dotted name, outer ones first."""
    found: list[tuple[str, ast.AST]] = [("", ast.parse(path.read_text(encoding="utf-8")))]
    for name, node in found:
        if not isinstance(node, ast.FunctionDef):
            inner = [n for n in getattr(node, "body", []) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            found += [(f"{name}.{n.name}".lstrip("."), n) for n in inner]
    return found


def _citations(path: Path) -> tuple[list[tuple[str, Place]], list[tuple[str, Place]]]:
    """(equation, place) of each comment of a module that begins with a number, and of each docstring that cites one."""
    where = path.relative_to(ROOT).as_posix()
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    definitions = _definitions(path)
    functions = [
        (number, Place(where, getattr(node, "lineno", 1), f"{module}.{name}".rstrip(".")))
        for name, node in definitions
        for number in cited(ast.get_docstring(node) or "")  # type: ignore[arg-type]
    ]
    lines = []
    with open(path, "rb") as file:
        for token in tokenize.tokenize(file.readline):
            match = COMMENT.match(token.string) if token.type == tokenize.COMMENT else None
            if match:
                line = token.start[0]
                inside = [n for n, d in definitions[1:] if d.lineno <= line <= d.end_lineno]  # type: ignore[attr-defined]
                place = Place(where, line, ".".join([module, *inside[-1:]]))
                lines += [(number, place) for number in re.findall(r"\d+\.\d+", match[1])]
    return lines, functions


def _marks(path: Path) -> list[tuple[str, Place, bool]]:
    """(equation, test, whether the test defines it) for each mark of a test module."""
    found = []
    for name, node in _definitions(path):
        for mark in getattr(node, "decorator_list", []):
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.equation":
                place = Place(path.relative_to(ROOT).as_posix(), node.lineno, name)  # type: ignore[attr-defined]
                defining = any(k.arg == "defining" and getattr(k.value, "value", False) for k in mark.keywords)
                found += [(str(arg.value), place, defining) for arg in mark.args if isinstance(arg, ast.Constant)]
    return found


def equation_map() -> dict[str, Entry]:
    """Every equation of the derivations, in order, with its home, what else cites it and what tests it.

    Raises
    ------
    ValueError
        If a citation or a mark names an equation that no chapter has, two comments of a module one equation, or two
        tests define one.
    """
    entries = {tag: Entry() for chapter in chapters() for tag in tags(chapter)}

    def of(number: str, place: Place) -> Entry:
        if number not in entries:
            raise ValueError(f"{place} cites Eq. ({number}), which no chapter has")
        return entries[number]

    for path in _modules():
        lines, functions = _citations(path)
        for number, place in lines:
            if any(other.path == place.path for other in of(number, place).lines):
                raise ValueError(f"{place} cites ({number}) a second time in one module")
            entries[number].lines.append(place)
        for number, place in functions:
            of(number, place).functions.append(place)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for number, place, defining in _marks(path):
            entry = of(number, place)
            if defining and entry.defining:
                raise ValueError(f"{place} and {entry.defining[0]} both define ({number})")
            kind = entry.defining if defining else entry.tests
            if place not in kind:
                kind.append(place)
    for entry in entries.values():
        entry.tests = [place for place in entry.tests if place not in entry.defining]
        entry.home = next(iter(entry.lines + entry.functions + entry.defining), None)
    return entries


def table(chapter: Path, entries: dict[str, Entry]) -> str:
    """The Markdown table that ends a chapter: equation, function, defining test, with links to their files."""
    rows, links = [HEAD, "|---|---|---|"], dict[str, str]()
    for tag in tags(chapter):
        entry = entries[tag]
        code = (entry.lines + entry.functions)[:1]
        cells = [f"[`{place.name}`]" for place in code + entry.defining]
        links |= dict(zip(cells, (f"../{place.path}" for place in code + entry.defining), strict=True))
        rows.append(f"| ({tag}) | {' | '.join(cells if code else ['a claim', *cells])} |")
    return "\n".join([*rows, "", *(f"{label}: {path}" for label, path in sorted(links.items()))])


def write() -> list[Path]:
    """Renew the tables of the chapters; those that changed."""
    entries, changed = equation_map(), []
    for chapter in chapters():
        text = chapter.read_text(encoding="utf-8")
        before, _, _ = text.partition(HEAD) if HEAD in text else (text.rstrip() + "\n\n", "", "")
        new = before + table(chapter, entries) + "\n"
        if new != text:
            chapter.write_text(new, encoding="utf-8")
            changed.append(chapter)
    return changed
