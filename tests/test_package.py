"""What is installed: the layout promises of setup.py, and the stated requirements."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from package_helpers import ROOT, copy_of_the_clone
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from promot_t5x import __version__, config
from promot_t5x.launch import package
from promot_t5x.launch.commands import Redactor, Shell

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the repository, as the launchers build it for other machines."""
    out = tmp_path_factory.mktemp("wheel")
    name = package.stage(out, None, Shell(dry=False, redact=Redactor({})))
    return zipfile.ZipFile(out / name)


def python_files(directory: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / directory).rglob("*.py")}


def test_wheel_holds_every_module_task_and_gin_file_and_nothing_else(wheel):
    expected = python_files("promot_t5x")
    expected |= {f"promot_t5x/{name}" for name in python_files("tasks") | python_files("launch")}
    gin = {str(path.relative_to(ROOT)) for path in (ROOT / "gin").rglob("*.gin")}
    expected |= {f"promot_t5x/{name}" for name in gin}
    assert gin
    base = {path.name for path in (ROOT / "tasks" / "tiny" / "base").iterdir()}
    assert base == {"checkpoint", "recipe.gin", "training.jsonl", "card.json"}
    expected |= {"promot_t5x/py.typed", *(f"promot_t5x/tasks/tiny/base/{name}" for name in base)}
    expected |= {f"promot_t5x/report/{name}" for name in ("page.css", "examples.js")}
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_installed_wheel_runs_from_anywhere(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from promot_t5x import tasks\n"
        "from promot_t5x.checkpoints import open_checkpoint\n"
        "from promot_t5x import config\n"
        "assert open_checkpoint('tiny_world').shapes\n"
        "print(config.gin_root(), tasks.__file__, sep='\\n')\n"
        "config.parse(['models/t5_1_1_small.gin', 'gin/models/byte_vocabulary.gin'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    gin_root, tasks_file = done.stdout.splitlines()
    assert gin_root == str(tmp_path / "site/promot_t5x/gin")
    assert tasks_file == str(tmp_path / "site/promot_t5x/tasks/__init__.py")


WHERE = "from promot_t5x import config, launch, tasks; print(config.gin_root(), tasks.__file__)"


def test_editable_install_finds_tasks_and_gin_from_anywhere(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WHERE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    package = ROOT / "promot_t5x"
    assert done.stdout.split() == [str(package / "gin"), str(package / "tasks/__init__.py")]


def test_plain_checkout_imports_from_its_path(tmp_path):
    clone = copy_of_the_clone(tmp_path)
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import site, sys; sys.path[:0] = [{str(clone)!r}]; "
         f"sys.path += {[path for path in sys.path if 'site-packages' in path]!r}; {WHERE}"],
        cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    package = clone / "promot_t5x"
    assert done.stdout.split() == [str(package / "gin"), str(package / "tasks/__init__.py")]


def test_source_archive_builds_the_same_wheel(wheel, tmp_path):
    (tmp_path / "clone").mkdir()
    clone = copy_of_the_clone(tmp_path / "clone")
    code = f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, check=True)
    (archive,) = tmp_path.glob("promot_t5x-*.tar.gz")
    subprocess.run(["tar", "xf", archive.name], cwd=tmp_path, check=True)
    source = tmp_path / archive.name.removesuffix(".tar.gz")
    code = f"import setuptools.build_meta as b; b.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, check=True)
    (built,) = tmp_path.glob("promot_t5x-*.whl")
    assert set(zipfile.ZipFile(built).namelist()) == set(wheel.namelist())


def test_copy_without_links_says_what_is_wrong(tmp_path):
    clone = copy_of_the_clone(tmp_path)
    for name in ("tasks", "launch", "gin"):
        (clone / "promot_t5x" / name).unlink()
        (clone / "promot_t5x" / name).write_text(f"../{name}")  # what Windows makes of a link
    for words in (["setup.py", "--version"], ["-m", "promot_t5x", "--help"]):
        done = subprocess.run([sys.executable, *words], cwd=clone, capture_output=True, text=True)
        assert done.returncode
        assert "without its symbolic links" in done.stderr


