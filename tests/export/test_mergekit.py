"""MergeKit recipes: their slices expand to the kept layers, and what no recipe can say is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from layercoop_fast.errors import RequestError
from layercoop_fast.export.mergekit import kept_of, passthrough, write_passthrough

LLAMA = {"model_type": "llama", "num_hidden_layers": 4, "dtype": "bfloat16"}


def pruned_folder(folder: Path, record: dict[str, Any], config: dict[str, Any] = LLAMA) -> Path:
    folder.mkdir(exist_ok=True)
    base = {"model": "org/base", "removed": [1, 2], "kept": [0, 3, 4, 5], "repair": None}
    (folder / "layercoop.json").write_text(json.dumps({**base, **record}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_slices_are_runs_of_kept_layers(tmp_path: Path) -> None:
    kept = write_passthrough(pruned_folder(tmp_path / "p", {}), tmp_path / "recipe.yaml")
    assert kept == [0, 3, 4, 5]
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == {
        "merge_method": "passthrough",
        "dtype": "bfloat16",
        "slices": [
            {"sources": [{"model": "org/base", "layer_range": [0, 1]}]},
            {"sources": [{"model": "org/base", "layer_range": [3, 6]}]},
        ],
    }


def test_any_kept_layers_come_back_and_any_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a/b", "C:\\x y", "näme: #1", "'\"\n", "modèle 🦙", "x " * 200):
        kept = np.flatnonzero(rng.random(40) < 0.6).tolist()
        text = passthrough(kept, name, "float16")
        assert kept_of(text) == kept
        assert yaml.safe_load(text)["slices"][0]["sources"][0]["model"] == name


def test_a_list_of_kinds_is_told_of(tmp_path: Path) -> None:
    config = {**LLAMA, "layer_types": ["full_attention"] * 4}
    write_passthrough(pruned_folder(tmp_path / "p", {}, config), tmp_path / "recipe.yaml")
    text = (tmp_path / "recipe.yaml").read_text()
    assert "cut that list to 4 elements" in text
    assert kept_of(text) == [0, 3, 4, 5]


@pytest.mark.parametrize(
    ("record", "config", "reason"),
    [
        ({"removed": ["1.mlp"], "kept": [0, "1.attn", 2]}, {}, r"half a layer was removed \(1.mlp\)"),
        ({"repair": {"kept": True}}, {}, "a repair changed those of this model"),
        ({"healing": {"kept": True}}, {}, "healing changed those of this model"),
        ({"quantised": "nf4"}, {}, "quantisation changed those of this model"),
        ({}, {"layer_types": ["sliding_attention", "full_attention"]}, "would not renumber `layer_types`"),
        ({}, {"mlp_only_layers": [1]}, "would not renumber `mlp_only_layers`"),
        ({}, {"first_k_dense_replace": 1}, "would not renumber `first_k_dense_replace`"),
        ({}, {"attn_layer_period": 1}, "`attn_layer_period` of the base's config, which is not on this machine"),
        ({"model": None, "repair": 3}, {}, "damaged"),
    ],
)
def test_what_mergekit_cannot_make_is_refused(
    record: dict[str, Any], config: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = pruned_folder(tmp_path / "p", record, {**LLAMA, **config})
    with pytest.raises(RequestError, match=reason):
        write_passthrough(folder, tmp_path / "recipe.yaml")
    assert not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("base", "pruned", "name"),
    [
        ({"attn_layer_period": 4, "attn_layer_offset": 2}, {"attn_layer_period": 1}, "attn_layer_offset"),
        ({"decoder_sparse_step": 2}, {"decoder_sparse_step": 1, "mlp_only_layers": []}, "decoder_sparse_step"),
        ({"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_by_inverse_layer_idx": False}, "scale_attn_by_inv"),
        ({"mlp_only_layers": [1]}, {"mlp_only_layers": []}, "mlp_only_layers"),
        ({"layer_types": ["a", "b"]}, {"layer_types": ["a"]}, "layer_types"),
    ],
)
def test_the_config_of_the_base_is_compared(
    base: dict[str, Any], pruned: dict[str, Any], name: str, tmp_path: Path
) -> None:
    """MergeKit writes the base's fields, and what `prune` wrote in their place is lost."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({**LLAMA, **base}))
    folder = pruned_folder(tmp_path / "p", {"model": str(tmp_path / "base")}, {**LLAMA, **pruned})
    with pytest.raises(RequestError, match=f"`{name}"):
        write_passthrough(folder, tmp_path / "recipe.yaml")
    (tmp_path / "base" / "config.json").write_text(json.dumps({**LLAMA, **pruned}))
    assert write_passthrough(folder, tmp_path / "recipe.yaml") == [0, 3, 4, 5]


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "merge_method: linear\nslices: []",
        "merge_method: passthrough\nslices: 3",
        passthrough([0, 1], "a").replace("passthrough", "slerp"),
        passthrough([0, 2], "a").replace('"a"', '"b"', 1),
        passthrough([0, 2], "a").replace("[0, 1]", "[0, 99999999]"),
        passthrough([0, 2], "a").replace("[0, 1]", "[1, 1]"),
    ],
)
def test_recipes_that_are_something_else(text: str) -> None:
    with pytest.raises(RequestError, match="the recipe"):
        kept_of(text)
