"""T-REG through the whole trainer: its reductions, its multipliers, where its rewards come from, what is logged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import config as datasets_config
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from tests.conftest import SHORT_RUN, preferences, write_jsonl
from tokencredit.data.loading import load_split
from tokencredit.errors import InputError
from tokencredit.losses import t_reg_loss
from tokencredit.scoring import contrastive
from tokencredit.trainers.preference import PreferenceConfig, PreferenceTrainer
from tokencredit.trainers.t_reg import TREGConfig, TREGTrainer

pytestmark = pytest.mark.slow

COMMON: dict[str, Any] = SHORT_RUN | {"use_cpu": True, "bf16": False, "disable_tqdm": True, "max_steps": 3}
DPO: dict[str, Any] = {"beta": 0.5}
SIMPO: dict[str, Any] = {"beta": 2.0, "base": "simpo", "gamma": 1.0}
bases = pytest.mark.parametrize("base", [DPO, SIMPO], ids=["dpo", "simpo"])


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A datasets cache of this module's own, in which the rewards are kept."""
    with pytest.MonkeyPatch.context() as patched:
        folder = tmp_path_factory.mktemp("cache")
        patched.setattr(datasets_config, "HF_DATASETS_CACHE", folder)
        yield folder / "tokencredit" / "token-rewards"


