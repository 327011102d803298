"""What of the metrics shares a chart, and what its lines are."""

from typing import Any

import pytest

from tokencredit.analysis.curves import MAX_PARTS, MAX_POINTS, Chart, chart_groups, payload, thinned

Lines = list[dict[str, Any]]


def charts(*runs: Lines, names: tuple[str, ...] = ("one", "two", "three")) -> dict[str, Chart]:
    groups = chart_groups(dict(zip(names, runs, strict=False)))
    return {chart.title: chart for group in groups for chart in group.charts}


def drawn(chart: Chart) -> list[tuple[str, str, int, int]]:
    return [(line.label, line.style, line.colour, line.dash) for line in chart.lines]


LINES: Lines = [
    {"step": 5, "epoch": 0.1, "loss": 0.7, "rewards/chosen": 0.1, "rewards/rejected": 0.0, "rewards/accuracies": 0.5},
    {"step": 5, "epoch": 0.1, "eval_loss": 0.8, "eval_record_f1": 0.2, "eval_record_recall": 0.1, "eval_exact": 0.0},
    {"step": 9, "epoch": 0.2, "loss": 0.6, "logps_fell": 0.5, "logps_fell/span": 0.4, "gradient_mass/span": 0.9},
    {"step": 9, "epoch": 0.2, "train_runtime": 1.0, "train_loss": 0.6},
]


def test_what_belongs_together_shares_a_chart() -> None:
    found = charts(LINES)
    assert list(found) == [
        "loss",
        "rewards",
        "rewards/accuracies",
        "record · eval",
        "exact · eval",
        "logps_fell",
        "gradient_mass",
    ]
    assert drawn(found["loss"]) == [("train", "", 0, 0), ("eval", "", 0, 1)]
    assert drawn(found["rewards"]) == [("chosen", "", 0, 0), ("rejected", "", 1, 0)]
    assert drawn(found["record · eval"]) == [("f1", "", 0, 0), ("recall", "", 1, 0)]
    assert drawn(found["logps_fell"]) == [("all", "", 0, 0), ("span", "", 1, 0)]
    train, evaluation = found["loss"].lines
    assert (train.steps, train.values) == ([5, 9], [0.7, 0.6])
    assert (evaluation.steps, evaluation.values) == ([5], [0.8])


def test_groups_have_their_order() -> None:
    lines = [{"step": 1, "my_metric": 1.0, "learning_rate": 0.1, "token_share/a": 1.0, "eval_exact": 1.0, "loss": 1.0}]
    lines[0] |= {"eval_runtime": 1.0, "eval_steps_per_second": 1.0}
    groups = {group.title: [chart.title for chart in group.charts] for group in chart_groups({"run": lines})}
    assert groups == {
        "Objective": ["loss"],
        "Task": ["exact · eval"],
        "Tokens": ["token_share"],
        "Other figures": ["my_metric"],
        "Optimiser and speed": ["learning_rate", "runtime · eval", "steps_per_second · eval"],
    }
    assert chart_groups({}) == chart_groups({"run": []}) == []


def test_several_runs_are_overlaid() -> None:
    lines: Lines = [{"step": 1, "loss": 1.0, "fell": 0.1, "fell/a": 0.2}, {"step": 1, "eval_loss": 1, "eval_fell": 1.0}]
    lines[1]["eval_fell/a"] = 0.3
    found = charts(lines, lines, names=("tab_po-x1", "tab_po-y22"))
    assert drawn(found["loss"]) == [
        ("x1", "train", 0, 0),
        ("y22", "train", 1, 0),
        ("x1", "eval", 0, 1),
        ("y22", "eval", 1, 1),
    ]
    # Classes and runs and both splits would be too much for one chart.
    assert drawn(found["fell"]) == drawn(found["fell · eval"])
    assert drawn(found["fell"]) == [("all", "x1", 0, 0), ("all", "y22", 0, 1), ("a", "x1", 1, 0), ("a", "y22", 1, 1)]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("runs/a-1", "runs/a-2"), ["1", "2"]),
        (("tab_po-b0.5", "tab_po-b0.1"), ["b0.5", "b0.1"]),
        (("seed1", "seed2"), ["seed1", "seed2"]),
        (("run-", "run-2"), ["run-", "run-2"]),
        (("0/tab_po_weighted", "1/tab_po_weighted"), ["0", "1"]),
        (("runs/0/tab_po_weighted", "runs/0/dpo"), ["tab_po_weighted", "dpo"]),
        (("0/dpo", "0/sft", "1/dpo"), ["0/dpo", "0/sft", "1/dpo"]),
        (("run", "a/run"), ["run", "a/run"]),
    ],
)
def test_names_in_legends_leave_out_what_is_common(names: tuple[str, ...], shown: list[str]) -> None:
    lines: Lines = [{"step": 1, "loss": 1.0}]
    assert [line.label for line in charts(*[lines] * len(names), names=names)["loss"].lines] == shown


