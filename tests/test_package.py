"""The package as it is imported and shipped."""

import ast
import importlib.metadata
import importlib.resources
import inspect
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import fields
from pathlib import Path

import pytest

import npg
from npg.algorithms import ALGORITHMS
from npg.lab import cli

ROOT = Path(npg.__file__).parents[1]


def python(code: str, cwd: Path) -> str:
    """stdout of a fresh interpreter."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("work", ["", "npg.lab.cli.main(['list'])"], ids=["import", "npg list"])
def test_extras_are_not_imported_unless_used(work, tmp_path):
    extras = ["matplotlib", "tqdm", "pytest", "hypothesis", "mypy"]
    out = python(
        f"import sys, npg, npg.cli\n{work}\nprint('found', [m for m in {extras} if m in sys.modules])", tmp_path
    )
    assert out.splitlines()[-1] == "found []"


def test_importing_draws_no_random_numbers_makes_no_files_and_changes_no_settings(tmp_path):
    code = """
import random, warnings
import gymnasium, numpy as np, scipy.linalg, scipy.sparse.csgraph, scipy.special
def refuse(*args, **kwargs): raise AssertionError("a generator at import")
np.random.default_rng = refuse
def state(): return random.getstate(), str(np.random.get_state()), np.geterr(), np.get_printoptions(), warnings.filters
before = repr(state())
import npg, npg.cli, npg.plotting
print(repr(state()) == before)
"""
    assert python(code, tmp_path) == "True\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", npg.__all__)
def test_every_public_name_exists_and_is_documented(name):
    thing = getattr(npg, name)
    if not isinstance(thing, dict):
        assert len(inspect.getdoc(thing) or "") > 20


def test_every_public_function_and_class_of_every_module_has_a_docstring():
    missing = []
    for path in (ROOT / "npg").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        scopes = [("", tree), *((node.name, node) for node in tree.body if isinstance(node, ast.ClassDef))]
        for scope, node in scopes:
            missing += [
                f"{path.name}: {scope}.{d.name}"
                for d in node.body
                if isinstance(d, ast.FunctionDef | ast.ClassDef)
                and not d.name.startswith("_")
                and not scope.startswith("_")
                and not ast.get_docstring(d)
            ]
        if not ast.get_docstring(tree):
            missing.append(path.name)
    assert not missing


def test_a_method_is_named_after_its_module():
    for name, cls in ALGORITHMS.items():
        assert cls.__module__ == f"npg.algorithms.{name}"


@pytest.mark.parametrize("cls", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_setting_of_every_method_is_documented(cls):
    doc = inspect.getdoc(cls)
    documented = {name for names in re.findall(r"^([\w, ]+) : ", doc, re.MULTILINE) for name in names.split(", ")}
    assert {f.name for f in fields(cls)} == documented
    for f in fields(cls):
        options = re.match(r"one of (\w+, .*)", f.metadata.get("expected", ""))
        if options and options[1] != "True, False" and options[1] != "False, True":
            (described,) = re.findall(rf"^{f.name} : (.*)$", doc, re.MULTILINE)
            assert set(re.findall(r'"(\w+)"', described)) == set(options[1].split(", "))


def test_types_are_shipped():
    assert importlib.resources.files(npg).joinpath("py.typed").is_file()
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "py.typed" in setup["options.package_data"]["npg"]


def test_the_extras_are_not_needed_and_the_command_is_the_entry_point():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = {re.match(r"\w+", line)[0] for line in setup["options"]["install_requires"].split()}
    assert needed == {"numpy", "scipy", "gymnasium"}
    assert {"plot", "test"} <= set(setup["options.extras_require"])
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="npg")
    assert entry.load() is cli.main


def test_only_declared_packages_are_imported():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    declared = {"numpy", "scipy", "gymnasium"} | set(setup["options.extras_require"]["plot"].split())
    for path in (ROOT / "npg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
            assert tops <= declared, path


LAYERS = ["_typing", "_state", "solvers", "distributions", "features", "models", "policies"]
LAYERS += ["returns", "optimizers", "surrogates"]
LAYERS += ["rollout", "critics", "exact", "estimators", "envs", "gradcheck"]
LAYERS += ["algorithms", "presets", "training", "plotting", "equations", "cli"]


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a module imports when it is imported."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level == (2 if path.parent.name in ("algorithms", "envs") else 1):
            found |= {node.module.partition(".")[0]} if node.module else {alias.name for alias in node.names}
    return found & {*LAYERS}


def test_imports_point_one_way():
    for path in (ROOT / "npg").rglob("*.py"):
        name = path.parent.name if path.parent.name in ("algorithms", "envs") else path.stem
        if name in ("__init__", "__main__", "npg"):
            continue
        below = set(LAYERS[: LAYERS.index(name)]) if name in LAYERS else set(LAYERS[: LAYERS.index("algorithms")])
        assert imports_of(path) <= below, path


def test_the_loop_the_runs_and_the_command_line_know_no_method():
    for module in ("training", "cli", "plotting", "rollout"):
        text = (ROOT / "npg" / f"{module}.py").read_text(encoding="utf-8").lower()
        for name in ALGORITHMS.keys() - {"npg"}:  # which is the name of the package too
            assert name not in text


def test_the_changelog_knows_the_version():
    assert importlib.metadata.version("npg") == npg.__version__
    assert f"{npg.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_an_installation_holds_all_modules_and_the_types_and_nothing_else(tmp_path):
    def files(root: Path) -> set[str]:
        return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts}

    source = tmp_path / "source"
    shutil.copytree(ROOT / "npg", source / "npg", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests", "examples", "derivations"):
        (source / name).mkdir()
        (source / name / "__init__.py").write_text("")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["-c", "import setuptools; setuptools.setup()", "-q", "build_py", "--build-lib", tmp_path / "built"]
    subprocess.run([sys.executable, *build], cwd=source, check=True, capture_output=True)
    assert files(tmp_path / "built") == {f"npg/{name}" for name in files(ROOT / "npg")}


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    text = (Path(npg.__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    exec("".join(blocks).replace("300_000", "3_000"), {})
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("True ") for line in lines)
    bias, variance = map(float, lines[-2:])
    assert bias < 1e-12 < variance
