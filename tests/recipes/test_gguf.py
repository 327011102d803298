"""GGUF files: unpacked into a folder that everything else can load."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.errors import InputError
from tokencredit.recipes.gguf import import_gguf
from tokencredit.recipes.init_model import write_initial_model
from tokencredit.recipes.schema import Init

gguf = pytest.importorskip("gguf")

TEXTS = [{"prompt": "Größe: ", "completion": '[{"code":"Number","span":"3600 West"}]'}] * 8
HEADS, LAYERS, TEMPLATE = 2, 2, "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved 2-layer Llama with random weights and a byte-level BPE tokenizer, as GGUF files know it."""
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 128,
    }
    init = Init(model_type="llama", config=config, tokenizer={"kind": "bpe", "vocab_size": 280})
    folder = tmp_path_factory.mktemp("gguf") / "original"
    write_initial_model(init, TEXTS, folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def file(original: Path) -> Path:
    """The same model as one GGUF file in float32."""
    return write_gguf(original, original.parent / "model.gguf")


def write_gguf(original: Path, path: Path, leave_out: str = "nothing") -> Path:
    config = json.loads((original / "config.json").read_text())
    vocabulary = json.loads((original / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    special = {item["content"]: item["id"] for item in vocabulary["added_tokens"]}
    ids = vocabulary["model"]["vocab"] | special
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(merge) for merge in vocabulary["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in AutoModelForCausalLM.from_pretrained(original).state_dict().items():
        place, _, part = name.removesuffix(".weight").partition(".layers.")
        layer, _, module = part.partition(".")
        new = f"blk.{layer}.{NAMES[module]}" if part else OUTSIDE[place]
        if module in ("self_attn.q_proj", "self_attn.k_proj"):
            # Rotary halves, which the format keeps side by side.
            tensor = tensor.view(HEADS, 2, -1, tensor.size(1)).transpose(1, 2).reshape(tensor.shape)
        if new != leave_out:
            writer.add_tensor(f"{new}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_tokenizer_and_template_come_through(dtype: str, file: Path, original: Path, tmp_path: Path) -> None:
    import_gguf(file, tmp_path / "model", dtype)
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {"model.safetensors", "chat_template.jinja"}
    before = AutoModelForCausalLM.from_pretrained(original, dtype=getattr(torch, dtype))
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert after.dtype == getattr(torch, dtype)
    assert getattr(after.config, "quantization_config", None) is None
    expected, found = before.state_dict(), after.state_dict()
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        # The norm's epsilon and the rotary base are kept as float32 in the file: one part in 1e7.
        torch.testing.assert_close(after(ids).logits, before(ids).logits, atol=1e-6, rtol=1e-6)
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (original, tmp_path / "model"))
    for text in ("Größe: 3600 ☃", '[{"code":"Number","span":"3600 West"}]'):
        assert new(text)["input_ids"] == old(text)["input_ids"]
        assert new.decode(new(text)["input_ids"]) == text
    assert (new.eos_token_id, new.pad_token_id) == (old.eos_token_id, old.pad_token_id)
    assert new.chat_template == TEMPLATE


def test_an_imported_model_saves_again(file: Path, tmp_path: Path) -> None:
    """Which a model that Transformers has read from GGUF does not."""
    import_gguf(file, tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").is_file()


def broken(folder: Path, original: Path) -> None:
    whole = write_gguf(original, folder / "whole.gguf").read_bytes()
    (folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (folder / "head.gguf").write_bytes(b"GGUF")
    (folder / "text.gguf").write_text("no model")
    write_gguf(original, folder / "part.gguf", leave_out="blk.1.ffn_up")
    (folder / "there").mkdir()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.gguf", "out"], "FILE: no file 'nowhere.gguf'"),
        (["there", "out"], "FILE: no file 'there'"),
        (["text.gguf", "out"], "FILE: 'text.gguf' is no GGUF file"),
        (["head.gguf", "out"], "FILE: 'head.gguf' cannot be read"),
        (["cut.gguf", "out"], "FILE: 'cut.gguf' cannot be read"),
        (["part.gguf", "out"], "FILE: 'part.gguf' lacks 1 of its weights (model.layers.1.mlp.up_proj.weight"),
        (["whole.gguf", "there"], "OUTPUT: 'there' exists; name a new folder"),
        (["whole.gguf", "out", "--dtype", "int8"], "--dtype: unknown 'int8'; choose one of bfloat16, float16, float32"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], says: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken(tmp_path, original)
    before = set(tmp_path.iterdir())
    result = CliRunner().invoke(app, ["import-gguf", *arguments])
    assert result.exit_code == 2
    assert f"error: {says}" in result.stderr.splitlines()[-1]
    assert set(tmp_path.iterdir()) == before


def test_without_the_library(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokencredit.recipes.gguf.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"GGUF needs the library gguf; pip install 'tokencredit\[gguf\]'"):
        import_gguf(file, tmp_path / "model")


@pytest.mark.slow
def test_smollm2(smollm2_file: Path, tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct answers after the import, by its own chat template."""
    import_gguf(smollm2_file, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    text = 'Größe ☃ 12345, "don\'t"\n[{"code":"Number","subcode":"Main","span":"3600"}]'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("60201")["input_ids"]) == 5, "digits are single tokens"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    encoded = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**encoded, max_new_tokens=16, do_sample=False)[0, encoded["input_ids"].size(1) :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
