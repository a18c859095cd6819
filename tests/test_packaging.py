"""What is shipped beside the code: a wheel with everything in it, a Dockerfile that pins what was tried, citation."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
STACKS = sorted((ROOT / "scripts" / "stacks").glob("*.txt"))


def pins(path):
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return {Requirement(line).name: Requirement(line).specifier for line in lines if line}


def declared():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {Requirement(line).name: Requirement(line).specifier for line in project["dependencies"]}


@pytest.mark.parametrize("path", STACKS, ids=lambda path: path.stem)
def test_every_set_of_versions_lies_inside_the_declared_ranges(path):
    for name, specifier in pins(path).items():
        (exact,) = specifier
        assert exact.operator == "=="
        assert declared()[name].contains(exact.version), f"{name} {exact.version} is outside {declared()[name]}"


def test_the_dockerfile_pins_its_base_and_a_set_and_runs_as_a_user():
    text = (ROOT / "Dockerfile").read_text()
    instructions = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    names = [line.split()[0] for line in instructions]
    assert set(names) <= {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert re.fullmatch(r"FROM \S+:\d+\.\d+\.\d+\S*", instructions[0])
    stack = re.search(r"pip install -r (\S+)", text).group(1)
    assert ROOT / stack in STACKS
    assert "--no-install-recommends" in text
    assert "rm -rf /var/lib/apt/lists" in text
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert instructions[names.index("ENTRYPOINT")].split(maxsplit=1)[1].startswith("[")
    for line in instructions:
        if line.startswith("COPY"):
            assert (ROOT / line.split()[1]).exists()


def test_the_citation_names_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_a_built_wheel_holds_the_symlinked_folders_and_nothing_at_the_top(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    copy = tmp_path / "checkout"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if files.returncode:
        pytest.skip("not a git checkout")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
    done = subprocess.run([*command, str(copy)], capture_output=True, text=True, check=False)
    if "No module named 'setuptools'" in done.stderr or "BackendUnavailable" in done.stderr:
        pytest.skip("setuptools is not installed, and nothing is downloaded here")
    assert done.returncode == 0, done.stderr[-2000:]
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for needed in ("trainers/npo.py", "eval/tofu.py", "configs/recipes/npo/tofu_forget10.yaml", "py.typed"):
        assert f"negpo/{needed}" in names
    assert {name.split("/")[0] for name in names} == {"negpo", "negpo-0.1.0.dist-info"}
