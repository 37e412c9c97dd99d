"""Derivations, code and tests are kept in step."""

import re

import pytest

from npg.lab import equations

CHAPTERS = equations.chapters()
NUMBER = re.compile(r"\((\d+\.\d+)\)")


@pytest.fixture(scope="module")
def entries() -> dict[str, equations.Entry]:
    """The map of all equations."""
    return equations.equation_map()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_tags_are_unique_and_consecutive(chapter):
    number = int(chapter.name[:2])
    tags = equations.tags(chapter)
    assert tags == [f"{number}.{k + 1}" for k in range(len(tags))]


def test_every_equation_has_a_home_and_exactly_one_test_that_defines_it(entries):
    assert [tag for tag, e in entries.items() if e.home is None] == []
    assert [tag for tag, e in entries.items() if len(e.defining) != 1] == []


def test_the_home_is_the_citing_line_and_the_line_is_there(entries):
    for tag, entry in entries.items():
        lines = (equations.ROOT / entry.home.path).read_text(encoding="utf-8").splitlines()
        if entry.lines:
            cited = NUMBER.findall(re.search(r"# (\(.*)", lines[entry.home.line - 1])[1])
            assert tag in cited
        else:
            assert lines[entry.home.line - 1].lstrip().startswith(("def ", "class ", "@", '"""'))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
def test_the_table_that_ends_a_chapter_is_true_and_its_links_resolve(chapter, entries):
    table = equations.table(chapter, entries)
    assert chapter.read_text(encoding="utf-8").rstrip().endswith(table)
    assert max(map(len, table.splitlines())) <= 200
    labels = re.findall(r"\[`[^`]+`\](?!:)", table)
    targets = dict(re.findall(r"^(\[`[^`]+`\]): (\S+)$", table, flags=re.M))
    assert {*labels} == targets.keys()
    for path in targets.values():
        assert (chapter.parent / path).is_file()


def test_every_reference_between_chapters_names_an_equation(entries):
    for page in (equations.ROOT / "derivations").glob("*.md"):
        for number in NUMBER.findall(page.read_text(encoding="utf-8")):
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


# A small repository, right and with one thing wrong

FILES = {
    "derivations/01-a.md": "\\tag{1.1}\n\\tag{1.2}\n\\tag{1.3}\n\n| equation | function | test |\n",
    "npg/__init__.py": "",
    "npg/low.py": "def f(x):\n    y = x  # (1.1), as in the book\n    return y\n",
    "npg/lab/high.py": "from ..low import f\n\n\ndef g(x):\n    return f(x)  # (1.1)\n\n\nclass C:\n    def h(self):\n"
    '        """By Eq. (1.2)."""\n        # no (1.3) here, nor in "# (1.3)"\n        return "# (1.3)"\n',
    "tests/test_all.py": "import pytest\n\n\n"
    "@pytest.mark.equation('1.1', '1.2', defining=True)\ndef test_a():\n    pass\n\n\n"
    "@pytest.mark.equation('1.3', defining=True)\n@pytest.mark.equation('1.1')\ndef test_b():\n    pass\n",
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A function that writes the files, with changes, and reads their map."""
    monkeypatch.setattr(equations, "ROOT", tmp_path)

    def made(**changed: str) -> dict[str, equations.Entry]:
        for name, text in (FILES | {name.replace("__", "/"): text for name, text in changed.items()}).items():
            path = tmp_path / (name if "." in name else f"{name}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return equations.equation_map()

    return made


def test_a_home_is_the_lowest_line_else_a_docstring_else_the_defining_test(repository):
    entries = repository()
    assert [str(entry.home) for entry in entries.values()] == [
        "npg/low.py:2",
        "npg/lab/high.py:9",
        "tests/test_all.py:11",
    ]
    assert [entry.home.name for entry in entries.values()] == ["npg.low.f", "npg.lab.high.C.h", "test_b"]
    assert [place.name for place in entries["1.1"].tests] == ["test_b"]


def test_tables_are_renewed_once_and_name_no_line(repository, tmp_path):
    repository()
    chapter = tmp_path / "derivations" / "01-a.md"
    assert equations.write() == [chapter]
    assert equations.write() == []
    text = chapter.read_text()
    assert text.startswith(FILES["derivations/01-a.md"].rpartition("\n|")[0])
    assert "| (1.1) | [`npg.low.f`] | [`test_a`] |\n| (1.2) | [`npg.lab.high.C.h`] | [`test_a`] |" in text
    assert "| (1.3) | a claim | [`test_b`] |" in text
    assert text.endswith("[`test_b`]: ../tests/test_all.py\n")
    assert not re.search(r"\.py:\d", text)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"npg__low": "x = 1  # (9.9)\n"}, r"npg/low.py:1 cites Eq. \(9.9\), which no chapter has"),
        ({"npg__low": '"""Eq. (9.9)."""\n'}, r"npg/low.py:1 cites Eq. \(9.9\), which no chapter has"),
        (
            {"npg__low": "x = 1  # (1.1)\ny = 2  # (1.2), (1.1)\n"},
            r"npg/low.py:2 cites \(1.1\) a second time in one module",
        ),
        (
            {"tests__test_more": FILES["tests/test_all.py"]},
            r"tests/test_more.py:5 and tests/test_all.py:5 both define \(1.1\)",
        ),
        (
            {"tests__test_more": "@pytest.mark.equation('9.9')\ndef test_c(): pass\n"},
            r"test_more.py:2 cites Eq. \(9.9\)",
        ),
    ],
)
def test_what_is_out_of_step_is_an_error_that_names_the_line(repository, changed, message):
    with pytest.raises(ValueError, match=message):
        repository(**changed)


def test_without_the_derivations_the_map_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(equations, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="not part of an installed package"):
        equations.chapters()