def test_gin_is_data_not_python():
    assert not list((ROOT / "gin").rglob("*.py"))
    import gin

    assert Path(gin.__file__).parent != ROOT / "gin"


def test_every_shipped_gin_file_registers_dynamically():
    for path in config.gin_root().rglob("*.gin"):
        text = path.read_text(encoding="utf-8")
        assert "from __gin__ import dynamic_registration" in text, path


# Where Python 3.11 has other releases than its successors.
BY_PYTHON = r"(; python_version (<|>=) '3\.12')?"


def requirements():
    """What `make` installs."""
    extras = ("test", "docs", "languages", "mecab", "tokenizers")
    return [
        *PROJECT["dependencies"],
        *(r for e in extras for r in PROJECT["optional-dependencies"][e]),
    ]


def test_requirements_are_bounded_and_name_one_tensorflow():
    for requirement in requirements():
        assert re.search(rf">=[\d.]+,<[\d.]+{BY_PYTHON}$", requirement), requirement
    names = {re.split(r"[\[<>=]", each)[0] for each in PROJECT["dependencies"]}
    assert "t5" not in names
    assert not names & {"tensorflow-cpu", "tf-nightly", "tfds-nightly", "tensorflow-gpu"}


# After jax 0.10 a class was gone that flax was made of until it left it, too: only the pairs that
# were tested may meet.
@pytest.mark.parametrize(
    ("jax", "flax", "pythons"),
    [
        ("0.10.2", "0.12.8", {"3.11"}),
        ("0.12.0.1", "0.12.12", {"3.12", "3.13"}),
        ("0.11.1", "0.12.8", set()),
        ("0.12.0.1", "0.12.8", set()),
        ("0.10.2", "0.12.12", set()),
    ],
)
def test_only_combinations_that_import_are_allowed(jax, flax, pythons):
    wanted = [Requirement(each) for each in PROJECT["dependencies"]]

    def allows(name, version, python):
        found = [
            r for r in wanted if r.name == name and r.marker.evaluate({"python_version": python})
        ]
        return all(each.specifier.contains(version) for each in found)

    both = {
        p for p in ("3.11", "3.12", "3.13") if allows("jax", jax, p) and allows("flax", flax, p)
    }
    assert both == pythons


def test_constraints_pin_every_requirement_exactly():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(rf"[a-z0-9-]+==[\w.]+{BY_PYTHON}", pin) for pin in pins)
    pinned = {pin.partition("==")[0] for pin in pins}
    wanted = requirements()
    names = {re.split(r"[\[<>=]", each)[0].replace("_", "-").lower() for each in wanted}
    assert names <= pinned


def test_version_is_the_packages(wheel):
    metadata = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    text = wheel.read(metadata).decode()
    assert f"\nVersion: {__version__}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    assert "\nRequires-Python: <3.14,>=3.11\n" in text


def test_citation_names_paper_and_software():
    """By the rules of the format's version 1.2.0, on what the file uses of it."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert cited["title"] == "promot_t5x"
    assert cited["license"] == PROJECT["license"]
    assert "version" not in cited  # it has one place, promot_t5x/__init__.py
    paper = cited["preferred-citation"]
    assert {"type", "title", "authors"} <= set(paper)
    assert (paper["type"], paper["year"]) == ("conference-paper", 2024)
    assert [each["family-names"] for each in paper["authors"]] == (
        "Wang Si Li Lukasik Yu Hsieh Dhillon Kumar".split()
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert paper["url"] in readme
    assert all(set(each) <= {"family-names", "given-names"} for each in paper["authors"])


def test_the_pinned_versions_take_every_release_of_a_python():
    """Debian 12 has Python 3.11.2, where pip finds no version that asks for a later one."""
    first = f"{sys.version_info.major}.{sys.version_info.minor}.0"
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    named = {re.sub(r"[-_.]+", "-", name).lower() for name in pinned}
    found = {
        re.sub(r"[-_.]+", "-", each.metadata["Name"]).lower(): each.metadata["Requires-Python"]
        for each in importlib.metadata.distributions()
    }
    assert len(named & found.keys()) > 100
    asked = {name: found[name] for name in named & found.keys() if found[name]}
    assert [name for name, said in asked.items() if first not in SpecifierSet(said)] == []
