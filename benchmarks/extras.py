"""Print what extras of the installed package ask for, one requirement a word: `pip install $(python extras.py dev)`."""

from __future__ import annotations

import sys
from importlib.metadata import requires

from packaging.requirements import Requirement


def wanted(extra: str) -> list[str]:
    """Requirements of an extra on this machine, extras of this package that it names included."""
    found: list[str] = []
    for one in map(Requirement, requires("layercoop-fast") or ()):
        if one.marker is None or one.marker.evaluate({"extra": ""}) or not one.marker.evaluate({"extra": extra}):
            continue
        if one.name == "layercoop-fast":
            for part in sorted(one.extras):
                found += wanted(part)
        else:
            extras = f"[{','.join(sorted(one.extras))}]" if one.extras else ""
            found.append(f"{one.name}{extras}{one.specifier}")
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    print(*(each for extra in sys.argv[1:] for each in wanted(extra)))
