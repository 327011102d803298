"""The token view as text."""

import io
from typing import Any

import pytest
from rich.console import Console

from tokencredit.analysis.terminal import show, style, visible
from tokencredit.analysis.token_view import Column, Response, TokenView, number_scale

ESCAPE = "\x1b"


def printed(view: TokenView, column: str | None = None, colours: bool = False, width: int = 60) -> str:
    stream = io.StringIO()
    system: Any = "truecolor" if colours else None
    console = Console(file=stream, force_terminal=colours, color_system=system, width=width, highlight=False)
    show(view, console, column)
    return stream.getvalue()


VIEW = TokenView(
    [
        Response("pair 0", ["old"], {"w": [9.0]}, side="chosen", step=1),
        Response("pair 0", ["[red]", " b", "\n"], {"w": [-1.0, 0.0, 2.0]}, side="chosen", step=5, prompt="why?\n"),
        Response("pair 0", ["no", "tes"], {"kind": ["x", "y"]}, side="rejected", step=5, prompt="why?\n"),
    ],
    [Column("w", "what it weighs", diverging=True)],
)


def test_plain_output_names_everything() -> None:
    assert printed(VIEW).splitlines() == [
        "w  what it weighs",
        " -9  -4.5  0  4.5  9 ",
        "",
        "pair 0 · chosen · step 5 · 3 tokens",
        "why?",
        "[red]·b⏎",
        "",
        "lowest -1 at '[red]'  highest 2 at '⏎'",
        "",
        "pair 0 · rejected · step 5 · 2 tokens",
        "notes",
    ]


def test_colours_are_backgrounds() -> None:
    found = printed(VIEW, colours=True)
    assert f"{ESCAPE}[38;2;17;17;17;48;2;" in found
    scale = number_scale([-2.0, 2.0])
    assert style(0.0, scale).bgcolor is None
    assert style(None, scale).bgcolor is None
    names = {str(style(value, scale).bgcolor) for value in (-2.0, -1.0, 1.0, 2.0, float("nan"))}
    assert len(names) == 5


def test_texts_have_one_colour_each() -> None:
    scale = VIEW.scales["kind"]
    assert style("x", scale).bgcolor != style("y", scale).bgcolor
    assert " x   y " in printed(VIEW, "kind")


def test_responses_without_values_are_shown() -> None:
    found = printed(TokenView([Response("r", ["a", ""])]))
    assert found.splitlines() == ["The tokens have no values.", "", "r · 2 tokens", "a∅"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{ESCAPE}[2J{ESCAPE}]0;title\x07", "U+001B[2JU+001B]0;titleU+0007"),
        ("a b\tc\u00a0d\re", "a·b→c⍽d␍e"),
        ("\u202eabc\u200b\u2028\0", "U+202EabcU+200BU+2028U+0000"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("\u200d", "U+200D"),
        ("\ud800", "U+D800"),
        ("[bold]", "[bold]"),
        ("", "∅"),
    ],
)
def test_nothing_is_invisible_or_steers_the_terminal(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_titles_and_prompts_cannot_steer_the_terminal_either() -> None:
    hostile = f"{ESCAPE}[31m x\n\n y"
    view = TokenView([Response(hostile, [hostile], {hostile: [1.0]}, side=hostile, run=hostile, prompt=hostile)])
    assert ESCAPE not in printed(view)


def test_long_responses_wrap_at_the_width() -> None:
    view = TokenView([Response("r", [" word"] * 50, {"w": [1.0] * 50})])
    lines = printed(view, width=40).splitlines()
    assert max(len(line) for line in lines) == 40
    assert "·word" * 50 in "".join(lines)
