"""What a checkpoint says of itself: its name on the hub, its license, its languages.

All of it comes from the base model's own README, which is not trusted: a value counts only where it has the form that
the hub asks for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layercoop_fast.inputs.text import read_text

README = "README.md"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]{0,63}")
_LINK = re.compile(r"[\w./:#?=&%+\-]{1,300}", re.ASCII)
_LANGUAGE = re.compile("[a-z]{2,3}")
_MOST_CARD_BYTES = 2**20


@dataclass(frozen=True)
class Base:
    """What is known of the model that was pruned.

    Attributes:
        id: its name on the hub, None where it was a folder.
        license: identifier of its license; `license_name` and `license_link` belong to one that is "other".
        languages: codes of its languages.
        pictures: whether it reads pictures too.
    """

    id: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    pictures: bool = False

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Base:
        """What a `layercoop.json` (its `model` and `base_model`) says, and the base's own README where it is at hand.

        `prune` knew whether `model` was a folder, and wrote its name on the hub as `base_model`. In a record without
        it, a name like ORG/NAME may be that of a folder which is not here: it counts where the hub's cache has it.
        """
        name = str(record["model"])
        if os.path.isdir(name):
            base = cls.of(name)
            return replace(base, id=fitting(record["base_model"], HUB_NAME)) if "base_model" in record else base
        if "base_model" not in record:
            return cls.of(name) if _is_cached(name) else cls()
        named = fitting(record["base_model"], HUB_NAME)
        return cls() if named is None else replace(cls.of(named), id=named)

    @classmethod
    def of(cls, name: str) -> Base:
        """What a checkpoint folder or hub name says of itself in its own README.

        Of a hub name it is the README that was fetched with the model, if it was: nothing is fetched here. A name like
        ORG/NAME that is no folder here is taken for one of the hub.
        """
        folder = Path(name)
        own = name if not folder.exists() and HUB_NAME.fullmatch(name) else None
        if folder.is_dir():
            # A snapshot in the Hugging Face cache: models--ORG--NAME/snapshots/REVISION.
            above = folder.resolve().parent
            match = re.fullmatch(r"models--(.+?)--(.+)", above.parent.name) if above.name == "snapshots" else None
            own = f"{match[1]}/{match[2]}" if match else None
            readme: Path | None = folder / README
        else:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(own, README) if own else None
            readme = Path(found) if isinstance(found, str) else None
        known = metadata_of(readme) if readme is not None and readme.is_file() else {}
        languages = known.get("language")
        languages = languages if isinstance(languages, list) else [languages]
        return cls(
            own,
            fitting(known.get("license"), LICENSE),
            fitting(known.get("license_name"), LICENSE),
            fitting(known.get("license_link"), _LINK),
            tuple(each for each in languages[:64] if fitting(each, _LANGUAGE)),
            known.get("pipeline_tag") == "image-text-to-text",
        )


def _is_cached(name: str) -> bool:
    """Whether the hub's cache on this machine holds a model of this name."""
    from huggingface_hub import try_to_load_from_cache

    return bool(HUB_NAME.fullmatch(name)) and isinstance(try_to_load_from_cache(name, "config.json"), str)


def metadata_of(readme: Path) -> Mapping[str, Any]:
    """The metadata of a README; empty where it has none or they cannot be read: it is no error of this package."""
    from huggingface_hub import ModelCard

    try:
        text = read_text(readme, limit=_MOST_CARD_BYTES)
        data: Any = ModelCard(text, ignore_metadata_errors=True).data
        found = data.to_dict()
    except Exception:  # a parser of YAML raises classes of its own
        return {}
    return found if isinstance(found, dict) else {}


def fitting(value: Any, pattern: re.Pattern[str]) -> str | None:
    """The value where it is a text of this form, else None."""
    return value if isinstance(value, str) and pattern.fullmatch(value) else None