@pytest.fixture(scope="module")
def model(tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model far from uniform, with room for requests and a chat template."""
    folder = tmp_path_factory.mktemp("t_reg") / "model"
    found = AutoModelForCausalLM.from_pretrained(tiny_chat_model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    found.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_chat_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def equal_prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("templates") / "equal.yaml"
    path.write_text('better: "{prompt} {response}"\nworse: "{prompt} {response}"\n')
    return str(path)


def build(model: Any, run: Path, kind: Any = TREGTrainer, config: Any = TREGConfig, **keys: Any) -> Any:
    options = {name: keys.pop(name) for name in ("eval_dataset", "peft_config", "ref_model") if name in keys}
    rows = keys.pop("rows", None) or Dataset.from_list(preferences(32))
    args = config(output_dir=str(run), **(COMMON | keys))
    return kind(str(model), args=args, train_dataset=rows, **options)


def curve(trainer: Any, name: str = "loss") -> list[float]:
    trainer.train()
    return [line[name] for line in trainer.state.log_history if name in line]


def stock(model: Path, run: Path, base: dict[str, Any], **keys: Any) -> Any:
    """The base method: TRL's DPO, or the SimPO loss."""
    if "base" not in base:
        return build(model, run, DPOTrainer, DPOConfig, **base, **keys)
    simpo = {"loss": "tokencredit.losses:simpo_loss", "loss_kwargs": {"gamma": base["gamma"]}}
    return build(model, run, PreferenceTrainer, PreferenceConfig, beta=base["beta"], **simpo, **keys)


@bases
@pytest.mark.parametrize("neutral", ["alpha", "equal prompts"])
@pytest.mark.parametrize("lora", [False, True])
def test_neutral_settings_are_the_base_method(
    base: dict[str, Any], neutral: str, lora: bool, model: Path, equal_prompts: str, tmp_path: Path
) -> None:
    """Same losses and same weights after three steps. Tolerance 1e-6: float32, sums taken in another order."""
    changed = {"alpha": 0.0} if neutral == "alpha" else {"alpha": 0.5, "templates": equal_prompts}
    trainers = []
    for kind, keys in ((stock, {}), (build, changed)):
        torch.manual_seed(0)  # of the adapter
        peft = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if lora else None
        options = {"peft_config": peft, "optim": "sgd", "learning_rate": 0.1}
        given = (base,) if kind is stock else ()
        trainers.append(kind(model, tmp_path, *given, **options, **keys, **({} if kind is stock else base)))
    theirs, ours = map(curve, trainers)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert abs(ours[0] - ours[-1]) > 1e-3, "the model must move, or equal curves prove nothing"
    mine, other = (dict(trainer.model.named_parameters()) for trainer in trainers)
    for name, value in mine.items():
        torch.testing.assert_close(value, other[name], atol=1e-6, rtol=0)


def full_logps(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]


@bases
def test_the_gradient_is_the_base_methods_with_multipliers(base: dict[str, Any], model: Path, tmp_path: Path) -> None:
    """Every parameter's gradient, against ∓ b w (1 ± α r̂_t) put on full log-probs by hand. 1e-6: float32."""
    trainer = build(model, tmp_path, alpha=0.5, **base)
    rewards = torch.tensor([value for row in trainer.train_dataset for value in row["chosen_rewards"]])
    assert rewards.abs().max() > 0.01, "rewards of 0 would prove nothing"
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    policy = trainer.model.train()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # away from the reference
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    trainer.compute_loss(policy, batch).backward()
    found = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    policy.zero_grad()

    logps, mask = full_logps(policy, batch), batch["completion_mask"][:, 1:].float()
    signs = torch.tensor([1.0] * 6 + [-1.0] * 6)[:, None]
    if "base" in base:
        scale = base["beta"] / mask.sum(-1, keepdim=True)
        reference = torch.zeros_like(logps)
    else:
        scale = torch.full((12, 1), base["beta"])
        with torch.no_grad():
            reference = full_logps(trainer.ref_model, batch)
    margins = (signs * scale * (logps.detach() - reference) * mask).sum(-1).reshape(2, 6).sum(0)
    w = torch.sigmoid(base.get("gamma", 0.0) - margins).repeat(2)[:, None]
    multipliers = 1 + signs * 0.5 * batch["token_rewards"][:, 1:]
    assert ((multipliers[mask == 1] - 1).abs() > 1e-3).any()
    (-signs * scale * w * multipliers * mask * logps).sum().div(6).backward()
    for name, parameter in policy.named_parameters():
        # Both are float32 sums in other orders: entries near one are good to a few units in the last place (6e-8).
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_rewards_stand_on_their_tokens_and_end_of_turn_has_none(model: Path, tmp_path: Path) -> None:
    trainer = build(model, tmp_path, rows=load_split("us_addresses", "validation[:4]", config="planted"))
    batch = trainer.data_collator(list(trainer.train_dataset))
    for place, (side, row) in enumerate((s, r) for s in ("chosen", "rejected") for r in trainer.train_dataset):
        inside = batch["completion_mask"][place].bool()
        assert batch["token_rewards"][place][inside].tolist() == pytest.approx(row[f"{side}_rewards"])
        assert (batch["token_rewards"][place][~inside] == 0).all()
        assert row[f"{side}_rewards"][-1] == 0
        assert all(row[f"{side}_rewards"][:-1])


def test_a_conversation_is_rewarded_as_the_assistants_turn(model: Path, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in preferences(4)
    ]
    trainer = build(model, tmp_path, rows=Dataset.from_list(rows))
    tokenizer = trainer.processing_class
    for row in trainer.train_dataset:
        text = tokenizer.decode(row["chosen_ids"])
        assert text.endswith("<|end|>")
        assert row["chosen_rewards"][-1] == 0
        assert all(row["chosen_rewards"][:-1])


def test_computed_once_and_for_both_bases(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SimPO the policy itself stands for the reference: the same weights, so the same rewards."""
    first = build(model, tmp_path, **DPO).train_dataset.to_dict()
    monkeypatch.setattr(contrastive, "_forward", None)
    for keys in (SIMPO, DPO | {"precompute_ref_log_probs": True}):
        again = build(model, tmp_path, **keys)
        assert again.train_dataset.to_dict()["chosen_rewards"] == first["chosen_rewards"]
        again.train()


@pytest.mark.parametrize("change", ["template", "evaluator", "precision"])
def test_another_evaluator_or_template_recomputes(
    change: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Dataset.from_list(preferences(4))
    first = build(model, tmp_path, rows=rows).train_dataset["chosen_rewards"][:]
    keys: dict[str, Any] = {"template": {"templates": "structured"}, "precision": {"bf16": True}}.get(change, {})
    if change == "evaluator":
        other = AutoModelForCausalLM.from_pretrained(model)
        with torch.no_grad():
            other.get_input_embeddings().weight[3] += 0.5
        other.save_pretrained(tmp_path / "other")
        AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "other")
        keys = {"evaluator": str(tmp_path / "other")}
    sizes: list[int] = []
    forward = contrastive._forward
    monkeypatch.setattr(contrastive, "_forward", lambda *given: sizes.append(len(given[2])) or forward(*given))
    second = build(model, tmp_path, rows=rows, **keys).train_dataset["chosen_rewards"][:]
    assert sum(sizes) == 8
    assert first != second


def test_own_rewards_need_no_evaluator(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of the data, also under a plain pair loss, give the losses of computed rewards."""
    computed = build(model, tmp_path, **DPO, alpha=0.5)
    columns = ("prompt", "chosen", "rejected", "chosen_rewards", "rejected_rewards")
    rows = computed.train_dataset.select_columns([*columns])
    monkeypatch.setattr(contrastive, "_forward", None)
    given = build(model, tmp_path, **DPO, alpha=0.5, rows=rows)
    keys = {"loss": "tokencredit.losses:t_reg_loss", "loss_kwargs": {"alpha": 0.5}}
    plain = build(model, tmp_path, PreferenceTrainer, PreferenceConfig, **DPO, **keys, rows=rows)
    expected = curve(computed)
    assert curve(given) == pytest.approx(expected, abs=1e-6)
    assert curve(plain) == pytest.approx(expected, abs=1e-6)
    assert abs(expected[0] - curve(build(model, tmp_path, **DPO, alpha=0.0, rows=rows))[0]) > 1e-4


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({"chosen_rewards": [0.1] * 3}, r"dataset_name: the data has 'chosen_rewards' only"),
        ({"chosen_rewards": [0.1], "rejected_rewards": [0.1] * 3}, "chosen_rewards: 1 rewards for the 3 tokens of the"),
        ({"chosen_rewards": [0.1] * 3, "rejected_rewards": [0.1, None, 0.0]}, "rejected_rewards: None for token 1 of"),
        ({"chosen_rewards": [0.1] * 3, "rejected_rewards": [0.1, float("nan"), 0.0]}, "nan for token 1"),
        ({"chosen_rewards": 0.5, "rejected_rewards": 0.1}, "'0.5' are the rewards of the chosen response of example 0"),
    ],
)
def test_rewards_that_cannot_be_used(rewards: dict[str, Any], message: str, model: Path, tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "bc", "rejected": "de"} | rewards
    with pytest.raises(InputError, match=message):
        build(model, tmp_path, rows=Dataset.from_list([row]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"alpha": -1.0}, "alpha: -1.0 is negative"),
        ({"base": "ipo"}, "base: 'ipo' is unknown; choose one of dpo, simpo"),
        ({"gamma": 1.0}, "gamma: 1.0 has no effect with base: dpo"),
        ({"beta": 0.0}, "beta: 0.0 is not positive"),
        (
            {"templates": "best"},
            "templates: no file 'best'; give a YAML file or one of direct, general, steerable, structured",
        ),
        ({"reward_batch_tokens": 0}, "reward_batch_tokens: 0 is too small"),
        ({"base": "simpo", "precompute_ref_log_probs": True}, "precompute_ref_log_probs: t_reg_loss uses no reference"),
        ({"token_weights": {"differing": 1.2}}, "token_weights: t_reg_loss uses no token weights"),
    ],
)
def test_settings_without_meaning_are_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        TREGConfig(output_dir=str(tmp_path), **(COMMON | keys))


