"""Items with options: read, cut and turned into tokens, and every bad one refused in a line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import BOS, FAMILIES, tiny_tokenizer

from layercoop_fast.engine.skeleton import Skeleton
from layercoop_fast.errors import RequestError
from layercoop_fast.texts.items import Item, Items, cut_items, load_items, read_items, tokenise

ITEM = {"context": "Two and two are", "options": ["four", "five"], "label": 0}


def written(path: Path, *lines: object) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def text_of(tokens: tuple[int, ...]) -> str:
    return str(tiny_tokenizer().decode(tokens))


def test_spellings_of_an_item(tmp_path: Path) -> None:
    arc = {"question": "Q", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    path = written(
        tmp_path / "x.jsonl",
        ITEM,
        "",
        arc,
        {"context": "Q", "choices": ["a", "b"], "answer": "B"},
        {**ITEM, "label": "1"},
    )
    assert read_items(path) == [
        Item("Two and two are", ("four", "five"), 0),
        Item("Q", ("a", "b", "c"), 2),
        Item("Q", ("a", "b"), 1),
        Item("Two and two are", ("four", "five"), 1),
    ]


def test_a_line_ends_at_a_newline_only(tmp_path: Path) -> None:
    """Texts from the web hold other characters that end a line for Python, not for JSON."""
    item = json.dumps({**ITEM, "context": "one\u2028two"}, ensure_ascii=False)
    assert [read.context for read in read_items(written(tmp_path / "x.jsonl", item))] == ["one\u2028two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"context": ', "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        (json.dumps(ITEM)[:-1] + ', "seen": ' + "9" * 5000 + "}", r"line 2 is not JSON \(Exceeds the limit"),
        ({**ITEM, "label": "9" * 5000}, r"line 2: its label '9+\.\.\.9+' is not a number from 0 to 1"),
        ({**ITEM, "context": "a\ud800"}, r"line 2: it has half of a character, '\\ud800': write both halves"),
        ({**ITEM, "options": ["four", "\udfff"]}, r"line 2: it has half of a character, '\\udfff'"),
        ("[1, 2]", "line 2: an item is a JSON object with context, options and label"),
        ({**ITEM, "label": 2}, "line 2: its label 2 is not a number from 0 to 1"),
        ({**ITEM, "label": -1}, "line 2: its label -1 is not a number from 0 to 1"),
        ({**ITEM, "label": True}, "line 2: its label True is not a number"),
        ({**ITEM, "label": "C"}, r"line 2: its label 'C' is none of its options' names \['A', 'B'\]"),
        ({**ITEM, "options": ["four"]}, "line 2: it has 1 options: at least 2 are needed"),
        ({**ITEM, "options": ["four", 5]}, "line 2: its options are not a list of strings"),
        ({**ITEM, "options": {"text": "four"}}, "line 2: its options are not a list of strings"),
        ({**ITEM, "options": ["four", " "]}, "line 2: its option 1 is empty: there is nothing to score"),
        ({**ITEM, "context": 4}, "line 2: its context is not a string"),
        ({"context": "x", "label": 0}, "line 2: it has no 'options' or 'choices'"),
        ({"text": "x"}, "line 2: it has no 'context' or 'question'"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_items(written(tmp_path / "x.jsonl", ITEM, line))


def test_files_without_items(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no items"):
        read_items(written(tmp_path / "x.jsonl", ""))
    with pytest.raises(RequestError, match="cannot be read"):
        read_items(str(tmp_path / "none.jsonl"))


def test_examples_context_and_option() -> None:
    items = [Item("1+1=", ("2", "3"), 0), Item("2+2=", ("5", "4"), 1), Item("3+3= ", ("6", "seven"), 0)]
    choices = tokenise(items, tiny_tokenizer(), shots=2)
    (group,) = choices.groups
    assert [text_of(sequence.tokens[: sequence.start]) for sequence in group] == ["1+1= 2\n\n2+2= 4\n\n3+3="] * 2
    # The blank at the end of the context is the option's, as the harness has it.
    assert [text_of(sequence.tokens[sequence.start :]) for sequence in group] == ["  6", "  seven"]
    assert choices.layout.as_json() == {"options": [2], "labels": [0], "tokens": [3, 7], "characters": [1, 5]}
    assert choices.description == {"spec": "the items", "items": 1, "shots": 2}
    with pytest.raises(RequestError, match="the items has 3 items: 3 shots leave none to score"):
        tokenise(items, tiny_tokenizer(), shots=3)


def test_an_option_that_comes_to_no_tokens_and_a_context_of_none() -> None:
    tokenizer = tiny_tokenizer()
    # A normaliser that drops what it cannot write, as some tokenizers have it.
    from tokenizers.normalizers import Replace

    tokenizer.backend_tokenizer.normalizer = Replace(" _", "")
    with pytest.raises(RequestError, match="item 2: its option '_' comes to no tokens"):
        tokenise([Item("a", ("b", "c"), 0), Item("a", ("b", "_"), 0)], tokenizer)
    with pytest.raises(RequestError, match="item 1: nothing comes before its options"):
        tokenise([Item("", ("b", "c"), 0)], tiny_tokenizer())


def test_items_cut_from_a_text() -> None:
    text = "".join(chr(ord("a") + number % 26) + str(number) for number in range(400))
    choices = cut_items(text, tiny_tokenizer(), 6, 20, shots=2, seed=3)
    assert choices.layout.options.tolist() == [4] * 6
    assert choices.layout.tokens.tolist() == [5] * 24
    assert len(set(choices.layout.labels.tolist())) > 1, "the true option should not always stand in one place"
    beginnings = set()
    for group, label in zip(choices.groups, choices.layout.labels, strict=True):
        contexts = {sequence.tokens[: sequence.start] for sequence in group}
        assert len(contexts) == 1
        whole = text_of(contexts.pop())
        examples, own = whole.rsplit("\n\n", 1)
        beginnings.add(examples)
        assert all(part in text for part in examples.split("\n\n"))
        assert len(own) == 15
        endings = [text_of(sequence.tokens[sequence.start :]) for sequence in group]
        assert all(ending in text for ending in endings)
        assert [own + ending in text for ending in endings].index(True) == label
    assert len(beginnings) == 1
    again = cut_items(text, tiny_tokenizer(), 6, 20, shots=2, seed=3)
    assert again.fingerprint == choices.fingerprint
    assert cut_items(text, tiny_tokenizer(), 6, 20, shots=2, seed=4).fingerprint != choices.fingerprint


def test_wrong_options_come_from_everywhere_but_the_item() -> None:
    """Of a text whose every character is another, places can be looked up: all that leave the item alone come up."""
    text = "".join(chr(code) for code in range(ord("!"), ord("~")))
    tokenizer, tokens, ending = tiny_tokenizer(), 12, 3
    for length in (24, 61, len(text)):
        seen: set[int] = set()
        for seed in range(150):
            choices = cut_items(text[:length], tokenizer, 1, tokens, seed=seed)
            ((group,), (label,)) = choices.groups, choices.layout.labels
            first = text.index(tokenizer.decode(group[0].tokens[: group[0].start]))
            begins = [text.index(tokenizer.decode(sequence.tokens[sequence.start :])) for sequence in group]
            assert begins.pop(label) == first + tokens - ending
            assert len(set(begins)) == 3
            seen.update(begins)
        allowed = {at for at in range(length - ending + 1) if at + ending <= first or at >= first + tokens}
        assert seen == allowed, length


def test_requests_that_cannot_be_met(tmp_path: Path) -> None:
    skeleton = Skeleton(FAMILIES["llama"](n_layers=1, max_position_embeddings=32))

    def load(spec: str, **options: object) -> Items:
        arguments = {"items": 3, "tokens": 20, **options}
        return load_items(spec, tiny_tokenizer(), skeleton, **arguments)  # type: ignore[arg-type]

    short = tmp_path / "short.txt"
    short.write_text("abcdefgh" * 9)
    with pytest.raises(RequestError, match=r"short.txt has 72 tokens; 3 items of 20 need 80: give a longer text"):
        load(str(short))
    with pytest.raises(RequestError, match="3 items of 3 tokens: at least 1 of 4 tokens"):
        load(str(short), tokens=3)
    with pytest.raises(RequestError, match="shots=-1: it must be 0 or more"):
        load(str(short), shots=-1)
    with pytest.raises(RequestError, match="items cannot be cut from 'self'"):
        load("self")
    with pytest.raises(RequestError, match="holds no tokenizer"):
        load_items(str(short), None, skeleton, items=1, tokens=8)
    long = written(tmp_path / "long.jsonl", ITEM, ITEM, {**ITEM, "context": "x" * 30})
    with pytest.raises(
        RequestError, match=r"long.jsonl item 3 is 34 tokens long, with its 0 examples .*; the model has 32 positions"
    ):
        load(long)
    with pytest.raises(RequestError, match="item 2 is 41 tokens long, with its 1 examples"):
        load(long, shots=1)
    small = Skeleton(FAMILIES["llama"](n_layers=1, vocab_size=50))
    with pytest.raises(RequestError, match="the model's vocabulary has 50: they do not belong together"):
        load_items(written(tmp_path / "x.jsonl", ITEM), tiny_tokenizer(), small, items=1, tokens=8)


def test_a_begin_of_text_token_stands_first() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    for choices in (tokenise([Item("", ("b", "c"), 0)], tokenizer), cut_items("abcdefg" * 9, tokenizer, 2, 8)):
        assert all(sequence.tokens[0] == BOS for group in choices.groups for sequence in group)
        assert all(BOS not in sequence.tokens[1:] for group in choices.groups for sequence in group)


def test_fingerprints_tell_items_apart() -> None:
    items = [Item("a", ("b", "c"), 0), Item("d", ("e", "f"), 1)]
    found = tokenise(items, tiny_tokenizer()).fingerprint
    assert tokenise(list(items), tiny_tokenizer(), spec="elsewhere").fingerprint == found
    for other in ([items[0], Item("d", ("e", "f"), 0)], [items[0], Item("d", ("e", "g"), 1)], items[::-1]):
        assert tokenise(other, tiny_tokenizer()).fingerprint != found
    json.dumps(found)
    assert np.array(found["tokens"]).sum() == 8
