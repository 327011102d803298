"""Small tokenizers built from the data itself, exact in both directions for any Unicode text."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tokencredit.errors import InputError


def build_tokenizer(
    texts: Iterable[str],
    *,
    kind: Literal["characters", "bpe"],
    vocab_size: int | None = None,
    pieces: Sequence[str] = (),
    special: Sequence[str] = ("<eos>", "<pad>"),
) -> Tokenizer:
    """Build a tokenizer whose decoding gives back every text it encodes.

    There is no unknown token: what was not seen is written in bytes, and the bytes of one character all carry that
    character's offsets. Nothing is normalised and no token is added around a text.

    Args:
        texts: Texts to take the vocabulary from.
        kind: `"characters"`, one token per character seen; or `"bpe"`, byte-level byte-pair encoding.
        vocab_size: For `"bpe"`, the largest size of the whole vocabulary; for `"characters"` it follows from the texts.
        pieces: Texts that are each one token wherever they occur, the leftmost first and the longest of those, e.g.
            the scaffold `'{"code":"'` or a label.
        special: Special tokens, such as end of text and padding; `decode(…, skip_special_tokens=False)` shows them.

    Returns:
        The tokenizer; `transformers.PreTrainedTokenizerFast(tokenizer_object=…)` wraps it.

    Raises:
        InputError: The kind is unknown, `vocab_size` is missing, too small or given for characters, or a piece
            cannot be one token that decodes to itself.
    """
    added = [*pieces, *special]
    if kind == "characters":
        if vocab_size is not None:
            raise InputError("vocab_size", f"{vocab_size} given for a characters tokenizer", "leave it out")
        tokenizer = _characters(texts)
    elif kind == "bpe":
        smallest = 256 + len(added)
        if vocab_size is None or vocab_size < smallest:
            problem = f"{vocab_size} does not hold the 256 bytes and {len(added)} pieces and special tokens"
            raise InputError("vocab_size", problem, f"give at least {smallest}")
        tokenizer = _bpe(_without(texts, added), vocab_size - len(added))
    else:
        raise InputError("kind", f"{kind!r} is not a kind of tokenizer", "use characters or bpe")
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    _check(tokenizer, pieces, special)
    return tokenizer


def _characters(texts: Iterable[str]) -> Tokenizer:
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + sorted({character for text in texts for character in text})
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _without(texts: Iterable[str], added: Sequence[str]) -> Iterator[str]:
    """The texts between the added tokens: merges inside these would never be used."""
    longest_first = sorted(filter(None, added), key=len, reverse=True)
    cut = re.compile("|".join(map(re.escape, longest_first)) or r"\Z")
    for text in texts:
        yield from cut.split(text)


def _check(tokenizer: Tokenizer, pieces: Sequence[str], special: Sequence[str]) -> None:
    # A piece spelt like a byte token (<0x41>, or under bpe a lone "é") would decode to that byte.
    for token, hidden in [*((piece, False) for piece in pieces), *((token, True) for token in special)]:
        ids = tokenizer.encode(token, add_special_tokens=False).ids
        if len(ids) != 1 or tokenizer.decode(ids, skip_special_tokens=not hidden) != token:
            problem = f"{token!r} cannot be one token that decodes to itself"
            remedy = "leave it out or lengthen it by a neighbouring character, and do not name it twice"
            raise InputError("pieces and special tokens", problem, remedy)