def test_the_default_beta_belongs_to_the_base(tmp_path: Path) -> None:
    assert TREGConfig(output_dir=str(tmp_path), **COMMON).beta == 0.01
    assert TREGConfig(output_dir=str(tmp_path), base="simpo", **COMMON).beta == 10.0


def test_evaluators_that_cannot_be_used(model: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evaluator: '.*nowhere' cannot be loaded"):
        build(model, tmp_path, evaluator=str(tmp_path / "nowhere"))
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(model)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    names = vocabulary["model"]["vocab"]
    names["a"], names["e"] = names["e"], names["a"]
    tokenizer.save_pretrained(other)
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(InputError, match=r"evaluator: has another tokenizer: token \d+ is '[ae]' and not '[ae]'"):
        build(model, tmp_path, evaluator=str(other))
    with pytest.raises(InputError, match=r"request and the chosen response of example 0 are \d+ tokens, .* takes 128"):
        build(tiny_model, tmp_path)


def test_a_stream_is_refused(model: Path, tmp_path: Path) -> None:
    stream = Dataset.from_list(preferences(8)).to_iterable_dataset()
    with pytest.raises(InputError, match="dataset_streaming: token rewards are computed before training"):
        build(model, tmp_path, rows=stream)


@pytest.mark.parametrize("lora", [False, True])
def test_new_data_is_evaluated_as_long_as_the_evaluator_is_there(lora: bool, model: Path, tmp_path: Path) -> None:
    peft = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None
    new = Dataset.from_list(preferences(40)).select(range(32, 40))
    trainer = build(model, tmp_path, **SIMPO, peft_config=peft, eval_dataset={"a": new.select(range(4))})
    before = trainer.evaluate(new)
    assert before["eval_regulariser"] != 0
    trainer.train()
    trainer.evaluate()  # what was given at the start has its rewards
    assert trainer.state.log_history[-1]["eval_regulariser"] != 0
    if lora:
        assert trainer.evaluate(new)["eval_regulariser"] != before["eval_regulariser"]
    else:
        with pytest.raises(InputError, match="evaluator: the model that training began with is no longer in memory"):
            trainer.evaluate(new)


def test_a_resumed_run_gives_the_same_curve(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "alpha": 0.5} | SIMPO
    whole = build(model, tmp_path, **keys)
    expected = curve(whole)
    monkeypatch.setattr(contrastive, "_forward", None)
    resumed = build(model, tmp_path, **keys)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    found = [line["loss"] for line in resumed.state.log_history if "loss" in line]
    assert found == pytest.approx(expected, abs=1e-6)


def test_what_is_logged_and_sampled(model: Path, tmp_path: Path) -> None:
    """Everything by hand from the samples of one batch with all pairs. 1e-4: printed as float32 sums."""
    rows = load_split("us_addresses", "validation[:6]", config="planted")
    keys: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 6, "token_samples_steps": 1}
    trainer = build(model, tmp_path, rows=rows, num_token_samples=6, learning_rate=1e-2, **DPO, **keys)
    trainer.train()
    line = trainer.state.log_history[1]
    lines = [json.loads(text) for text in (tmp_path / "token_samples" / "step-00000001.jsonl").read_text().splitlines()]
    by_side: dict[str, list[dict[str, Any]]] = {"chosen": [], "rejected": []}
    for sample in lines:
        by_side[sample["side"]].append(sample)
        difference = np.array(sample["logps"]) - np.array(sample["ref_logps"])
        np.testing.assert_allclose(sample["implicit_rewards"], 0.5 * difference, atol=1e-5)
    x, y = (np.concatenate([sample[name] for sample in lines]) for name in ("token_rewards", "implicit_rewards"))
    names = np.concatenate([sample["classes"] for sample in lines])
    assert line["alignment"] == pytest.approx((x * y).sum() / 6, rel=1e-4)
    assert line["alignment_correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-4)
    for name in ("code", "subcode", "span", "scaffold"):
        inside = names == name
        assert line[f"alignment/{name}"] == pytest.approx((x * y)[inside].sum() / 6, rel=1e-3, abs=1e-6)
        expected = np.corrcoef(x[inside], y[inside])[0, 1]
        assert line[f"alignment_correlation/{name}"] == pytest.approx(expected, abs=1e-3)

    def padded(name: str, side: str) -> torch.Tensor:
        values = [torch.tensor(sample[name]) for sample in by_side[side]]
        return torch.nn.utils.rnn.pad_sequence(values, batch_first=True)

    tensors: dict[str, torch.Tensor] = {}
    for side, samples in by_side.items():
        lengths = [torch.ones(len(sample["ids"])) for sample in samples]
        tensors[f"{side}_mask"] = torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True)
        tensors |= {f"{side}_logps": padded("logps", side), f"{side}_rewards": padded("token_rewards", side)}
        tensors[f"ref_{side}_logps"] = padded("ref_logps", side)
    loss, metrics = t_reg_loss(**tensors, beta=0.5)
    assert line["loss"] == pytest.approx(loss.mean().item(), abs=1e-5)
    for name in ("weight", "regulariser", "alignment", "pref_loss"):
        assert line[name] == pytest.approx(metrics[name].mean().item(), rel=1e-4, abs=1e-6)


