"""The layout the library promises: links, wheel contents, public names, light imports."""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("trainers", "eval", "configs")
OBJECTIVES = [
    "nll_loss",
    "ga_loss",
    "npo_loss",
    "simnpo_loss",
    "dpo_loss",
    "kto_loss",
    "wga_loss",
    "tnpo_loss",
    "satimp_loss",
    "catnip_loss",
    "retain_kl",
    "redi_loss",
    "d2o_loss",
    "lipo_loss",
    "aft_loss",
    "step_dpo_loss",
    "n_pair_loss",
    "group_advantages",
    "ngrpo_advantages",
    "signed_advantages",
    "raft_advantages",
    "reinforce_rej_advantages",
    "clipped_policy_loss",
    "nft_loss",
    "resrl_token_weights",
    "topr_loss",
]
METRICS = [
    "truth_ratio",
    "aggregate_truth_ratio",
    "forget_quality",
    "model_utility",
    "extraction_strength",
    "exact_memorization",
    "min_k",
    "min_k_plus_plus",
    "privleak",
    "rouge_recall",
    "pass_at_k",
]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory) -> list[str]:
    """File names in a wheel built from a copy of this tree, without network."""
    if find_spec("setuptools") is None:
        pytest.skip("needs setuptools to build a wheel offline")
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    for name in ("negpo", *LINKED):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = "-m pip wheel --quiet --no-build-isolation --no-deps --no-index --wheel-dir"
    subprocess.run([sys.executable, *command.split(), str(folder), str(tree)], check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize("name", LINKED)
def test_top_level_folders_import_through_relative_links(name):
    link = ROOT / "negpo" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name
    assert importlib.import_module(f"negpo.{name}").__name__ == f"negpo.{name}"


def test_the_wheel_holds_every_module_and_every_recipe(wheel_names):
    tracked = [path for name in LINKED for path in (ROOT / name).rglob("*") if path.suffix in {".py", ".yaml", ".json"}]
    expected = {f"negpo/{path.relative_to(ROOT).as_posix()}" for path in tracked}
    expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "negpo").rglob("*.py")}
    assert expected <= set(wheel_names)
    assert "negpo/py.typed" in wheel_names


def test_the_wheel_puts_nothing_but_negpo_at_the_top_of_site_packages(wheel_names):
    tops = {name.split("/")[0] for name in wheel_names}
    assert [top for top in tops if not top.endswith(".dist-info")] == ["negpo"]


def test_templates_and_other_package_data_are_in_the_wheel(wheel_names):
    data = [path for kind in ("html", "jinja", "css", "json") for path in (ROOT / "negpo").rglob(f"*.{kind}")]
    assert {path.relative_to(ROOT).as_posix() for path in data if not path.is_symlink()} <= set(wheel_names)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_of_the_contract_has_keyword_only_hyper_parameters(name):
    function = getattr(importlib.import_module("negpo.objectives"), name)
    parameters = inspect.signature(function).parameters.values()
    floats = [p for p in parameters if isinstance(p.default, float)]
    assert all(p.kind is p.KEYWORD_ONLY for p in floats), f"{name}: {floats}"


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_the_contract_is_importable(name):
    assert callable(getattr(importlib.import_module("negpo.eval.metrics"), name))


def test_token_logprobs_has_the_promised_signature():
    from negpo.logprobs import token_logprobs

    parameters = inspect.signature(token_logprobs).parameters
    assert list(parameters)[:4] == ["hidden", "lm_head_weight", "labels", "mask"]
    assert parameters["bias"].default is None
    assert parameters["temperature"].default == 1.0


def test_grade_has_the_promised_signature():
    from negpo.rewards import grade

    parameters = inspect.signature(grade).parameters
    assert list(parameters)[:2] == ["response", "gold"]
    assert parameters["kind"].default is None
    assert parameters["mode"].default == "default"


def test_import_negpo_loads_nothing_heavy():
    code = "import sys, negpo; print(sorted({'torch', 'numpy', 'transformers', 'trl'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_objectives_import_torch_and_nothing_above_it():
    for path in (ROOT / "negpo" / "objectives").glob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        allowed = [name.split(".")[0] in {"torch", *sys.stdlib_module_names} for name in imported]
        own = [name.startswith("negpo.objectives") for name in imported]
        assert all(a or o for a, o in zip(allowed, own, strict=True)), path


def test_imports_go_down_only_and_nowhere_in_a_circle():
    """The contracts of pyproject.toml, which say the order of the layers."""
    pytest.importorskip("importlinter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_layers_hold_every_module_of_the_top_level_and_the_linked_folders():
    """A contract over a graph from which the linked folders are missing would always be kept."""
    grimp = pytest.importorskip("grimp")
    modules = grimp.build_graph("negpo", cache_dir=None).modules
    for name in ("trainers", "eval", "lab", "rewards"):
        files = {path.stem for path in (ROOT / "negpo" / name).glob("*.py")} - {"__init__"}
        assert {f"negpo.{name}.{stem}" for stem in files} <= modules


def test_configs_of_accelerate_load_and_name_files_that_exist():
    from accelerate.commands.config.config_args import load_config_from_file

    folder = ROOT / "configs" / "accelerate"
    assert {path.stem for path in folder.glob("*.yaml")} >= {"cpu", "single", "ddp", "zero1", "zero2", "zero3", "fsdp2"}
    for path in folder.glob("*.yaml"):
        config = load_config_from_file(str(path))
        file = (getattr(config, "deepspeed_config", None) or {}).get("deepspeed_config_file")
        assert file is None or (ROOT / file).is_file(), path


def test_stage_3_leaves_the_train_batch_size_out():
    import json

    for path in (ROOT / "configs" / "deepspeed").glob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        assert "train_batch_size" not in config, f"{path}: 'auto' fails inside zero.Init"
