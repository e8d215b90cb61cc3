"""Runs under .peers/trl: trains the rows of a JSON job with TRL and writes the loss of each step and the final adapter.

job: {base, method, batch, accumulation, epochs, learning_rate, beta, loss_type, rows, out}; rows are token lists as each trainer wants them.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")


def main(path: str) -> None:
    """Train and write the result beside the job."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    job = json.loads(Path(path).read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"))
    common = {
        "output_dir": job["out"] + "/trl",
        "per_device_train_batch_size": job["batch"],
        "gradient_accumulation_steps": job["accumulation"],
        "num_train_epochs": job["epochs"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=job["base"] + "/tokenizer.json", pad_token="<2>", eos_token="<2>")
    trainer = build(job, common, model, tokenizer, Dataset.from_list(job["rows"]))
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    save_file({n: p.detach().contiguous() for n, p in trainer.model.named_parameters() if p.requires_grad}, job["out"] + "/trl.safetensors")
    (Path(job["out"]) / "trl.json").write_text(json.dumps(losses), encoding="utf-8")


def build(job, common, model, tokenizer, dataset):
    """The TRL trainer of the job's method, handed tokens as they are."""
    import trl

    if job["method"] == "sft":
        config = trl.SFTConfig(**common, completion_only_loss=True)
        return trl.SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    if job["method"] == "dpo":
        trl.DPOTrainer._prepare_dataset = lambda self, dataset, *rest: dataset  # the rows are tokens already
        config = trl.DPOConfig(**common, beta=job["beta"], loss_type=job["loss_type"])
        return trl.DPOTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    if job["method"] == "kto":
        trl.KTOTrainer._prepare_dataset = lambda self, dataset, *rest: dataset
        config = trl.KTOConfig(**common, beta=job["beta"])
        return trl.KTOTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    raise SystemExit(f"no trainer for {job['method']}")


main(sys.argv[1])