def test_a_loss_that_names_rewards_needs_them(model: Path, tmp_path: Path) -> None:
    keys = {"loss": "tokencredit.losses:t_reg_loss", "loss_kwargs": {"alpha": 0.5}}
    with pytest.raises(InputError, match=r"loss: .*t_reg_loss needs token rewards, and the train data has none"):
        build(model, tmp_path, PreferenceTrainer, PreferenceConfig, **DPO, **keys)


def test_the_command_describes_keeps_and_shows(model: Path, tmp_path: Path, run_cli: Any, cache: Path) -> None:
    """`tokencredit token-rewards`, and training with what it wrote."""
    recipe = SHORT_RUN | {
        "trainer": "t_reg",
        "output_dir": str(tmp_path / "run"),
        "model_name_or_path": str(model),
        "dataset_name": "us_addresses",
        "dataset_config": "planted",
        "env": {"HF_DATASETS_CACHE": str(tmp_path / "cache")},
        "max_steps": 1,
    }
    write_jsonl(tmp_path / "recipe.yaml", [recipe])  # JSON is YAML
    options = ["--limit", "6", "--output", "pairs.parquet", "--html", "pairs.html"]
    done = run_cli(tmp_path, "token-rewards", "recipe.yaml", *options)
    for text in ("mean r̂ chosen", "difference", "AUC within answers (n = 6)", "subcode", "saved pairs.parquet"):
        assert text in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "pairs.html", "pairs.parquet", "recipe.yaml"]
    assert "token_rewards" in (tmp_path / "pairs.html").read_text()
    rows = load_split(str(tmp_path / "pairs.parquet"), "train")
    given = load_split("us_addresses", "train[:6]", config="planted")
    assert rows.remove_columns(["chosen_rewards", "rejected_rewards"]).to_dict() == given.to_dict()
    trainer = build(model, tmp_path / "run", rows=rows, max_length=None)
    assert trainer.train_dataset["chosen_rewards"][:] == rows["chosen_rewards"][:]
    (kept,) = (tmp_path / "cache" / "tokencredit" / "token-rewards").iterdir()
    assert len(list(kept.glob("*.parquet"))) == 1
    wrong = run_cli(tmp_path, "token-rewards", "recipe.yaml", "trainer=dpo", check=False)
    assert wrong.returncode == 2
    assert "error: trainer: 'dpo' has no token rewards; name a recipe with trainer: t_reg" in wrong.stderr


