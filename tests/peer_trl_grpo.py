"""Runs under .peers/trl: TRL's GRPO loss of the samples of a JSON job, and its gradient.

job: {base, adapter, loss, beta, clip, clip_high, temperature, max_tokens, prompts, answers, advantages, old, reference, out}.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")


def padded(rows, value, *, left=False):
    """The rows as one tensor, and the mask of what is theirs."""
    import torch

    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) for row in rows]
    gaps = [[0] * len(one) for one in fill]
    joined = [(a + b if left else b + a) for a, b in zip(fill, rows, strict=True)]
    masks = [(a + b if left else b + a) for a, b in zip(gaps, mask, strict=True)]
    return torch.tensor(joined), torch.tensor(masks)


def main(path: str) -> None:
    """Write loss and gradients beside the job."""
    import torch
    import trl
    from datasets import Dataset
    from peft import PeftModel
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    job = json.loads(Path(path).read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
    count = len(job["answers"])
    config = trl.GRPOConfig(
        output_dir=job["out"] + "/trl", per_device_train_batch_size=count, num_generations=count, max_completion_length=job["max_tokens"],
        loss_type=job["loss"], beta=job["beta"], epsilon=job["clip"], epsilon_high=job["clip_high"], temperature=job["temperature"],
        report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, disable_dropout=True, use_bias_correction_kl=False,
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job["base"])
    data = Dataset.from_list([{"prompt": "x"}] * count)
    trainer = trl.GRPOTrainer(
        model=model, reward_funcs=lambda **_: [0.0] * count, args=config, train_dataset=data, processing_class=tokenizer
    )
    trainer.current_gradient_accumulation_steps = 1
    prompts, prompt_mask = padded(job["prompts"], 0, left=True)
    answers, answer_mask = padded(job["answers"], 0)
    inputs = {
        "prompt_ids": prompts, "prompt_mask": prompt_mask, "completion_ids": answers, "completion_mask": answer_mask,
        "advantages": torch.tensor(job["advantages"]), "num_items_in_batch": answer_mask.sum(),
        "old_per_token_logps": padded(job["old"], 0.0)[0], "ref_per_token_logps": padded(job["reference"], 0.0)[0],
    }  # fmt: skip
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    save_file({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}, job["out"] + "/trl.safetensors")
    (Path(job["out"]) / "trl.json").write_text(json.dumps(loss.item()), encoding="utf-8")


main(sys.argv[1])
