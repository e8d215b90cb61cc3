"""Engines against each other: tokens per CPU-second of ours, transformers, peft, llama.cpp and ctranslate2 on the same weights and prompts.

Every side is given token ids and gives token ids; none renders a chat or speaks HTTP. The requests wait all at once and end at lengths of
their own, as requests do. Peers are in `.peers/`, converted models in `.peers/serve/`.

    python -m benchmarks.serve                  # or: make bench-serve
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import ROOT

HEADLINES = (
    "serve_vs_generate",
    "serve_vs_batch",
    "mixed_vs_one_adapter",
    "mixed_vs_peft",
    "serve_vs_llama_cpp",
    "serve_vs_ctranslate2",
    "adapter_switch_ms",
    "cold_adapter_ms",
)
CTRANSLATE2 = "ctranslate2==4.8.5"
KEPT = ROOT / ".peers" / "serve"
MODEL = "smollm2-135m"
REQUESTS, BATCH = 32, 8
ROUNDS = 3
ALONE = 3  # requests that are generated one by one: what they cost does not depend on how many follow
ADAPTERS = 2

Work = Callable[[], dict[str, Any]]


def requests() -> list[tuple[list[int], int]]:
    """(ids, how many tokens are wanted) of each request: prompts of 24 to 72 tokens, answers of 8 to 64, most of them short."""
    import random

    draw = random.Random(0)
    lengths = [max(8, min(64, int(draw.expovariate(1 / 28)))) for _ in range(REQUESTS)]
    return [([draw.randrange(1000, 40000) for _ in range(draw.randrange(24, 73))], length) for length in lengths]


def folder() -> Path:
    """The model."""
    from tunesmith.models.catalog import Catalog

    return Catalog().model(MODEL)


def adapters() -> list[Path]:
    """Adapters of rank 8 on every projection with random weights, made once."""
    made = [KEPT / f"adapter-{number}" for number in range(ADAPTERS)]
    if not all((path / "adapter_model.safetensors").is_file() for path in made):
        import peft
        import torch
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)
        for number, path in enumerate(made):
            torch.manual_seed(number)
            config = peft.LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
            changed = peft.get_peft_model(base, config, adapter_name="default")
            changed.save_pretrained(path)
            base = changed.unload()
    return made


def ours(dtype: str, count: int = REQUESTS, mixed: int = 0) -> Work:
    """The embedded engine: `count` requests, over `mixed` adapters in turn."""
    from tunesmith.models.local import LocalModel
    from tunesmith.nets.sequences import DecodeRequest

    base = LocalModel(folder(), name="base", dtype=dtype)
    models = [base.with_adapter(path, path.name) for path in adapters()[:mixed]] or [base]
    asked = requests()[:count]

    def run() -> dict[str, Any]:
        decoder, tokens = base.decoder(), 0
        for i, (ids, length) in enumerate(asked):
            decoder.add(DecodeRequest(ids=ids, max_tokens=length, adapter=models[i % len(models)].adapter))
        while decoder.busy:
            tokens += len(decoder.step())
        return {"work": tokens}

    return run


def transformers_model(dtype: str) -> Any:
    """transformers' own model."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder(), dtype=getattr(torch, dtype)).eval()


def generate(model: Any, rows: list[tuple[list[int], int]], **options: Any) -> int:
    """Left-padded `generate` until the longest row has its tokens; how many were wanted."""
    import torch

    width, most = max(len(ids) for ids, _ in rows), max(length for _, length in rows)
    ids = torch.tensor([[0] * (width - len(own)) + own for own, _ in rows])
    mask = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own, _ in rows])
    words = {"max_new_tokens": most, "min_new_tokens": most, "do_sample": False, "pad_token_id": 0}
    model.generate(input_ids=ids, attention_mask=mask, **words, **options)
    return sum(length for _, length in rows)


def one_by_one(dtype: str) -> Work:
    """`generate`, a request at a time."""
    model = transformers_model(dtype)
    return lambda: {"work": sum(generate(model, [row]) for row in requests()[:ALONE])}


def padded(dtype: str) -> Work:
    """`generate` in padded batches, sorted by length."""
    model = transformers_model(dtype)
    rows = sorted(requests()[: 2 * BATCH], key=lambda row: row[1])
    return lambda: {"work": sum(generate(model, rows[i : i + BATCH]) for i in range(0, len(rows), BATCH))}