def test_rewards_to_compare_with(model: Path, tmp_path: Path) -> None:
    """`--shuffle` and `--from-dpo` of the command, in this process."""
    from tokencredit.cluster.launch import prepare
    from tokencredit.recipes import token_rewards as command

    recipe = SHORT_RUN | {"trainer": "t_reg", "output_dir": str(tmp_path / "run"), "model_name_or_path": str(model)}
    write_jsonl(tmp_path / "pairs.jsonl", preferences(4))
    checked, _, found = prepare(command.parsed(recipe | {"dataset_name": str(tmp_path / "pairs.jsonl")}))
    own = command.reward(checked, found.data, limit=None).dataset
    dealt = command.reward(checked, found.data, limit=None, shuffle=0).dataset
    implied = command.reward(checked, found.data, limit=3, from_dpo=str(model))
    for side in ("chosen_rewards", "rejected_rewards"):
        assert [sorted(values) for values in dealt[side]] == [sorted(values) for values in own[side]]
        assert [values[-1] for values in dealt[side]] == [0.0] * 4
        assert not any(any(values) for values in implied.dataset[side]), "an untuned model implies nothing"
    assert dealt["chosen_rewards"][:] != own["chosen_rewards"][:]
    assert implied.figures.chosen.count == 3
    with pytest.raises(InputError, match="--from-dpo: no folder"):
        command.reward(checked, found.data, limit=1, from_dpo=str(tmp_path / "nowhere"))
    stream = replace(found.data, train=found.data.train.to_iterable_dataset())
    with pytest.raises(InputError, match="dataset_streaming: token rewards are computed of the whole data"):
        command.reward(checked, stream, limit=1)
    with pytest.raises(InputError, match="init: a model from scratch finds no token better"):
        command.parsed({key: value for key, value in recipe.items() if key != "model_name_or_path"} | SCRATCH)


SCRATCH: dict[str, Any] = {"init": {"model_type": "llama"}}
