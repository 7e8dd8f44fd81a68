"""Bugs in what a pruned model is handed over with: card, hub, other hosts, MergeKit, adapters."""

from __future__ import annotations

from mutants.bug import Bug

ADAPTER, CARD = "tests/export/test_adapter.py", "tests/report/test_card.py"

BUGS = [
    Bug(
        "adapter-keeps-numbers",
        "layercoop_fast/export/adapter_config.py",
        old='return f"{self.prefix}{self.number[layer]}.{rest}"',
        new='return f"{self.prefix}{layer}.{rest}"',
        means="an adapter changes other layers of the pruned model than it was fitted to",
        tests=ADAPTER,
    ),
    Bug(
        "adapter-of-removed-half",
        "layercoop_fast/export/adapter.py",
        old="if tensor.dim() >= 2 and not tensor.any():",
        new="if tensor.dim() >= 2 and tensor.any():",
        means="an adapter brings a removed half back",
        tests=ADAPTER,
    ),
    Bug(
        "adapter-of-any-base",
        "layercoop_fast/export/adapter.py",
        old="    if own != other:",
        new="    if own == other:",
        means="an adapter of another model is taken, and one of this model refused",
        tests=ADAPTER,
    ),
    Bug(
        "recipe-one-layer-more",
        "layercoop_fast/export/mergekit.py",
        old="slices.append([layer, layer + 1])",
        new="slices.append([layer, layer + 2])",
        means="a MergeKit recipe takes removed layers",
        tests="tests/export/test_mergekit.py",
    ),
    Bug(
        "card-over-a-users-readme",
        "layercoop_fast/report/card.py",
        old='if before is not None and not is_own_card(before.decode("utf-8", "replace")):',
        new="if before is not None and not before:",
        means="a README that a user wrote is lost when a folder is replaced",
        tests=CARD,
    ),
    Bug(
        "card-with-paths",
        "layercoop_fast/report/card_sections.py",
        old='f"`{shown(model_name(record))}`"',
        new="f\"`{record['model']}`\"",
        means="a published model card says where files lie on the machine that pruned",
        tests=CARD,
    ),
    Bug(
        "push-in-public",
        "layercoop_fast/cli/push.py",
        old="] = True,\n    force",
        new="] = False,\n    force",
        means="a model is published that was to be private",
        tests="tests/export/test_push.py",
    ),
    Bug(
        "push-unchecked",
        "layercoop_fast/export/push.py",
        old="if digest != (entry.blob_id if lfs is None else lfs.sha256):",
        new="if not digest:",
        means="a damaged upload goes unnoticed",
        tests="tests/export/test_push.py",
    ),
    Bug(
        "host-counts-from-one",
        "layercoop_fast/export/hosts.py",
        old='"full_attention" if i % 2 else "sliding_attention"',
        new='"sliding_attention" if i % 2 else "full_attention"',
        means="a checkpoint that a host would misread is called sound",
        tests="tests/export/test_hosts.py",
    ),
    Bug(
        "own-configs-of-the-first-layers",
        "layercoop_fast/export/config.py",
        old="{renumbered[layer]: own for layer, own in own_of_layers.items() if layer in renumbered}",
        new="{layer: own for layer, own in own_of_layers.items() if layer < len(kept)}",
        means="a pruned Gemma 4 is built with the heads of other layers",
        tests="tests/export/test_config.py",
    ),
]
