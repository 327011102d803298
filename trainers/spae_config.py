"""The configuration of SPAE: that of TokenGRPO, the credit's two terms, and the probe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokencredit.data.steps import DELIMITER, THINK_END
from tokencredit.errors import InputError
from tokencredit.scoring.probe import CLOSING, TEMPLATE
from tokencredit.trainers.token_grpo_config import NOT_COLUMNS, TokenGRPOConfig

PROBE_MODES = ("forced", "sampled")


@dataclass
class SPAEConfig(TokenGRPOConfig):
    r"""`TokenGRPOConfig` with `credit` made by SPAE (arXiv 2601.03823), and

    Args:
        alpha: α, how much of the outcome's credit is taken away after steps at which the answer was there, 0.5 [P];
            0 leaves the penalty out.
        xi: ξ, the weight of what a step adds, 0.5 [P]; 0 leaves the shaping out.
        saturation: ε, the potential above which the answer counts as found, 0.9 [O].
        positive_only: Whether only responses above their group's mean are penalised [O].
        use_conf: Whether confidence is part of the potential; without, Φ = 2 Acc − 1 [O].
        shuffle_potentials: A control: potentials are dealt out anew among the responses that have a step of that
            number [O].
        step_delimiter: What the text of a step's last token ends in [C].
        think_end: Ends the thinking [C].
        probe_mode: `forced` takes the confidence at the positions of the right answer [O], `sampled` over answers that
            the model gives [N/C].
        probe_template: What is put after a step [C].
        probe_template_column: A column with the template of a row, in place of `probe_template`.
        probe_closing: What follows an answer.
        answer_column: The column with the right answer: text, a number, or a list of spellings; `a.b` is the entry
            `b` of column `a`.
        probe_num_samples: Answers after each step in mode `sampled`, 5 [C].
        probe_temperature: Their temperature, 0.6 [C].
        probe_max_tokens: Their length, 10 [C].
        probe_chunk_rows: As `chunk_rows` of `tokencredit.scoring.probe_steps`.
        epsilon_high: The upper clip, 0.28: decoupled clipping is published [P], this value is DAPO's [O].
    """

    epsilon_high: float | None = field(default=0.28, metadata={"help": "Upper clip."})
    alpha: float = field(default=0.5, metadata={"help": "Strength of the saturation penalty."})
    xi: float = field(default=0.5, metadata={"help": "Strength of the difference shaping."})
    saturation: float = field(default=0.9, metadata={"help": "Potential above which the answer counts as found."})
    positive_only: bool = field(default=False, metadata={"help": "Penalise only responses above their group's mean."})
    use_conf: bool = field(default=True, metadata={"help": "Let confidence be part of the potential."})
    shuffle_potentials: bool = field(default=False, metadata={"help": "Control: deal potentials out anew."})
    step_delimiter: str = field(default=DELIMITER, metadata={"help": "What a step's last token ends in."})
    think_end: str = field(default=THINK_END, metadata={"help": "Ends the thinking."})
    probe_mode: str = field(default="forced", metadata={"help": "forced or sampled.", "choices": PROBE_MODES})
    probe_template: str = field(default=TEMPLATE, metadata={"help": "What is put after a step."})
    probe_template_column: str | None = field(default=None, metadata={"help": "Column with the template of a row."})
    probe_closing: str = field(default=CLOSING, metadata={"help": "What follows an answer."})
    answer_column: str = field(default="answer", metadata={"help": "Column with the right answer."})
    probe_num_samples: int = field(default=5, metadata={"help": "Sampled answers after each step."})
    probe_temperature: float = field(default=0.6, metadata={"help": "Temperature of sampled answers."})
    probe_max_tokens: int = field(default=10, metadata={"help": "Length of sampled answers."})
    probe_chunk_rows: int | None = field(default=None, metadata={"help": "Rows in one forward of the probe."})

    @classmethod
    def refuse(cls, values: Mapping[str, Any]) -> None:
        """Check fields; see `TokenGRPOConfig.refuse`."""
        super().refuse(values)
        if values["credit"] is not None:
            raise InputError("credit", "is made by SPAE", "remove it, or use trainer: token_grpo")
        if not values["mask_dead_groups"]:
            problem = "SPAE drops groups whose rewards are all equal before it probes"
            raise InputError("mask_dead_groups", problem, "remove it")
        if not 0 <= values["alpha"] <= 1:
            raise InputError("alpha", f"{values['alpha']!r} is not in [0, 1]", "give the share that may be taken away")
        if values["probe_mode"] not in PROBE_MODES:
            raise InputError("probe_mode", f"unknown value {values['probe_mode']!r}", "choose forced or sampled")
        for name in ("probe_num_samples", "probe_max_tokens", "probe_chunk_rows"):
            if values[name] is not None and values[name] < 1:
                raise InputError(name, f"{values[name]!r} is too small", "give 1 or more")
        if values["probe_temperature"] <= 0:
            raise InputError("probe_temperature", f"{values['probe_temperature']!r} is not positive", "give 0.6")
        for name in ("answer_column", "probe_template_column"):
            if str(values[name]).partition(".")[0] in NOT_COLUMNS:
                raise InputError(name, f"{values[name]!r} is not among a rollout's columns", "use another column")
        for name in ("step_delimiter", "think_end", "probe_template"):
            if not values[name]:
                raise InputError(name, "is empty", "give the text, or leave the key out")
