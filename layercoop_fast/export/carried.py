"""Files that a written checkpoint takes over as they are, and which of them may be read.

A checkpoint's folder may hold symbolic links: those of the Hugging Face cache lead from `snapshots/REVISION` to `blobs`
beside it. A link that leads elsewhere could put any file of this machine into what is written, and perhaps published.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""How pictures are cut, of a vision-language model."""
_TEMPLATES = ("chat_template.jinja", "additional_chat_templates")


def copy_own(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Copy the files of these names that the checkpoint `source` has into `folder`; a link that leaves it is left out.

    Of each that is left out one warning says so.
    """
    for name in names:
        file = source / name
        if file.is_file() and _is_own(file, source):
            shutil.copyfile(file, folder / name)


def drop_foreign_templates(source: Path, folder: Path) -> None:
    """Remove chat templates from `folder` that the tokenizer read through a link that leaves the checkpoint `source`.

    Of each that is removed one warning says so.
    """
    for name in _TEMPLATES:
        place = source / name
        inside = sorted(place.iterdir()) if place.is_dir() else []
        for file in [place, *inside]:
            made = folder / file.relative_to(source)
            if file.exists() and made.exists() and not _is_own(file, source):
                shutil.rmtree(made) if made.is_dir() else made.unlink()


def _is_own(file: Path, source: Path) -> bool:
    """Whether a file, with all links followed, lies in the folder or in the cache that the folder is a snapshot of."""
    root, target = source.resolve(), file.resolve()
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    if any(target.is_relative_to(one) for one in roots):
        return True
    warnings.warn(f"{file} leads out of the checkpoint's folder, to {target}: it is left out", stacklevel=2)
    return False
