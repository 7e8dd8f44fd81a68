"""Files that are copied unchanged into a written checkpoint, and a check that they belong to the source.

A checkpoint's folder may hold symbolic links: those of the Hugging Face cache point from `snapshots/REVISION` to the
folder `blobs` next to it. A link that points elsewhere could copy any file of this machine into the written checkpoint,
which may be published.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""Files of a vision-language model that describe how pictures are turned into tokens."""
LICENSE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt", "USE_POLICY.md")
"""The terms of a model, which most licenses ask to be handed on with its weights."""
_TEMPLATES = ("chat_template.jinja", "additional_chat_templates")


def copy_own(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Copy the files of these names from the checkpoint `source` into `folder`, where it has them.

    A link to a file outside the checkpoint is left out, with a warning.
    """
    for name in names:
        file = source / name
        if file.is_file() and _is_own(file, source):
            shutil.copyfile(file, folder / name)


def drop_foreign_templates(source: Path, folder: Path) -> None:
    """Remove chat templates from `folder` that the tokenizer read through a link to a file outside `source`.

    A warning says so for each.
    """
    for name in _TEMPLATES:
        place = source / name
        inside = sorted(place.iterdir()) if place.is_dir() else []
        for file in [place, *inside]:
            made = folder / file.relative_to(source)
            if file.exists() and made.exists() and not _is_own(file, source):
                shutil.rmtree(made) if made.is_dir() else made.unlink()


def _is_own(file: Path, source: Path) -> bool:
    """Whether a file, with all links followed, is in the folder or in the cache that the folder is a snapshot of."""
    root, target = source.resolve(), file.resolve()
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    if any(target.is_relative_to(one) for one in roots):
        return True
    warnings.warn(f"{file} is a link to {target}, outside the checkpoint's folder: it is left out", stacklevel=2)
    return False
