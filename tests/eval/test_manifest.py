"""Manifests identify a measurement; an unchanged model is no result."""

import pytest
import torch
from safetensors.torch import save_file

from negpo.data.qa import QATemplate
from negpo.errors import ConfigError
from negpo.eval.manifest import build_manifest, refuse_unchanged
from negpo.models import checkpoint_tensors, hash_tokenizer, local_checkpoint


@pytest.fixture
def manifest(make_model, tiny_tokenizer):
    def build(model=None, template=None, **settings):
        return build_manifest(
            model or make_model(0),
            tiny_tokenizer,
            benchmark="tofu",
            settings=settings,
            data={"rows": 3},
            template=template or QATemplate(),
            name="m",
        )

    return build


def test_the_hash_sees_weights_template_and_settings_and_nothing_else(manifest, make_model, tiny_tokenizer):
    first = manifest(limit=3)
    tiny_tokenizer("a b", truncation=True, max_length=1)  # leaves truncation switched on inside the tokenizer
    assert manifest(limit=3)["hash"] == first["hash"]
    others = [manifest(make_model(1), limit=3), manifest(limit=4), manifest(template=QATemplate(user_end=" "), limit=3)]
    assert len({first["hash"], *(other["hash"] for other in others)}) == 4
    assert torch.__version__.startswith(first["versions"]["torch"].split("+")[0])
    assert first["dtype"] == "float32"


def test_the_tokenizer_hash_is_stable(tiny_tokenizer):
    assert hash_tokenizer(tiny_tokenizer) == hash_tokenizer(tiny_tokenizer)


def save(folder, tensors, shards=1):
    folder.mkdir()
    names = sorted(tensors)
    for i in range(shards):
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / f"model-{i}.safetensors", metadata={"note": str(folder)})
    return folder


def test_equal_weights_are_refused_however_they_are_stored(tmp_path):
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    target = save(tmp_path / "target", weights)
    with pytest.raises(ConfigError, match="nothing was unlearned"):
        refuse_unchanged(save(tmp_path / "sharded", weights, shards=2), target)
    with pytest.raises(ConfigError, match="nothing was unlearned"):
        refuse_unchanged(save(tmp_path / "untied", {**weights, "head": weights["a"].clone()}), target)
    assert len(checkpoint_tensors(target)) == 2


def test_changed_weights_pass_and_incomparable_ones_do_not(tmp_path):
    weights = {"a": torch.zeros(2), "b": torch.ones(2)}
    target = save(tmp_path / "target", weights)
    refuse_unchanged(save(tmp_path / "changed", {**weights, "a": torch.full((2,), 1e-7)}), target)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no safetensors"):
        refuse_unchanged(tmp_path / "empty", target)
    with pytest.raises(ConfigError, match="neither a folder nor a Hub id"):
        local_checkpoint("nobody/no-such-model")
