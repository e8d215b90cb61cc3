"""The known faults of trainers (docs/training.md), each put into a copy of the code: its test must fail. `python -m benchmarks.traps 3 17`.

A fault is one replacement in one file. Where the code has changed so that the place is not found, that is an error: mend the fault here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import ROOT, ratio, table, write_section

HEADLINES = ("traps_caught",)
TRAIN, NETS, CHAT = "src/tunesmith/train/", "src/tunesmith/nets/", "src/tunesmith/core/chat.py"


class Fault(NamedTuple):
    """`good` in `file` becomes `bad`; `test` must then fail. The trap's number is that of the table in docs/training.md."""

    trap: int
    file: str
    good: str
    bad: str
    test: str


FAULTS = (
    Fault(
        1,
        TRAIN + "microbatch.py",
        "            grads = torch.autograd.grad(loss, parameters, allow_unused=True)",
        "            grads = torch.autograd.grad(loss / step.scale / len(piece.pack.at), parameters, allow_unused=True)",
        "test_train_loss::test_accumulation_divides_by_trained_tokens_not_by_micro_batches",
    ),
    Fault(
        2,
        CHAT,
        "encode_batch(texts, add",
        "encode_batch(['<|begin_of_text|>' + t for t in texts], add",
        "test_chat::test_a_begin_token_is_never_doubled",
    ),
    Fault(
        3,
        "src/tunesmith/core/turns.py",
        "ends = [at + len(stop) for stop in self.stops if",
        "ends = [at for stop in self.stops if",
        "test_train_traps::test_what_was_learned_is_said_and_then_it_stops",
    ),
    Fault(
        4,
        TRAIN + "packing.py",
        "        trained = np.flatnonzero(rows[i].mask)\n        trained = trained",
        "        trained = np.flatnonzero((rows[i].mask > 0) & (rows[i].ids != 2))\n        trained = trained",
        "test_train_loss::test_end_of_turn_that_equals_padding_is_trained",
    ),
    Fault(
        5,
        TRAIN + "packing.py",
        "at.append(where[trained - 1])",
        "at.append(where[np.minimum(trained, len(where) - 1)])",
        "test_train_loss::test_labels_are_shifted_exactly_once",
    ),
    Fault(
        6,
        TRAIN + "items.py",
        "not row.mask[1:].any()\n    ]",
        "False\n    ]",
        "test_train_loop::test_rows_without_anything_to_train_are_all_named",
    ),
    Fault(
        7,
        CHAT,
        "mask[(offsets[:, 0] >= start)",
        "mask[(offsets[:, 0] >= 0)",
        "test_chat::test_the_prompt_of_inference_is_the_start_of_the_trained_row",
    ),
    Fault(
        8,
        TRAIN + "packing.py",
        "._replace(reach=self.size)",
        "._replace(reach=10**9)",
        "test_train_packing::test_rows_of_a_pack_do_not_see_each_other",
    ),
    Fault(
        8,
        TRAIN + "packing.py",
        "self.positions.append(np.arange(start, stop))",
        "self.positions.append(np.arange(self.size, self.size + stop - start))",
        "test_train_packing::test_loss_and_gradients_equal_those_of_the_padded_batch",
    ),
    Fault(
        9,
        TRAIN + "methods/base.py",
        'return min(facts.longest, facts.positions), f"the longest row',
        'return min(facts.longest, facts.positions, 1024), f"the longest row',
        "test_train_traps::test_rows_beyond_1024_tokens_are_trained_whole_unless_the_plan_says_otherwise",
    ),
    Fault(
        10,
        NETS + "cached_attention.py",
        "distance = self.lengths[:, None] - torch.arange(self.keys, device=self.lengths.device)[None]",
        "distance = self.lengths.max() - torch.arange(self.keys, device=self.lengths.device).expand(len(self.lengths), -1)",
        "test_models_local::test_greedy_ids_are_those_of_transformers",
    ),
    Fault(
        11,
        TRAIN + "microbatch.py",
        "    trainable.model.eval()\n    step = batch.step",
        "    step = batch.step",
        "test_train_loss::test_evaluation_has_no_dropout_and_leaves_the_gradients_as_they_were",
    ),
    Fault(
        12,
        TRAIN + "artifact.py",
        'merged = x @ (w + layer.get_delta_weight("default").detach().float()).T',
        'merged = x @ (w.bfloat16() + layer.get_delta_weight("default").detach().bfloat16()).float().T',
        "test_train_traps::test_the_merge_is_judged_in_float32_where_the_base_is_bfloat16",
    ),
    Fault(
        13,
        TRAIN + "artifact.py",
        "(not result.largest_weight > 0,",
        "(False,",
        "test_train_traps::test_an_adapter_that_does_nothing_fails_the_artifacts_own_test",
    ),
    Fault(
        14,
        TRAIN + "checkpoint.py",
        "    trainable.causal.save_pretrained(folder)",
        "    trainable.causal.config.tie_word_embeddings = False\n"
        "    trainable.causal.lm_head.weight = torch.nn.Parameter(trainable.causal.lm_head.weight.clone())\n"
        "    trainable.causal.save_pretrained(folder)",
        "test_train_traps::test_full_training_keeps_tied_embeddings_tied",
    ),
    Fault(
        15,
        TRAIN + "checkpoint.py",
        'TOKENIZER_FILES = ("tokenizer.json", ',
        "TOKENIZER_FILES = (",
        "test_train_traps::test_added_tokens_and_the_template_come_with_the_result",
    ),
    Fault(
        16,
        TRAIN + "checkpoint.py",
        "    trainable.model.save_pretrained(folder)",
        "    trainable.model.save_pretrained(folder)\n"
        "    from safetensors.torch import load_file, save_file\n"
        "    save_file({k: v * ('layers.1' not in k) for k, v in load_file(folder / ADAPTER).items()}, folder / ADAPTER)",
        "test_train_traps::test_the_saved_adapter_is_whole_and_in_the_form_that_peft_and_vllm_read",
    ),
    Fault(
        17,
        TRAIN + "checkpoint.py",
        "        optimizer.state[p] = {key: value if",
        "        optimizer.state[p] = {} if True else {key: value if",
        "test_train_loop::test_killed_anywhere_it_ends_in_the_same_bytes",
    ),
    Fault(
        18,
        TRAIN + "adapters.py",
        "    torch.manual_seed(plan.seed)\n",
        "    torch.seed()\n",
        "test_train_loop::test_same_plan_and_data_give_the_same_bytes_and_another_seed_does_not",
    ),
    Fault(
        19,
        TRAIN + "loss.py",
        "return max(16, CHUNK_BYTES // (4 * vocabulary))",
        "return 10**9",
        "test_train_loss::test_evaluation_never_holds_the_logits_of_all_positions",
    ),
    Fault(
        20,
        TRAIN + "checkpoint.py",
        '"chat_template.jinja", ',
        "",
        "test_train_traps::test_training_serving_and_the_artifact_render_the_same_tokens",
    ),
    Fault(
        21,
        NETS + "multi_lora.py",
        '    alpha = config["lora_alpha"]\n',
        '    return float(config["lora_alpha"]) / rank\n    alpha = config["lora_alpha"]\n',
        "test_models_local::test_every_kind_of_adapter_scores_as_peft_does",
    ),
    Fault(
        22,
        TRAIN + "loop.py",
        "    state = trainer.begin(len(validation))\n",
        "    state = trainer.begin(len(validation))\n"
        "    if state.step:\n"
        "        reference = references(run, 'again', items, objective, trainable, side)\n",
        "test_train_preference::test_it_learns_what_is_preferred_and_resumes_to_the_same_bytes[dpo]",
    ),
    Fault(
        23,
        "src/tunesmith/evaluate/metrics/encoded.py",
        "lambda sums: np.exp(",
        "lambda sums: np.exp2(",
        "test_metrics_oracles::test_metrics_with_a_model_handed_in",
    ),
    Fault(
        24,
        TRAIN + "adapters.py",
        "load_causal(base, dtype=dtype)",
        "load_causal(base, dtype='auto')",
        "test_train_traps::test_a_base_stored_in_bfloat16_is_held_in_the_plans_type_and_the_adapter_in_float32",
    ),
    Fault(
        25,
        NETS + "nf4.py",
        "    @property\n    def weight(self)",
        "    def train(self, mode: bool = True):\n        if not mode:\n            self.packed.steps.mul_(1.1)\n"
        "        return super().train(mode)\n\n    @property\n    def weight(self)",
        "test_train_qlora::test_gradients_are_those_of_the_dequantised_weights_and_evaluation_changes_nothing",
    ),
    Fault(
        26,
        TRAIN + "reference.py",
        '(file.metadata() or {}).get("identity") == run.identity and ',
        "",
        "test_train_traps::test_references_of_another_run_are_not_used",
    ),
    Fault(
        27,
        "src/tunesmith/core/types.py",
        "forbid_unknown_fields=True",
        "forbid_unknown_fields=False",
        "test_train_traps::test_an_option_under_another_name_is_refused_with_the_name_it_has_here",
    ),
)


