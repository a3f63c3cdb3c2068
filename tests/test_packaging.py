"""The set-up files agree with one another: manifest, locks, Makefile, metadata, and the list of what is where."""

import itertools
import re
import shlex
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import hepattn

ROOT = Path(__file__).parents[1]
TORCH_NEEDS = {"filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec", "setuptools"}

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="these files are in a checkout only")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))


@cache
def pixi() -> dict[str, Any]:
    return tomllib.loads(text("pixi.toml"))


def statements(name: str) -> list[str]:
    """The requirements of a pip file: comments dropped, continued lines joined, hashes kept."""
    joined = text(name).replace("\\\n", " ")
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]


@cache
def locked() -> dict[str, list[tuple[Requirement, int]]]:
    """requirements.lock: name -> its entries (several where markers differ) with the number of hashes of each."""
    out: dict[str, list[tuple[Requirement, int]]] = {}
    for line in statements("requirements.lock"):
        head, *hashes = line.split(" --hash=")
        entry = Requirement(head.strip())
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip()) for one in hashes), head
        out.setdefault(canonicalize_name(entry.name), []).append((entry, len(hashes)))
    return out


def direct() -> list[Requirement]:
    """What pyproject.toml (with the extras of the lock) and requirements.in ask for by name."""
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *extras["sim"], *extras["dev"], *statements("requirements.in")]
    return [Requirement(line) for line in named]


# -- metadata ----------------------------------------------------------------------------------------------------------


def test_metadata():
    project = pyproject()["project"]
    assert project["name"] == "hepattn"
    assert project["scripts"] == {"hepattn": "hepattn.cli:main"}
    assert SpecifierSet(project["requires-python"]) == SpecifierSet(">=3.11")
    assert {"sim", "flash", "fa4", "dev"} == set(project["optional-dependencies"])


def test_versions_agree():
    version = pyproject()["project"]["version"]
    assert hepattn.__version__ == version
    assert re.search(rf"^version: {re.escape(version)}$", text("CITATION.cff"), re.MULTILINE)
    assert re.search(rf"^## {re.escape(version)}\b", text("CHANGELOG.md"), re.MULTILINE)


def test_licence_is_whole():
    licence = text("LICENSE")
    assert pyproject()["project"]["license"] == "Apache-2.0"
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


# -- requirements.lock -------------------------------------------------------------------------------------------------


def test_lock_pins_everything_by_version_and_hash():
    for entries in locked().values():
        for entry, hashes in entries:
            assert hashes > 0, entry
            assert [one.operator for one in entry.specifier] == ["=="], entry
            assert entry.url is None, entry


@pytest.mark.parametrize("wanted", direct(), ids=str)
def test_lock_has_what_is_asked_for(wanted):
    name = canonicalize_name(wanted.name)
    if name == "torch":
        assert name not in locked(), "torch must stay out of the hash lock: the machine chooses its build"
        return
    assert name in locked()
    for entry, _ in locked()[name]:
        version = next(iter(entry.specifier)).version
        assert wanted.specifier.contains(version, prereleases=True), f"{entry} is locked, {wanted} is asked for"


def test_lock_has_what_torch_needs():
    assert locked().keys() >= TORCH_NEEDS


def test_lock_has_the_build_backend():
    """So that `--no-build-isolation` installs the project without fetching anything."""
    for line in pyproject()["build-system"]["requires"]:
        backend = Requirement(line)
        for entry, _ in locked()[canonicalize_name(backend.name)]:
            assert backend.specifier.contains(next(iter(entry.specifier)).version)
    assert "editables" in locked()


def test_one_version_of_torch_everywhere():
    asked = {
        "Makefile": r"^TORCH \?= (torch==\S+)$",
        "pixi.toml": r"(torch==[^\s\"]+)\"",
        "no-torch.override": r"^(torch==\S+) ;",
    }
    found = {one for name, pattern in asked.items() for one in re.findall(pattern, text(name), re.MULTILINE)}
    assert len(found) == 1
    wanted = next(Requirement(line) for line in pyproject()["project"]["dependencies"] if line.startswith("torch"))
    assert wanted.specifier.contains(Version(found.pop().partition("==")[2]))


# -- pixi --------------------------------------------------------------------------------------------------------------


def test_pixi_lock_satisfies_the_manifest():
    """The conda half of pixi's own check: same channels and platforms, all that is asked for is locked, and no more."""
    rattler = pytest.importorskip("rattler")
    lock = rattler.LockFile.from_path(ROOT / "pixi.lock")
    workspace = pixi()["workspace"]
    environments = dict(lock.environments())
    assert set(environments) == {"default"}
    environment = environments["default"]
    channels = [repr(channel) for channel in environment.channels()]
    assert len(channels) == len(workspace["channels"])
    assert all(f"/{name}/" in shown for name, shown in zip(workspace["channels"], channels, strict=True))
    platforms = environment.platforms()
    assert sorted(platform.name for platform in platforms) == sorted(workspace["platforms"])
    for platform in platforms:
        records = environment.conda_repodata_records_for_platform(platform)
        by_name = {record.name.normalized: record for record in records}
        assert len(by_name) == len(records), f"{platform.name}: a package is locked twice"
        used = set()
        todo = [f"{name} {version}" for name, version in pixi()["dependencies"].items()]
        while todo:
            wanted = rattler.MatchSpec(todo.pop())
            name = str(getattr(wanted.name, "normalized", wanted.name))
            if name.startswith("__"):
                continue  # a virtual package: the machine itself
            assert name in by_name, f"{platform.name}: nothing is locked for {wanted}"
            assert wanted.matches(by_name[name]), f"{platform.name}: {by_name[name]} is locked for {wanted}"
            if name not in used:
                used.add(name)
                todo += by_name[name].depends
        assert used == set(by_name), f"{platform.name}: locked, and nothing asks for it: {set(by_name) - used}"
        assert all(record.sha256 and record.size for record in records)


