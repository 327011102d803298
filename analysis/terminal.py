"""The token view in a terminal: one column as the background of the tokens."""

import unicodedata
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.style import Style
from rich.text import Text

from tokencredit.analysis.token_view import Response, Scale, TokenView, Values, short

_MARKS = {" ": "·", "\t": "→", "\n": "⏎\n", "\r": "␍", "\u00a0": "⍽", "\u202f": "⍽"}
_JOINERS = ("\u200c", "\u200d")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"}

# From grey to a colour of the same lightness, under black: readable, and no weak value glares, on any terminal.
_INK = "#111111"
_PALE = (178, 178, 178)
_ABOVE, _BELOW, _AMOUNT = (96, 156, 240), (240, 140, 80), (80, 190, 165)
_LABELS = ("#a9c8f5", "#f3bd98", "#9fd9c9", "#d3b9f2", "#f2b0c0", "#d6d98c", "#9fd8ea", "#dcc3aa")
_FAINTEST = 0.1


def visible(text: str, *, spaces: bool = True) -> str:
    """Text in which nothing is invisible and nothing steers the terminal: white space as signs, the rest as `U+…`.

    Without `spaces`, white space is one plain space: for text that is no token.
    """
    if not spaces:
        return " ".join(visible(word) for word in text.split())
    shown = []
    for place, character in enumerate(text):
        inside = 0 < place < len(text) - 1
        if character in _MARKS:
            shown.append(_MARKS[character])
        elif unicodedata.category(character) in _HIDDEN and not (character in _JOINERS and inside):
            shown.append(f"U+{ord(character):04X}")
        else:
            shown.append(character)
    return "".join(shown) or "∅"


def style(value: float | str | None, scale: Scale) -> Style:
    """The background of a token with this value."""
    if value is None:
        return Style.null()
    if isinstance(value, str):
        return Style(color=_INK, bgcolor=_LABELS[scale.labels.index(value) % len(_LABELS)])
    if value - value != 0:  # NaN or infinite
        return Style(color="#ffffff", bgcolor="#a0108c", bold=True)
    strength = scale.strength(value)
    if abs(strength) < _FAINTEST:
        return Style.null()
    full = _AMOUNT if scale.kind == "sequential" else _ABOVE if strength > 0 else _BELOW
    red, green, blue = (round(a + (b - a) * abs(strength)) for a, b in zip(_PALE, full, strict=True))
    return Style(color=_INK, bgcolor=f"#{red:02x}{green:02x}{blue:02x}")


def show(view: TokenView, console: Console, column: str | None = None) -> None:
    """Print the responses of the last step, one below the other.

    Args:
        view: What is shown.
        console: Where to.
        column: What colours the tokens; None is the view's first one.

    Raises:
        InputError: If there is no such column.
    """
    name = view.start(column)
    last = max((response.step for response in view.responses if response.step is not None), default=None)
    for line in _lines(view, name, [response for response in view.responses if response.step == last]):
        console.print(line, soft_wrap=False, overflow="fold")


def _lines(view: TokenView, name: str | None, responses: list[Response]) -> Iterator[Text]:
    scale = view.scales[name] if name else Scale("constant")
    yield _legend(name, view.used[name].meaning, scale) if name else Text("The tokens have no values.")
    prompt = None
    for response in responses:
        where = f"step {response.step}" if response.step is not None else ""
        parts = (response.run, response.title, response.side, where, f"{len(response.tokens)} tokens")
        yield Text("\n" + " · ".join(visible(part, spaces=False) for part in parts if part), style="bold")
        if response.prompt.strip() not in ("", prompt):
            prompt = response.prompt.strip()
            yield Text(visible(prompt, spaces=False), style="dim")
        values = response.columns.get(name) if name else None
        text = Text(overflow="fold")
        for place, token in enumerate(response.tokens):
            text.append(visible(token), style(values[place] if values is not None else None, scale))
        yield text
        if values is not None:
            yield _extremes(response.tokens, values)


def _legend(name: str, meaning: str, scale: Scale) -> Text:
    text = Text.assemble((visible(name, spaces=False), "bold"), f"  {meaning}\n")
    if scale.kind == "labels":
        for label in scale.labels:
            text.append(f" {visible(label)} ", style(label, scale)).append(" ")
    elif scale.kind == "constant":
        text.append("no value anywhere" if scale.neutral is None else f"{short(scale.neutral)} everywhere")
    else:
        steps = range(-2, 3) if scale.kind == "diverging" else range(5)
        for step in steps:
            neutral = scale.neutral or 0.0
            value = neutral + (scale.limit - neutral) * step / steps[-1]
            text.append(f" {short(float(f'{value:.2g}'))} ", style(value, scale))
    return text


def _extremes(tokens: Sequence[str], given: Values) -> Text:
    """The lowest and highest value in words: without colours it is all there is."""
    values = [(value, place) for place, value in enumerate(given) if isinstance(value, (int, float)) and value == value]
    if not values:
        return Text("")
    words = [
        f"{word} {short(value)} at '{visible(tokens[place]).replace(chr(10), '')}'"
        for word, (value, place) in (("lowest", min(values)), ("highest", max(values)))
    ]
    return Text("  ".join(words), style="dim")
