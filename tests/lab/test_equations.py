"""Derivations, code and tests are kept in step."""

import re

import pytest

from npg.lab import equations

CHAPTERS = equations.chapters()


@pytest.fixture(scope="module")
def entries() -> dict[str, equations.Entry]:
    """The map of all equations."""
    return equations.equation_map()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_tags_are_unique_and_consecutive(chapter):
    number = int(chapter.name[:2])
    tags = equations.tags(chapter)
    assert tags == [f"{number}.{k + 1}" for k in range(len(tags))]


def test_every_equation_is_cited_where_it_is_implemented_and_covered_by_a_marked_test(entries):
    assert [tag for tag, e in entries.items() if not e.functions] == []
    assert [tag for tag, e in entries.items() if not e.tests] == []


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_the_table_that_ends_a_chapter_is_true(chapter, entries):
    assert chapter.read_text(encoding="utf-8").rstrip().endswith(equations.table(chapter, entries))


def test_every_reference_between_chapters_names_an_equation(entries):
    for page in (equations.ROOT / "derivations").glob("*.md"):
        for number in re.findall(r"\((\d+\.\d+)\)", page.read_text(encoding="utf-8")):
            assert number in entries, f"{page.name} refers to ({number})"


def test_every_citation_in_code_and_tests_names_an_equation(entries):
    for folder in ("npg", "tests", "examples"):
        for path in (equations.ROOT / folder).rglob("*.py"):
            if path.name != "test_equations.py":
                assert set(equations.cited(path.read_text(encoding="utf-8"))) <= entries.keys(), path


def test_every_erratum_names_the_test_that_tells_the_two_forms_apart():
    text = (equations.ROOT / "derivations" / "errata.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|.*\| `([^`]+)` \|$", text, flags=re.M)
    assert [number for number, _ in rows] == re.findall(r"^### Erratum (\d+)$", text, flags=re.M)
    source = (equations.ROOT / "tests" / "test_errata.py").read_text(encoding="utf-8")
    for number, test in rows:
        assert test == f"tests/test_errata.py::test_erratum_{number}"
        assert f"def test_erratum_{number}(" in source


def test_citations_are_read_with_their_ranges():
    assert equations.cited("Eq. (2.3), and Eqs. (3.3), (3.5)–(3.8)") == ["2.3", "3.3", "3.5", "3.6", "3.7", "3.8"]


def test_a_citation_of_an_equation_that_no_chapter_has_is_an_error(monkeypatch):
    monkeypatch.setattr(equations, "citations", lambda: [("9.99", "npg.nowhere")])
    with pytest.raises(ValueError, match=r"npg.nowhere cites Eq. \(9.99\)"):
        equations.equation_map()


def test_without_the_derivations_the_map_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(equations, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="not part of an installed package"):
        equations.chapters()
