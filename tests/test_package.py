"""The package as it is imported and shipped."""

import ast
import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import os
import pydoc
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

import npg
from npg import __main__
from npg.algorithms import ALGORITHMS

ROOT = Path(npg.__file__).parents[1]


def python(code: str, cwd: Path) -> str:
    """stdout of a fresh interpreter."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.process
@pytest.mark.parametrize("work", ["", "npg.lab.cli.main(['list'])"], ids=["import", "npg list"])
def test_extras_are_not_imported_unless_used(work, tmp_path):
    extras = ["matplotlib", "tqdm", "dask", "mpi4py", "pytest", "hypothesis", "mypy"]
    out = python(
        f"import sys, npg, npg.lab.cli\n{work}\nprint('found', [m for m in {extras} if m in sys.modules])", tmp_path
    )
    assert out.splitlines()[-1] == "found []"


@pytest.mark.process
def test_importing_draws_no_random_numbers_makes_no_files_and_changes_no_settings(tmp_path):
    code = """
import random, warnings
import gymnasium, numpy as np, scipy.linalg, scipy.sparse.csgraph, scipy.special
def refuse(*args, **kwargs): raise AssertionError("a generator at import")
np.random.default_rng = refuse
def state(): return random.getstate(), str(np.random.get_state()), np.geterr(), np.get_printoptions(), warnings.filters
before = repr(state())
import npg, npg.lab.cli, npg.lab.plotting
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
def test_every_setting_of_every_method_is_in_its_help(cls):
    text = pydoc.render_doc(cls, renderer=pydoc.plaintext)
    assert inspect.getdoc(cls.update).count("←") >= 3
    for f in fields(cls)[1:]:
        assert f.metadata["doc"].endswith(".")
        default = "" if f.default is MISSING else f"; {f.default!r} by default"
        assert f"{f.name} : {f.metadata['expected']}{default}\n" in text
        assert f.metadata["doc"] in text


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
    assert entry.load() is __main__.main


def test_only_declared_packages_are_imported():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = " ".join(setup["options.extras_require"][name] for name in ("plot", "dask"))
    declared = {"numpy", "scipy", "gymnasium"} | {re.match(r"\w+", word)[0] for word in extras.split()}
    for path in (ROOT / "npg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
            assert tops <= declared, path


ORDER = [
    "_version",
    "_threads",
    "_typing",
    "_checks",
    "_state",
    "distributions",
    "features",
    "models",
    "policies",
    "solvers",
]
ORDER += ["optimizers", "replay", "trajectories", "returns", "values", "traces", "surrogates", "exact", "off_policy"]
ORDER += ["estimators", "baselines", "problems", "lqr", "gradcheck", "algorithms", "envs", "lab"]
"""The modules and rooms of the package: each imports only what stands before it."""
ROOMS = {
    "algorithms": ["base"],
    "envs": ["spaces", "state", "vector", "classic", "tabular", "lqr", "continuous_imani"],
    "lab": [
        "statistics",
        "snapshots",
        "collect",
        "presets",
        "runs",
        "progress",
        "checks",
        "training",
        "task",
        "cases",
        "plotting",
        "compare",
        "equations",
        "cli",
    ],
}
"""And so inside the rooms; what is not named, such as the ``__init__``, imports any of these, and none imports it."""
THIRD_PARTY = {"": {"numpy", "scipy"}, "algorithms": {"numpy"}, "envs": {"numpy", "gymnasium"}}
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted((ROOT / "npg").rglob("*.py"))}


def imported(module: str) -> set[tuple[str, ...]]:
    """What a module imports anywhere in it, functions included: the names of modules, and of what is taken of them."""
    found, here = set(), module.split(".")
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = here[: len(here) - node.level] if node.level else []
            origin += node.module.split(".") if node.module else []
            found |= {(*origin, alias.name) for alias in node.names}
    return found


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("npg.__init__", "npg.__main__")])
def test_imports_point_one_way_and_private_names_stay_at_home(module):
    _, place, *inside = module.split(".")
    room = place if place in ROOMS else ""
    below, beside = {*ORDER[: ORDER.index(place)]}, ROOMS.get(room, [])
    below -= {"algorithms"} if room == "envs" else set()
    beside = beside[: beside.index(inside[0])] if inside and inside[0] in beside else beside
    for name in imported(module):
        if name[0] != "npg":
            assert room == "lab" or name[0] in THIRD_PARTY[room] | sys.stdlib_module_names, f"{module} imports {name}"
            continue
        within = name[1] == room and (name[2] in beside or (inside == ["__init__"] and room == "algorithms"))
        assert name[1] in below or within, f"{module} imports {name}"
        assert not name[-1].startswith("_") or len(name) == 2 or name[-1] == "__version__", f"{module} imports {name}"


