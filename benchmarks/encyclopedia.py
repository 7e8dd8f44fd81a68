"""Encyclopedia text, a kind that neither calibration nor training sees: articles from the test data of gensim.

    pip download --no-deps gensim && pip install mwparserfromhell
    python benchmarks/encyclopedia.py gensim-*.whl encyclopedia.txt

The wheel holds a hundred articles of the English Wikipedia (CC BY-SA) with their markup, which mwparserfromhell takes
off. Footnotes, redirections, headings, lists, tables and paragraphs under 200 characters are left out.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import mwparserfromhell

MEMBER = re.compile(r".*/enwiki-latest-pages-articles1\.xml.*\.bz2")
SHORTEST = 200  # characters of a paragraph


def main() -> None:
    """Write the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    articles = ["\n\n".join(paragraphs(markup)) for markup in pages(arguments.wheel)]
    kept = [article for article in articles if article]
    arguments.out.write_text("\n\n\n".join(kept) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(kept)} articles, {sum(map(len, kept)):,} characters\n")


def pages(wheel: Path) -> Iterator[str]:
    """The markup of each article."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = filter(MEMBER.fullmatch, archive.namelist())
        with archive.open(name) as packed, bz2.open(packed) as dump:
            for _, element in ElementTree.iterparse(dump):
                if element.tag.endswith("}text"):
                    yield element.text or ""
                    element.clear()


def paragraphs(markup: str) -> Iterator[str]:
    """The paragraphs of an article, without markup."""
    if markup.lstrip().lower().startswith("#redirect"):
        return
    parsed = mwparserfromhell.parse(markup)
    for note in parsed.filter_tags(matches=lambda tag: str(tag.tag).strip().lower() == "ref"):
        with contextlib.suppress(ValueError):  # inside of another one that is gone
            parsed.remove(note)
    text = parsed.strip_code(normalize=True, collapse=True)
    for line in text.splitlines():
        if len(line) >= SHORTEST and line[0] not in "*#:;|!{=" and "thumb|" not in line:
            yield line.strip()


if __name__ == "__main__":
    main()
