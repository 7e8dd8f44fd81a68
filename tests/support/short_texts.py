"""Short texts of different kinds, as files."""

from __future__ import annotations

from pathlib import Path

from layercoop_fast.texts.calibration import read_text


def short_texts(folder: Path, *names: str) -> list[str]:
    """The beginnings of built-in texts, "builtin" and "builtin-code" by default, written to a folder: their SPECs."""
    paths = [folder / f"{name}.txt" for name in names or ("builtin", "builtin-code")]
    for path in paths:
        path.write_text(read_text(path.stem)[:2500], encoding="ascii", errors="ignore")
    return [str(path) for path in paths]