def test_more_runs_than_dashes_have_a_chart_for_each_class() -> None:
    lines: Lines = [{"step": 1, "fell": 0.1, "fell/a": 0.2, "loss": 1.0}, {"step": 1, "eval_fell": 1.0, "eval_x_f1": 1}]
    lines[1] |= {"eval_fell/a": 0.3, "eval_x_recall": 0.5}
    names = tuple("pqrst")
    found = charts(*[lines] * 5, names=names)
    assert list(found) == ["loss", "x_f1 · eval", "x_recall · eval", "fell", "fell/a"]
    splits = [(name, "train", place, 0) for place, name in enumerate(names)]
    assert sorted(drawn(found["fell/a"])) == sorted(splits + [(name, "eval", place, 1) for name, _, place, _ in splits])
    assert drawn(found["x_f1 · eval"]) == [(name, "", place, 0) for place, name in enumerate(names)]
    assert "fell/a" not in charts(*[lines] * 4, names=names)


def test_a_run_without_a_figure_is_not_in_its_chart() -> None:
    found = charts([{"step": 1, "loss": 1.0}], [{"step": 1, "loss": 2.0, "extra": 3.0}])
    assert [line.label for line in found["loss"].lines] == ["one", "two"]
    assert [line.values for line in found["extra"].lines] == [[3.0]]


def test_values_that_are_no_numbers_are_counted_and_left_out() -> None:
    lines = [{"step": n, "loss": value} for n, value in enumerate([1.0, float("nan"), float("inf"), 2.0])]
    (line,) = charts(lines)["loss"].lines
    assert (line.steps, line.values, line.not_finite) == ([0, 3], [1.0, 2.0], 2)
    lines = [{"step": 1, "loss": "a text"}, {"step": 1, "loss": None}]
    assert charts(lines) == {}


def test_the_last_value_of_a_step_counts() -> None:
    (line,) = charts([{"step": 2, "loss": 1.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 5.0}])["loss"].lines
    assert (line.steps, line.values) == ([1, 2], [3.0, 5.0])


def test_long_lines_keep_their_ends_and_spikes() -> None:
    steps = list(range(100_000))
    values = [0.0] * len(steps)
    values[0], values[33_333], values[77_777], values[-1] = 1.0, 50.0, -50.0, 2.0
    kept, found = thinned(steps, values)
    assert len(kept) <= MAX_POINTS + 2
    assert kept == sorted(kept)
    assert {0: 1.0, 33_333: 50.0, 77_777: -50.0, 99_999: 2.0}.items() <= dict(zip(kept, found, strict=True)).items()
    assert thinned([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def test_of_many_classes_the_largest_are_shown_and_the_rest_counted() -> None:
    lines = [{"step": 1, **{f"margins/c{n:02}": n if n % 2 else -n for n in range(20)}}]
    chart = charts(lines)["margins"]
    assert [line.label for line in chart.lines] == [f"c{n}" for n in range(20 - MAX_PARTS, 20)]
    assert chart.meaning.endswith(f"; the {MAX_PARTS} largest of 20")


def test_payload_shares_steps_and_shortens_numbers() -> None:
    lines = [{"step": n, "loss": n / 3, "rewards/chosen": 1.0, "rewards/rejected": 2.0} for n in (1, 2)]
    found = payload(chart_groups({"run": lines}))
    assert found["steps"] == [[1, 2]]
    assert [line["steps"] for chart in found["charts"] for line in chart["lines"]] == [0, 0, 0]
    assert found["charts"][0]["lines"][0]["values"] == [0.3333, 0.6667]
