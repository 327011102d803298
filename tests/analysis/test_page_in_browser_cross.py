"""The page of cross-sampling in a browser: curves, replaced tokens marked, and the answers side by side."""

from pathlib import Path

from tests.analysis import markov
from tests.analysis.browser import IN_BROWSER, Open, background, details, texts
from tokencredit.analysis.cross_sampling import cross_sample
from tokencredit.rewards import RewardFunction, RewardPool

pytestmark = IN_BROWSER


def test_replaced_tokens_and_diverging_answers(visit: Open, tmp_path: Path) -> None:
    tokenizer = markov.letters_tokenizer()
    with RewardPool([RewardFunction(markov.says_good, trusted=True)]) as pool:
        result = cross_sample(
            *markov.pair(tokenizer),
            tokenizer,
            [{"prompt": letters} for letters in ("p", "</script><b>q", "pqr")],
            epsilon=0.1,
            samples=4,
            max_new_tokens=12,
            resamples=200,
            reward=pool,
        )
    result.to_html(tmp_path / "page.html", "base × tuned")
    page = visit(tmp_path / "page.html")
    assert texts(page, "h1") == ["base × tuned"]
    captions = texts(page, ".chart figcaption b")
    assert captions[:2] == ["forward: reward", "forward: share of the gap recovered"]
    first = page.query_selector(".group")
    shown = first.query_selector_all(".response")
    headings = [response.query_selector("h3").text_content() for response in shown]
    assert ["primary alone" in headings[0], "with replacements" in headings[1]] == [True, True]
    # The answers are shown beside each other: they begin at one height.
    assert len({round(response.bounding_box()["y"]) for response in shown}) == 1
    # Those whose reward changed come first: the decision is marked in the middle one and differs in the left one.
    tokens = [response.query_selector_all(".t") for response in shown]
    words = [[token.text_content()[:1] for token in answer] for answer in tokens]
    assert [word[markov.DECISION] for word in words] == ["B", "G"]
    colours = [[background(token) for token in answer] for answer in tokens]
    for colour in colours:
        assert colour.count(colour[markov.DECISION]) == 1
        assert len(set(colour)) == 2
    assert colours[0][markov.DECISION] != colours[1][markov.DECISION]
    tokens[1][markov.DECISION].hover()
    found = details(page)
    assert (found["replaced"], found["primary"], found["intervention"]) == ("replaced", "B", "G")