def caught(copy: Path, fault: Fault) -> bool:
    """Whether the test fails with the fault in the copy, which is whole again afterwards. Raises RuntimeError for a fault without place."""
    path, sound = copy / fault.file, (ROOT / fault.file).read_text("utf-8")
    if fault.good not in sound:
        raise RuntimeError(f"trap {fault.trap}: {fault.file} has changed, so the fault has no place; mend it in benchmarks/traps.py")
    path.write_text(sound.replace(fault.good, fault.bad, 1), "utf-8")
    file, _, test = fault.test.partition("::")
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{file}.py::{test}"]
    code = subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode
    path.write_text(sound, "utf-8")
    return code == 1  # 0: nothing noticed; anything else: the test did not run


def main(traps: Sequence[int] = ()) -> None:
    """All faults, or those of the traps named; all of them write the page's section. Raises RuntimeError when one is not noticed."""
    chosen = [fault for fault in FAULTS if not traps or fault.trap in traps]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, copy / name)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for fault in chosen:
            found.append(caught(copy, fault))
            print(f"  trap {fault.trap}: {'caught' if found[-1] else 'NOT CAUGHT'} by {fault.test}", flush=True)
    headline = ratio("traps_caught", sum(found) / len(chosen))
    if not traps:
        rows = [[fault.trap, f"`{fault.test}`", "yes" if noticed else "no"] for fault, noticed in zip(chosen, found, strict=True)]
        write_section("traps", "Known traps put into the code", f"{table(('trap', 'test', 'fails'), rows)}\n\n```\n{headline}\n```")
    if not all(found):
        raise RuntimeError(f"{found.count(False)} of {len(found)} faults were not noticed")


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
