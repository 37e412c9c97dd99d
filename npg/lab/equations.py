"""The map equation ↔ function ↔ test, read off the derivations, the package's docstrings and the tests' marks.

Functions and tests are read as text, so that nothing is imported or run.
"""

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TAG = re.compile(r"\\tag\{(\d+\.\d+)\}")
CITATION = re.compile(r"Eqs?\.\s+((?:\(\d+\.\d+\)(?:\s*(?:,|–|and)\s*)?)+)")


@dataclass
class Entry:
    """Where an equation is implemented and tested: dotted names and pytest ids."""

    functions: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)


def chapters() -> list[Path]:
    """The numbered chapters of the derivations.

    Raises
    ------
    FileNotFoundError
        Where the package is installed without them.
    """
    found = sorted((ROOT / "derivations").glob("[0-9][0-9]-*.md"))
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


def _definitions(path: Path) -> list[tuple[str, ast.AST]]:
    """The module, its classes and their functions, by dotted name."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[str, ast.AST]] = [("", module)]
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append((node.name, node))
            if isinstance(node, ast.ClassDef):
                found += [(f"{node.name}.{n.name}", n) for n in node.body if isinstance(n, ast.FunctionDef)]
    return found


def citations() -> list[tuple[str, str]]:
    """(equation, dotted name) for each docstring of the package that cites one."""
    found = []
    for path in sorted((ROOT / "npg").rglob("*.py")):
        if path.name == Path(__file__).name:
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name, node in _definitions(path):
            doc = ast.get_docstring(node) or ""  # type: ignore[arg-type]
            found += [(number, f"{module}.{name}".rstrip(".")) for number in cited(doc)]
    return found


def marks() -> list[tuple[str, str]]:
    """(equation, pytest id) for each test marked with one."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, node in _definitions(path):
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.equation":
                    found += [
                        (str(arg.value), f"{path.relative_to(ROOT)}::{name.replace('.', '::')}")
                        for arg in mark.args
                        if isinstance(arg, ast.Constant)
                    ]
    return found


def equation_map() -> dict[str, Entry]:
    """Every equation of the derivations, in order, with what cites and what tests it.

    Raises
    ------
    ValueError
        If a citation or a mark names an equation that no chapter has.
    """
    entries = {tag: Entry() for chapter in chapters() for tag in tags(chapter)}
    for kind, pairs in (("functions", citations()), ("tests", marks())):
        for number, name in pairs:
            if number not in entries:
                raise ValueError(f"{name} cites Eq. ({number}), which no chapter has")
            names = getattr(entries[number], kind)
            if name not in names:
                names.append(name)
    return entries


def table(chapter: Path, entries: dict[str, Entry]) -> str:
    """The Markdown table that ends a chapter: equation, functions, tests, from the ``equation_map``."""
    lines = ["| equation | function | test |", "|---|---|---|"]
    for tag in tags(chapter):
        functions, tests = (
            "<br>".join(f"`{name}`" for name in names) for names in (entries[tag].functions, entries[tag].tests)
        )
        lines.append(f"| ({tag}) | {functions} | {tests} |")
    return "\n".join(lines)
