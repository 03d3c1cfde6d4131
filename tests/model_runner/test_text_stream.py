"""Streams of tokens against the decoding of all of them, over real tokenizers trained here."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from model_runner.text import TextStream

CORPUS = ["the theme of these: naïve façade, 日本語 text, 😀😁 smile, αβγ stop STOP"] * 3
END = "<|end|>"


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Words begin with U+2581, which is dropped at the beginning of a text; unknown characters
    are bytes."""
    vocab = {END: 0, "<unk>": 1} | {f"<0x{byte:02X}>": byte + 2 for byte in range(256)}
    pieces = ["▁", "▁the", "me", "▁these", "▁stop", "s", "t", "o", "p", "▁日本", "語", "▁a", "b"]
    vocab |= {piece: len(vocab) + i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrap(tokenizer)


BYTE_LEVEL = byte_level()
SENTENCEPIECE = sentencepiece_like()


def split(items: list[int], sizes: list[int]) -> list[list[int]]:
    """Pushes of the given sizes, over and over."""
    pushes, at = [], 0
    while at < len(items):
        size = sizes[len(pushes) % len(sizes)]
        pushes.append(items[at : at + size])
        at += size
    return pushes


def cut(text: str, stops: list[str]) -> str:
    """At the stop string that is complete first: the definition, character by character."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


def full_text(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)
any_ids = st.lists(st.integers(0, len(BYTE_LEVEL) - 1), max_size=90)
invalid_bytes = st.lists(  # bytes that begin or continue characters, seldom making one
    st.sampled_from(BYTE_LEVEL.convert_tokens_to_ids(["ð", "Ł", "ĺ", "Ģ", "â", "Ĥ", "¬", "e"])),
    min_size=40,
    max_size=200,
)
texts = st.text(st.sampled_from("the stop日本語😀é sSTOP"), max_size=40)


@settings(deadline=None, max_examples=200)
@given(ids=any_ids | invalid_bytes, sizes=sizes)
def test_byte_level_pushes_add_up_to_the_whole_text(ids: list[int], sizes: list[int]) -> None:
    stream = TextStream(BYTE_LEVEL)
    pushed = "".join(stream.push(part) for part in split(ids, sizes))
    assert pushed + stream.flush() == full_text(BYTE_LEVEL, ids)


@settings(deadline=None, max_examples=200)
@given(text=texts, sizes=sizes, tokenizer=st.sampled_from([BYTE_LEVEL, SENTENCEPIECE]))
def test_text_comes_out_as_it_went_in_and_never_by_half_a_character(
    text: str, sizes: list[int], tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = tokenizer(text).input_ids
    stream = TextStream(tokenizer)
    pushes = [stream.push(part) for part in split(ids, sizes)]
    assert "\ufffd" not in "".join(pushes)
    assert "".join(pushes) + stream.flush() == full_text(tokenizer, ids)


@settings(deadline=None, max_examples=300)
@given(
    text=texts,
    sizes=sizes,
    stops=st.lists(st.text(st.sampled_from("the stop語😀"), min_size=1, max_size=5), max_size=3),
)
def test_stops_where_the_whole_text_would(text: str, sizes: list[int], stops: list[str]) -> None:
    ids = BYTE_LEVEL(text).input_ids
    stream = TextStream(BYTE_LEVEL, stops)
    out = "".join(stream.push(part) for part in split(ids, sizes)) + stream.flush()
    assert out == cut(text, stops)
    assert stream.stopped == any(stop in text for stop in stops)


def test_a_possible_beginning_of_a_stop_string_is_held_back_until_decided() -> None:
    stream = TextStream(BYTE_LEVEL, ["STOP"])
    pushes = [stream.push(BYTE_LEVEL(piece).input_ids) for piece in ["a S", "TO", "x", " STO"]]
    assert pushes == ["a ", "", "STOx", " "]
    assert not stream.stopped
    assert stream.flush() == "STO"


def test_nothing_comes_after_a_stop_string() -> None:
    stream = TextStream(BYTE_LEVEL, ["STOP"])
    assert stream.push(BYTE_LEVEL("a STOP b").input_ids) == "a "
    assert stream.stopped
    assert stream.push(BYTE_LEVEL("more").input_ids) == ""
    assert stream.flush() == ""


@pytest.mark.parametrize("size", [1, 3, 50], ids="pushes of {}".format)
def test_the_first_tokens_stop_nothing(size: int) -> None:
    """Neither a stop string among them, nor one that begins there and ends later."""
    first, rest = (BYTE_LEVEL(text).input_ids for text in ("STOP a ST", "OP b STOP c"))
    stream = TextStream(BYTE_LEVEL, ["STOP"], min_tokens=len(first))
    pushed = "".join(stream.push(part) for part in split(first + rest, [size]))
    assert pushed + stream.flush() == "STOP a STOP b "
    assert stream.stopped


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    ids = [*BYTE_LEVEL("the").input_ids, BYTE_LEVEL.eos_token_id]
    assert TextStream(BYTE_LEVEL).push(ids) == "the"
    assert TextStream(BYTE_LEVEL, skip_special_tokens=False).push(ids) == "the" + END


def test_an_empty_stop_string_is_a_programmer_error() -> None:
    with pytest.raises(AssertionError, match="empty stop string"):
        TextStream(BYTE_LEVEL, ["a", ""])


@pytest.mark.parametrize(
    ("tokenizer", "ids"),
    [
        (BYTE_LEVEL, BYTE_LEVEL("the theme ").input_ids),
        (BYTE_LEVEL, BYTE_LEVEL.convert_tokens_to_ids(["ð", "Ł"])),
        (BYTE_LEVEL, [BYTE_LEVEL.eos_token_id]),
        (SENTENCEPIECE, SENTENCEPIECE("é é").input_ids),
    ],
    ids=["text", "invalid bytes", "no text", "byte fallback"],
)
def test_the_work_of_a_push_does_not_grow_with_the_stream(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = tokenizer.decode
    decoded: list[int] = []

    def counting_decode(ids: list[int], **options: bool) -> str:
        decoded.append(len(ids))
        return decode(ids, **options)

    monkeypatch.setattr(tokenizer, "decode", counting_decode)
    stream = TextStream(tokenizer)
    for token in ids * 300:
        stream.push([token])
    assert max(decoded) < 50
