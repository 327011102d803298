"""`TABPOTrainer` against TRL's `DPOTrainer` on the same pairs: time and memory of training steps."""

import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from tests.benchmarks.memory import free_at_once, resident, trim
from tests.benchmarks.pairs import Ratio, alternate
from tokencredit.recipes.init_model import write_initial_model
from tokencredit.recipes.schema import Init
from tokencredit.trainers.tab_po import TABPOConfig, TABPOTrainer

STEPS = 4
BATCH = 4
RECORD = '{"code":"Street","subcode":"Name","span":"word %d"},'
ROWS = [
    {
        "prompt": f"label the text number {i}: " + "word " * 20,
        "chosen": "[" + "".join(RECORD % j for j in range(6)) + f"{i}]",
        "rejected": "[" + "".join(RECORD % (j + 1) for j in range(6)) + f"{i}]",
    }
    for i in range(BATCH * STEPS)
]
CONFIG = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
WEIGHTS = {"json": {"[].code": 1.1, "[].subcode": 1.2, "[].span": 1.1}, "differing": 1.2}
COMMON: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": BATCH,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "beta": 0.5,
    "disable_tqdm": True,
}


class Rise(TrainerCallback):
    """The most memory the process holds in steps 2, 3, …, in MiB above weights, gradients and optimiser."""

    def __init__(self) -> None:
        self.mebibytes = 0.0
        self.done = threading.Event()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """After the first step the optimiser's state is there and the gradients are gone."""
        if state.global_step == 1:
            self.start = self.top = trim()
            self.gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop watching."""
        self.done.set()
        self.thread.join()
        self.mebibytes = (self.top - self.start - self.gradients) / 2**20

    def _watch(self) -> None:
        while not self.done.wait(0.001):
            self.top = max(self.top, resident())


def run() -> list[Ratio]:
    """Four steps of four pairs, with a log line each; memory in runs of its own."""
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
        write_initial_model(Init(model_type="llama", config=CONFIG), prompts, folder / "model", seed=0)

        def train(kind: Any, config: Any, **keys: Any) -> Any:
            args = config(output_dir=str(folder / "run"), **(COMMON | keys))
            trainer = kind(str(folder / "model"), args=args, train_dataset=Dataset.from_list(ROWS))
            trainer.remove_callback(PrinterCallback)
            return trainer

        def seconds(*which: Any, **keys: Any) -> float:
            trainer = train(*which, **keys)
            start = time.perf_counter()
            trainer.train()
            return time.perf_counter() - start

        def mebibytes(*which: Any, **keys: Any) -> float:
            trainer, rise = train(*which, **keys), Rise()
            trainer.add_callback(rise)
            trainer.train()
            return rise.mebibytes

        def compare(measure: Any, unit: str) -> Ratio:
            return alternate(
                f"TAB-PO / TRL's DPO, {STEPS} steps",
                partial(measure, DPOTrainer, DPOConfig, loss_type=["sigmoid_norm"]),
                partial(measure, TABPOTrainer, TABPOConfig, token_weights=WEIGHTS),
                repeats=7,
                unit=unit,
            )

        time_ratio = compare(seconds, "s")
        free_at_once()
        return [time_ratio, compare(mebibytes, "MiB")]
