"""One serialiser for every output text, so that two texts differ only where their values do."""

import json
from typing import Any

from tokencredit.errors import InputError


def to_json(value: Any) -> str:
    """Write a value as compact JSON; both sides of a pair, gold answers and negatives all go through here.

    Args:
        value: Anything JSON can express. Keys keep their order, characters are not escaped beyond what JSON requires.

    Returns:
        The text; equal values with equal key order give equal texts.

    Raises:
        InputError: The value holds NaN, an infinity, a lone surrogate or something JSON cannot express.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        remedy = "give finite numbers, valid Unicode strings, lists, dicts, booleans or None"
        raise InputError("value to serialise", str(error), remedy) from error
    return text