def by_peft(dtype: str) -> Work:
    """peft's mixed batch: each row names its adapter."""
    from peft import PeftModel

    paths = adapters()
    model = PeftModel.from_pretrained(transformers_model(dtype), str(paths[0]), adapter_name="0")
    for number, path in enumerate(paths[1:], 1):
        model.load_adapter(str(path), adapter_name=str(number))
    model.eval()
    names = [str(i % len(paths)) for i in range(BATCH)]
    return lambda: {"work": generate(model, requests()[:BATCH], adapter_names=names)}


def llama_cpp(dtype: str) -> Work:
    """llama.cpp's server in this process, as many slots as requests, its cache in the weights' type."""
    from concurrent.futures import ThreadPoolExecutor

    import xllamacpp

    kind = {"float32": xllamacpp.ggml_type.GGML_TYPE_F32, "q8_0": xllamacpp.ggml_type.GGML_TYPE_F16}[dtype]
    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.warmup, params.verbosity = str(KEPT / f"{dtype}.gguf"), REQUESTS, False, 0
    params.n_ctx, params.cpuparams.n_threads, params.cpuparams_batch.n_threads = 160 * REQUESTS, 1, 1
    params.cache_type_k = params.cache_type_v = kind
    params.cache_ram_mib = 0
    if dtype == "float32":
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server, pool = xllamacpp.Server(params), ThreadPoolExecutor(REQUESTS)

    def ask(row: tuple[list[int], int]) -> int:
        body = {"prompt": row[0], "n_predict": row[1], "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = server.handle_completions(body)
        answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
        return int(answer["usage"]["completion_tokens"])

    return lambda: {"work": sum(pool.map(ask, requests()))}


def ctranslate2(dtype: str) -> Work:
    """ctranslate2's generator; a callback ends each request at its own length."""
    import ctranslate2 as engine

    generator = engine.Generator(str(KEPT / "ctranslate2"), device="cpu", compute_type=dtype, intra_threads=1, inter_threads=1)
    words = json.loads((KEPT / "words.json").read_text())
    lengths = [length for _, length in requests()]
    least = min(map(len, words))  # what is longer of a prompt counts as steps, too

    def ended(step: Any) -> bool:
        return bool(step.step + 1 >= lengths[step.batch_id] + len(words[step.batch_id]) - least)

    def run() -> dict[str, Any]:
        most = max(lengths)
        rows = generator.generate_batch(
            words, max_length=most, min_length=most, sampling_topk=1, include_prompt_in_result=False, callback=ended
        )
        return {"work": sum(min(len(row.sequences_ids[0]), length) for row, length in zip(rows, lengths, strict=True))}

    return run


def switching(dtype: str) -> Work:
    """What a first token costs in time when the request before it was another adapter's, above what it costs when it was its own."""
    from tunesmith.models.local import LocalModel
    from tunesmith.nets.sequences import DecodeRequest

    base = LocalModel(folder(), name="base", dtype=dtype)
    models = [base.with_adapter(path, path.name) for path in adapters()]
    ids = requests()[0][0]

    def first_token(adapter: str | None) -> float:
        decoder = base.decoder()
        start = time.perf_counter()
        decoder.add(DecodeRequest(ids=ids, max_tokens=1, adapter=adapter))
        while decoder.busy:
            decoder.step()
        return (time.perf_counter() - start) * 1000

    def run() -> dict[str, Any]:
        one, other = (model.adapter for model in models[:2])
        for _ in range(3):
            first_token(one), first_token(other)
        same = [first_token(one) for _ in range(15)]
        changed = [first_token((one, other)[i % 2]) for i in range(15)]
        return {"work": 1, "switch_ms": max(0.0, median(changed) - median(same))}

    return run


SIDES: dict[str, Callable[[str], Work]] = {
    "ours": ours,
    "ours, 8 at once": lambda dtype: ours(dtype, BATCH),
    "ours, 8 over one adapter": lambda dtype: ours(dtype, BATCH, 1),
    "ours, 8 over two adapters": lambda dtype: ours(dtype, BATCH, 2),
    "peft, 8 over two adapters": by_peft,
    "generate, one by one": one_by_one,
    "generate, batches of 8": padded,
    "llama.cpp": llama_cpp,
    "ctranslate2": ctranslate2,
    "switching": switching,
}


def prepare(python: str) -> None:
    """Convert the model for the peers, once."""
    KEPT.mkdir(parents=True, exist_ok=True)
    adapters()
    from tunesmith.deploy.export.gguf import write_file
    from tunesmith.deploy.export.model_files import ModelFiles

    files = ModelFiles(name=MODEL, base=folder(), adapter=None, base_name=MODEL)
    for precision, name in (("f32", "float32"), ("q8_0", "q8_0")):
        if not (out := KEPT / f"{name}.gguf").is_file():
            write_file(files, out, precision)
    if not (KEPT / "ctranslate2" / "model.bin").is_file():
        import subprocess

        # It converts with our torch and transformers: only its own package comes from its environment.
        packages = next(Path(python).parent.parent.glob("lib/python*/site-packages"))
        code = (
            f"import sys; sys.path.append({str(packages)!r}); from ctranslate2.converters import TransformersConverter as C; "
            f"C({str(folder())!r}).convert({str(KEPT / 'ctranslate2')!r}, force=True)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder())
    (KEPT / "words.json").write_text(json.dumps([tokenizer.convert_ids_to_tokens(ids) for ids, _ in requests()]))


def side(name: str, dtype: str) -> None:
    """Do one side's work once, its model loaded, and print its figures."""
    work = SIDES[name](dtype)
    before, started = time.process_time(), time.perf_counter()
    figures = work()
    figures |= {"cpu_s": time.process_time() - before, "wall_s": time.perf_counter() - started}
    figures |= {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "versions": {}}
    print(json.dumps(figures), flush=True)
    os._exit(0)  # llama.cpp's threads have no other end


def main() -> None:
    """Run the sides alternately and write the section."""
    from benchmarks.harness import Side, alternate, once, peer_python, ratio, table, write_section

    python = peer_python("ctranslate2", [CTRANSLATE2, "numpy"])
    prepare(python)
    one_thread = {"OMP_NUM_THREADS": "1"}
    asked = [(name, "float32") for name in SIDES]
    asked += [("ours", "bfloat16"), ("generate, batches of 8", "bfloat16"), ("llama.cpp", "q8_0"), ("ctranslate2", "int8")]

    def command(name: str, dtype: str) -> list[str]:
        return [python if name == "ctranslate2" else sys.executable, "-m", "benchmarks.serve", name, dtype]

    sides = [Side(f"{name}, {dtype}", command(name, dtype), one_thread) for name, dtype in asked]
    results = alternate(sides, ROUNDS)
    registered = once(Side("registered adapters", [sys.executable, "-m", "benchmarks.serve_adapters"], one_thread))
    rate = {label: result.per_cpu_s for label, result in results.items()}

    def over(label: str, other: str, dtype: str = "float32") -> float:
        return rate[f"{label}, {dtype}"] / rate[f"{other}, {dtype}"]

    lines = [
        ratio("serve_vs_generate", over("ours", "generate, one by one")),
        ratio("serve_vs_batch", over("ours", "generate, batches of 8")),
        ratio("mixed_vs_one_adapter", over("ours, 8 over two adapters", "ours, 8 over one adapter")),
        ratio("mixed_vs_peft", over("ours, 8 over two adapters", "peft, 8 over two adapters")),
        ratio("serve_vs_llama_cpp", over("ours", "llama.cpp")),
        ratio("serve_vs_ctranslate2", over("ours", "ctranslate2")),
        ratio("adapter_switch_ms", results["switching, float32"].median("switch_ms")),
        ratio("cold_adapter_ms", registered["cold_more_ms"]),
    ]
    rows = [[label, one.per_cpu_s, one.median("peak_mb")] for label, one in results.items() if not label.startswith("switching")]
    body = table(["side", "tokens per CPU-second", "peak MB"], rows)
    write_section("serve", "Serving: engines on the same weights", "\n\n".join([_about(registered), body, "\n".join(lines)]))


def _about(registered: dict[str, Any]) -> str:
    """What was measured, and how."""
    return (
        f"SmolLM2-135M, one thread, {REQUESTS} requests at once of 24 to 72 prompt tokens and 8 to 64 new ones, each ending on its own; "
        f"medians of {ROUNDS} rounds in turn. `generate` one by one answers {ALONE} of them, in padded batches of {BATCH} sorted by length "
        f"{2 * BATCH}. llama.cpp has a slot for each request, ctranslate2 a callback that ends each. Adapters: rank 8 on every projection. "
        "`adapter_switch_ms`: the first token after another adapter's request, above that after the same one's. `cold_adapter_ms`: over "
        f"HTTP, with {registered['registered']:,} adapters registered and {registered['held']} of them in memory, the first token of one "
        f"that is not, above that of one that is (the longest of these first tokens took {registered['cold_most_ms']:.0f} ms)."
    )


if __name__ == "__main__":
    side(*sys.argv[1:]) if len(sys.argv) > 1 else main()
