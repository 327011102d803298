"""Where a response's tokens stand in its text, when the ids come from tokenising prompt and response together."""

from typing import Any

from tokencredit.data.spans import Offsets, require_offsets
from tokencredit.errors import InputError

Messages = list[dict[str, Any]]

_MARK = "\ue000content\ue001"
"""Private-use characters, which no template looks for."""


def response_offsets(
    tokenizer: Any,
    prompt: str | Messages,
    response: str | Messages,
    response_ids: list[int],
    **template: Any,
) -> tuple[str, Offsets]:
    """The text of a response and the offsets of its tokens in that text.

    TRL tokenises prompt and response in one go and cuts the ids where the prompt ends. The same text is tokenised
    again here, with offsets; ids that differ are refused rather than matched approximately.

    Args:
        tokenizer: A fast tokenizer.
        prompt: Plain text, or chat messages.
        response: Plain text (a final end-of-text token is not part of the text returned), or chat messages, of which
            the last one's content is the text.
        response_ids: The ids after the cut.
        **template: Keyword arguments of the chat template.

    Returns:
        The text, and one half-open range of its characters per response token. Tokens outside the text (the
        template's own, end-of-turn) have width zero; a token that begins in the prompt is cut to the text.

    Raises:
        InputError: If the tokenizer gives no offsets, the ids do not come from this text, or the chat template
            changes the response.
    """
    require_offsets(tokenizer)
    if isinstance(response, str):
        assert isinstance(prompt, str)
        whole, begin = prompt + response, len(prompt)
        text = response.removesuffix(tokenizer.eos_token or "")
        encoded = tokenizer(whole, return_offsets_mapping=True)
    else:
        assert not isinstance(prompt, str)
        whole = tokenizer.apply_chat_template([*prompt, *response], tokenize=False, **template)
        text = response[-1]["content"]
        if not isinstance(text, str):
            raise InputError("token_weights", f"the response {str(text)[:40]!r} is no text", "give text as its content")
        marked = [*prompt, *response[:-1], {**response[-1], "content": _MARK}]
        begin = _position(whole, text, tokenizer.apply_chat_template(marked, tokenize=False, **template))
        encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    if begin < 0:
        problem = f"the chat template changes the response {text[:40]!r}"
        raise InputError("token_weights", problem, "give it without outer white space")
    # From the end: a template that writes the date gives another prompt than the one that was tokenised before.
    first = len(encoded["input_ids"]) - len(response_ids)
    if first < 0 or list(encoded["input_ids"][first:]) != list(response_ids):
        raise InputError(
            "token_weights",
            f"the ids of the response {text[:40]!r} are not those of its text",
            "give the data as text, not as ids of another tokenizer",
        )
    ranges = encoded["offset_mapping"][first:]
    last = len(text)
    return text, [(min(max(start - begin, 0), last), min(max(end - begin, 0), last)) for start, end in ranges]


def _position(whole: str, text: str, marked: str) -> int:
    """Where the last message's content begins in a rendered conversation; −1 if the template changes it.

    The same conversation with a mark for content says where: the words of the answer may stand in the template, in an
    earlier turn or in a thinking block as well.
    """
    begin = marked.find(_MARK)
    if begin >= 0 and marked.replace(_MARK, text) == whole:
        return begin
    # Some templates look into the content; then it must at least be unmistakable.
    return whole.find(text) if whole.count(text) == 1 else -1


def prompt_text(prompt: str | Messages | None) -> str:
    """A prompt as a person reads it: of chat messages, role and content, a line each."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)
