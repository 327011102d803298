"""Texts of single tokens, as reports show them."""

from typing import Any

UNFINISHED = "\ufffd"


def token_texts(tokenizer: Any) -> Any:
    """A function from a token id to its text; what is no text by itself, as a byte of a character, has its name."""
    known: dict[int, str] = {}

    def text(token: int) -> str:
        if token not in known:
            found = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
            name = tokenizer.convert_ids_to_tokens(token)
            if isinstance(name, str):
                if UNFINISHED in found or not found:
                    found = name
                elif name.startswith("▁") and not found.startswith(" "):
                    found = " " + found  # decoders of this kind drop the space of a first token
            known[token] = found
        return known[token]

    return text