def test_pixi_python_is_one_that_the_package_allows():
    python = pixi()["dependencies"]["python"].removesuffix(".*")
    assert SpecifierSet(pyproject()["project"]["requires-python"]).contains(python)


def test_pixi_brings_no_index_packages():
    """Index packages come from requirements.lock, which serves make too; in pixi.lock each would name a file host."""
    assert "pypi-dependencies" not in pixi()
    assert "pypi:" not in text("pixi.lock")


def commands_of_make(target: str) -> list[list[str]]:
    """What `make target` runs, without the environment's PATH."""
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n?)+)", text("Makefile"), re.MULTILINE)
    assert recipe, f"no target {target}"
    lines = [line.strip().replace("$(IN_VENV)", "").replace("$(PYTEST)", "") for line in recipe[1].splitlines()]
    return [shlex.split(line) for line in lines]


def commands_of_pixi(task: str) -> list[list[str]]:
    """What `pixi run task` runs, with its environment variables in front."""
    entry = pixi()["tasks"][task]
    variables = [f"{name}={value}" for name, value in entry.get("env", {}).items()]
    return [variables + shlex.split(command) for command in entry["cmd"].split("&&")]


@pytest.mark.parametrize("word", ["lint", "test"])
def test_make_and_pixi_run_the_same(word):
    assert commands_of_make(word) == commands_of_pixi(word)


def test_make_and_pixi_open_notebooks_whose_training_does_not_stall():
    (opened,) = commands_of_make("lab")
    assert opened[:3] == ["GOMP_SPINCOUNT=0", "jupyter", "lab"]
    assert commands_of_pixi("jupyter") == [opened[:2]]


def test_both_lint_before_they_test():
    assert re.search(r"^test: lint$", text("Makefile"), re.MULTILINE)
    assert pixi()["tasks"]["test"]["depends-on"] == ["lint"]


def test_make_and_pixi_install_the_same_in_the_same_order():
    installs = re.findall(r"^\t\$\(UV_INSTALL\) (.*)$", text("Makefile"), re.MULTILINE)
    torch = re.search(r"^TORCH \?= (\S+)$", text("Makefile"), re.MULTILINE)
    assert torch
    tasks = pixi()["tasks"]
    chain = [tasks[name]["cmd"].partition("bin/python ")[2] for name in tasks["install"]["depends-on"]]
    assert [one.replace("$(TORCH)", torch[1]) for one in installs] == chain
    order = tasks["install"]["depends-on"]
    assert all(tasks[after]["depends-on"] == [before] for before, after in itertools.pairwise(order))


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text()
    assert "make test" in script.read_text()


# -- the tree ----------------------------------------------------------------------------------------------------------

WHAT_IS_WHERE = {
    ".": "README.md pixi.toml pixi.lock pyproject.toml Makefile LICENSE CITATION.cff CHANGELOG.md .gitignore .ci/run "
    "requirements.in requirements.lock",
    "hepattn": "__init__.py sequence.py cli.py info.py",
    "hepattn/masks": "window.py strided.py tokens.py dense.py compose.py",
    "hepattn/attention": "functional.py module.py weights.py reference.py",
    "hepattn/attention/backends": "sdpa.py flex.py flash.py registry.py",
    "hepattn/encodings": "__init__.py",
    "hepattn/layers": "__init__.py",
    "hepattn/models": "encoder.py hit_filter.py losses.py",
    "hepattn/data": "schema.py trackml.py features.py dataset.py sample.py simulation/cli.py",
    "hepattn/metrics": "filter.py intervals.py",
    "hepattn/plotting": "__init__.py",
    "hepattn/training": "cli.py",
    "hepattn/configs": "hit_filter.yaml",
    "notebooks": "README.md images/event.png",
    "data": "README.md",
}
"""Folder -> files that the README's list of what is where, or another file here, counts on."""


@pytest.mark.parametrize("folder", WHAT_IS_WHERE)
def test_what_the_layout_lists_exists(folder):
    missing = [name for name in WHAT_IS_WHERE[folder].split() if not (ROOT / folder / name).is_file()]
    assert not missing


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_index_host_is_named():
    """The machine's own settings say where packages come from; a file that names a host would overrule them."""
    # written in pieces, so that this file doesn't name them either
    words = ["py" + r"pi\.org", "python" + "hosted", r"download\.py" + "torch", r"--(?:extra-)?index" + "-url"]
    hosts = re.compile("|".join(words))
    found = []
    for path in tracked():
        if path.is_file() and b"\0" not in (raw := path.read_bytes()):
            found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in hosts.finditer(raw.decode("utf-8", "replace"))]
    assert not found


def test_no_file_is_large():
    """Everything in the repository is small enough to clone in a moment; 16 MiB is the most that one file may take."""
    large = [f"{path.relative_to(ROOT)}" for path in tracked() if path.is_file() and path.stat().st_size > 16 * 2**20]
    assert not large
