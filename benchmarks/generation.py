"""Generation against its peer: tokens per CPU-second of our decoder and of transformers' padded batches, saying the same tokens.

Run as a program with the name of a side it does that side's work once and prints its figures.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

HEADLINES = ("generation_vs_transformers", "shared_prompt_vs_transformers")
PROMPTS, NEW, BATCH = 48, 24, 16
# How often the system prompt says its example: the prompts share about 70 and 600 tokens.
SHAPES = {"zero-shot": 1, "few-shot": 12}
EXAMPLE = "From 'This agreement is between Acme Corp and First Bank' one lists: Acme Corp (organisation), First Bank (organisation). "


def prompts(shape: str) -> list[Any]:
    """Questions of 15 to 60 tokens under one system prompt."""
    from tunesmith.core.types import Message, Prompt

    line = "the lender may assign its commitment under this agreement to any bank in New York with consent of the borrower"
    words = line.split()
    system = Message(role="system", content="List the entities of the sentence. " + EXAMPLE * SHAPES[shape])
    asked = [" ".join(words[(7 * i + j) % len(words)] for j in range(12 + 40 * (i % 7) // 6)) for i in range(PROMPTS)]
    return [Prompt(messages=(system, Message(role="user", content=text))) for text in asked]


def ours(shape: str) -> Callable[[], int]:
    from tunesmith.core.types import Sampling
    from tunesmith.models.catalog import Catalog
    from tunesmith.models.local import LocalModel

    model, asked = LocalModel(Catalog().model("smollm2-135m"), name="base", dtype="float32"), prompts(shape)
    return lambda: sum(answer.completion_tokens for answer in model.answer(asked, Sampling(max_tokens=NEW)))


def theirs(shape: str) -> Callable[[], int]:
    """transformers' `generate` as people write it: sorted by length, left-padded, in batches."""
    import torch
    from transformers import AutoModelForCausalLM

    from tunesmith.core.chat import Renderer
    from tunesmith.models.catalog import Catalog

    folder = Catalog().model("smollm2-135m")
    renderer = Renderer.load(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = sorted((renderer.prompt(prompt) for prompt in prompts(shape)), key=len)

    ends = {"eos_token_id": list(renderer.stop_ids), "pad_token_id": 2}

    def run() -> int:
        count = 0
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            width = max(map(len, batch))
            ids = torch.tensor([[2] * (width - len(row)) + row for row in batch])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
            out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **ends)
            count += sum(_said(row, renderer.stop_ids) for row in out[:, width:].tolist())
        return count

    return run


def _said(row: list[int], stops: frozenset[int]) -> int:
    """Tokens up to and with the first stop."""
    return next((i + 1 for i, number in enumerate(row) if number in stops), len(row))


def side(name: str) -> None:
    """Do one side's work once and print its figures."""
    who, shape = name.split("/")
    work = {"ours": ours, "transformers": theirs}[who](shape)
    before, started = time.process_time(), time.perf_counter()
    tokens = work()
    cpu, wall = time.process_time() - before, time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps({"work": tokens, "cpu_s": cpu, "wall_s": wall, "peak_mb": peak, "versions": {"transformers": version("transformers")}})
    )


def main() -> None:
    """Run the sides alternately and write the section."""
    from benchmarks.harness import Side, alternate, ratio, table, write_section

    one_thread = {"OMP_NUM_THREADS": "1"}
    rows, lines = [], []
    for shape, headline in zip(SHAPES, HEADLINES, strict=True):
        names = [f"{who}/{shape}" for who in ("ours", "transformers")]
        sides = [Side(name, [sys.executable, "-m", "benchmarks.generation", name], one_thread) for name in names]
        results = alternate(sides)
        our, their = (results[one.label] for one in sides)
        rows += [[one.label, one.median("work"), one.per_cpu_s, one.median("peak_mb")] for one in (our, their)]
        lines.append(ratio(headline, our.per_cpu_s / their.per_cpu_s))
    versions = our.rounds[0]["versions"]
    about = (
        f"SmolLM2-135M in float32, one thread, {PROMPTS} prompts under one system prompt, greedy, at most {NEW} new tokens; transformers "
        f"{versions['transformers']} generates in left-padded batches of {BATCH}, sorted by length. Both say the same tokens."
    )
    body = table(["side", "tokens", "tokens per CPU-second", "peak MB"], rows)
    write_section("generation", "Generation", "\n\n".join([about, body, "\n".join(lines)]))


if __name__ == "__main__":
    side(sys.argv[1]) if len(sys.argv) > 1 else main()