@pytest.mark.process
def test_each_module_can_be_imported_alone_and_the_mathematics_without_gymnasium(tmp_path):
    names = [module.removesuffix(".__init__") for module in MODULES]
    code = f"""
import importlib, os, sys
import numpy, scipy.linalg, scipy.sparse.csgraph
for name in {names}:
    sys.stdout.flush()
    if not os.fork():
        importlib.import_module(name)
        print(name, "gymnasium" in sys.modules, flush=True)
        os._exit(0)
    os.wait()
"""
    found = dict(line.split() for line in python(code, tmp_path).splitlines())
    assert found.keys() == {*names}
    loading = {name for name, gymnasium in found.items() if gymnasium == "True"}
    assert {name.split(".")[1] for name in loading} == {"envs", "lab"}


def test_the_public_names_their_homes_and_their_types_are_the_same():
    tree = ast.parse((ROOT / "npg" / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    homes = {alias.name: node.module for node in typed.body for alias in node.names}
    assert homes.keys() == {*npg.__all__}
    assert {*npg.__all__} <= {*dir(npg)}
    for name, home in homes.items():
        module = importlib.import_module(f"npg.{home or name}")
        assert getattr(npg, name) is (getattr(module, name) if home else module)


@pytest.mark.process
def test_a_name_that_is_none_is_refused_and_a_missing_dependency_is_not_taken_for_one(tmp_path):
    with pytest.raises(AttributeError, match="module 'npg' has no attribute 'nosuch'"):
        npg.nosuch  # noqa: B018
    code = "import sys; sys.modules['gymnasium'] = None\nimport npg\ntry: npg.train\nexcept ImportError: print('said')"
    assert python(code, tmp_path) == "said\n"


@pytest.mark.process
def test_mypy_knows_the_public_names(tmp_path):
    (tmp_path / "user.py").write_text("import npg\nnpg.nosuch\nreveal_type(npg.Steps(1))\n")
    run = [sys.executable, "-m", "mypy", "--config-file", os.devnull, "--follow-imports=silent", "user.py"]
    env = os.environ | {"MYPYPATH": str(ROOT)}
    out = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True).stdout
    assert 'user.py:2: error: Module has no attribute "nosuch"' in out
    assert 'user.py:3: note: Revealed type is "npg.trajectories.Steps"' in out


def test_the_loop_the_runs_and_the_command_line_know_no_method():
    for module in ROOMS["lab"]:
        if module in ("presets", "cases"):
            continue
        text = (ROOT / "npg" / "lab" / f"{module}.py").read_text(encoding="utf-8").lower()
        for name in ALGORITHMS.keys() - {"npg"}:  # which is the name of the package too
            assert name not in text


def test_the_changelog_knows_the_version():
    assert importlib.metadata.version("npg") == npg.__version__
    assert f"{npg.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.process
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


def blocks(page: str) -> list[str]:
    """The Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec("".join(blocks("README.md")).replace("300_000", "3_000"), {})
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("True ") for line in lines)
    bias, variance = map(float, lines[-2:])
    assert bias < 1e-12 < variance


def test_the_python_of_the_examples_page_runs(capsys):
    exec("".join(blocks("examples/README.md")), {})
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("gain and divergence"))
    gain, divergence = map(float, line.split()[-2:])
    assert gain > 0
    assert divergence == pytest.approx(0.01, rel=0.1)


def test_what_the_readme_quotes_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    quotes = re.findall(r"\]\((\S+)\):\n\n(?:```py|\$\$)\n(.*?)\n(?:```|\$\$)$", text, flags=re.M | re.S)
    assert [Path(path).suffix for path, _ in quotes] == [".md", ".py", ".py"]
    for path, quoted in quotes:
        whole, part = ([line.strip() for line in t.splitlines()] for t in ((ROOT / path).read_text("utf-8"), quoted))
        assert part in (whole[i : i + len(part)] for i in range(len(whole))), path


def test_the_method_that_contributing_writes_is_one(monkeypatch):
    spec = importlib.util.spec_from_loader("npg.algorithms.vpg", loader=None)
    module = importlib.util.module_from_spec(spec)
    (code,) = blocks("CONTRIBUTING.md")
    exec(code, vars(module))
    monkeypatch.setitem(ALGORITHMS, "vpg", module.VPG)
    env = npg.make_vec("CartPole-v1", 16)
    agent = npg.make_agent("vpg", env, scale=[2.4, 3.0, 0.21, 3.0])
    history = npg.train(agent, env, steps=50_000, seed=0)
    assert npg.make_agent(env=env, **agent.config) == agent
    assert history["mean_return"][-1] > 4 * history["mean_return"][0]


@pytest.mark.process
def test_every_example_imports_what_there_is_and_says_what_it_takes(tmp_path):
    code = f"""
import os, runpy, sys
import matplotlib.figure, npg.lab.training, scipy.stats
for script in {sorted(map(str, (ROOT / "examples").glob("*.py")))}:
    sys.stdout.flush()
    if not os.fork():
        sys.argv, sys.path[0] = [script, "--help"], os.path.dirname(script)
        runpy.run_path(script, run_name="__main__")
    assert os.wait()[1] == 0, script
"""
    shown = re.findall(r"^usage: (\w+)\.py", python(code, tmp_path), flags=re.M)
    assert shown == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
    assert list(tmp_path.iterdir()) == []
