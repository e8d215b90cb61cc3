"""The greedy answers of every engine against transformers' own `generate` in float32, token for token, on the rows of two tasks.

`python -m benchmarks.serve_greedy` asks 200 prompts and writes its table into docs/performance.md; `--prompts 8 --tokens 4` is a small one,
which is printed. The base is SmolLM2-135M, adapters are of rank 8 on every projection, and every other prompt is another one's. A side that
says at each place of the reference's answer what the reference says there has the same greedy answer: so the merged weights and llama.cpp
are followed along it; the others write their own.
"""

from __future__ import annotations

import argparse
import gc
import json
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import ratio, table, write_section
from benchmarks.serve import adapters, folder

PROMPTS, TOKENS = 200, 16
_TASKS = ("soc_codes", "ner_finance")
_TIE = 1e-3  # between two logits: what rounding decides in float32
Ids = list[int]


@dataclass
class Asked:
    """What is asked, and what transformers answers: the base (None), and each prompt's own adapter."""

    prompts: list[Ids]
    stop_ids: frozenset[int]
    word: Callable[[int], str]
    tokens: int
    paths: list[Path]
    answers: dict[bool, list[Ids]] = field(default_factory=dict)  # under adapters, or not

    def adapter(self, number: int) -> Path:
        """Which adapter a prompt is asked under."""
        return self.paths[number % len(self.paths)]


@dataclass(frozen=True)
class Line:
    """A side's answers: how many are the reference's, how many tokens of them, and where the first one leaves it and why."""

    side: str
    rows: int
    same: int
    tokens: tuple[int, int]
    first: str = ""
    reason: str = ""

    def cells(self) -> list[str]:
        """A row of the table."""
        if self.reason:
            return [self.side, "–", "–", self.reason]
        return [self.side, f"{self.same} of {self.rows}", f"{self.tokens[0]} of {self.tokens[1]}", self.first or "–"]


def questions(count: int) -> list[Any]:
    """The first rows of each task, in turn."""
    from tunesmith.core.types import Message, Prompt
    from tunesmith.models.catalog import Catalog

    made = []
    for name in _TASKS:
        lines = Catalog().dataset(name).read_text("utf-8").splitlines()[: -(-count // len(_TASKS))]
        turns = [json.loads(line)["input"] for line in lines]
        made.append([Prompt(messages=tuple(Message(role=t["role"], content=t["content"]) for t in each)) for each in turns])
    return [prompt for each in zip(*made, strict=True) for prompt in each][:count]


def reference(asked: Asked, *, adapted: bool) -> Iterator[tuple[int, Any]]:
    """Each prompt's number with the model of transformers (and peft) that answers it; one model at a time."""
    import torch
    from peft import PeftModel

    from tunesmith.models.load_causal import load_causal

    for path in asked.paths if adapted else [None]:
        model = load_causal(folder(), dtype=torch.float32).eval()
        if path is not None:
            model = PeftModel.from_pretrained(model, path).eval().get_base_model()
        for number in range(len(asked.prompts)):
            if path is None or path == asked.adapter(number):
                yield number, model
        del model
        gc.collect()


def answered(asked: Asked, *, adapted: bool) -> list[Ids]:
    """transformers' own greedy answers."""
    from tunesmith.deploy.parity_pass import greedy

    answers: list[Ids] = [[] for _ in asked.prompts]
    for number, model in reference(asked, adapted=adapted):
        answers[number] = greedy(model, asked.prompts[number], asked.stop_ids, asked.tokens)
    return answers


def embedded(asked: Asked, *, cached: bool = False, adapted: bool = False) -> list[Ids]:
    """Our decoder, all prompts at once; or a prompt at a time by transformers' cache."""
    from tunesmith.models.local import LocalModel
    from tunesmith.nets.plain_decoder import PlainDecoder
    from tunesmith.nets.sequences import DecodeRequest

    base = LocalModel(folder(), name="base", dtype="float32")
    models = [base.with_adapter(path, path.name) for path in asked.paths] if adapted else [base]
    decoder: Any = PlainDecoder(base.engine.plain) if cached else base.decoder()
    rows: dict[int, int] = {}
    for number, ids in enumerate(asked.prompts):
        own = models[number % len(models)].adapter
        rows[decoder.add(DecodeRequest(ids=ids, max_tokens=asked.tokens, stop_ids=asked.stop_ids, adapter=own))] = number
    answers: list[Ids] = [[] for _ in asked.prompts]
    while decoder.busy:
        for token in decoder.step():
            answers[rows[token.sequence]].append(token.id)
    return answers


def merged(asked: Asked) -> list[Ids]:
    """The merged exports of the adapters, followed along the reference's answers."""
    import torch

    from tunesmith.deploy.export.merged import write_merged
    from tunesmith.deploy.export.model_files import ModelFiles
    from tunesmith.deploy.parity_pass import along
    from tunesmith.models.load_causal import load_causal

    answers: list[Ids] = [[] for _ in asked.prompts]
    for path in asked.paths:
        with TemporaryDirectory() as made:
            write_merged(ModelFiles(name="merged", base=folder(), adapter=path, base_name="base"), Path(made))
            model = load_causal(Path(made), dtype=torch.float32).eval()
            for number, answer in enumerate(asked.answers[True]):
                if asked.adapter(number) == path:
                    answers[number] = along(model, asked.prompts[number], answer).argmax(-1).tolist()
        del model
        gc.collect()
    return answers


def llama_cpp(asked: Asked, precision: Any) -> list[Ids]:
    """llama.cpp over the file in that precision, followed along the reference's answers. Where it says nothing (of an end, and of the first
    half of a letter) nothing is compared."""
    from tunesmith.deploy.export.gguf import FILE, write_file
    from tunesmith.deploy.export.model_files import ModelFiles
    from tunesmith.deploy.parity_gguf import LlamaCpp

    with TemporaryDirectory() as made:
        file = Path(made) / FILE
        write_file(ModelFiles(name="base", base=folder(), adapter=None, base_name="base"), file, precision)
        model = LlamaCpp(file, max(map(len, asked.prompts)) + asked.tokens + 1)
        answers = []
        for ids, answer in zip(asked.prompts, asked.answers[False], strict=True):
            said = [model.next([*ids, *answer[:at]]) for at in range(len(answer))]
            answers.append([next(iter(each), token) for each, token in zip(said, answer, strict=True)])
    return answers


def vllm(asked: Asked, python: str | None) -> list[Ids]:
    """vLLM as a process of ours. Raises RuntimeError where it is not installed."""
    from tunesmith.models.engine_settings import EngineSettings
    from tunesmith.models.engines import Vllm, vllm_version

    if vllm_version(python) is None:
        raise RuntimeError("skipped: no vLLM is installed here (`--vllm PYTHON` names the interpreter of an environment that has it)")
    with TemporaryDirectory() as logs:
        settings = EngineSettings(python=python, options=("--dtype", "float32"))
        engine = Vllm(folder(), "base", Path(logs) / "vllm.log", settings, {})
        engine.server.wait()
        try:
            return [_completed(f"{engine.server.url}/v1/completions", ids, asked.tokens) for ids in asked.prompts]
        finally:
            engine.server.stop()


def _completed(url: str, ids: Ids, tokens: int) -> Ids:
    body = {"model": "base", "prompt": ids, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return list(json.load(answer)["choices"][0]["token_ids"])


def compared(side: str, asked: Asked, answers: Sequence[Ids], *, adapted: bool) -> Line:
    """How many answers are the reference's; the first that is not, with the gap of the reference's two logits there."""
    places, expected = [], asked.answers[adapted]
    for own, wanted in zip(answers, expected, strict=True):
        differs = [at for at, (a, b) in enumerate(zip(own, wanted, strict=False)) if a != b]
        places.append(differs[0] if differs else None if len(own) >= len(wanted) else len(own))
    apart = {number: place for number, place in enumerate(places) if place is not None}
    kept = sum(len(wanted) if place is None else place for place, wanted in zip(places, expected, strict=True))
    words = ""
    if apart:
        number, place = next(iter(apart.items()))
        words = _why(asked, number, place, answers[number], adapted=adapted)
    return Line(side, len(answers), len(answers) - len(apart), (kept, sum(map(len, expected))), words)


def _why(asked: Asked, number: int, place: int, own: Ids, *, adapted: bool) -> str:
    from tunesmith.deploy.parity_pass import along

    wanted = asked.answers[adapted][number]
    if place >= len(own):
        return f"prompt {number + 1}, token {place + 1}: no token, for {asked.word(wanted[place])!r}"
    model = next(model for other, model in reference(asked, adapted=adapted) if other == number)
    logits = along(model, asked.prompts[number], wanted)[place]
    gap = float(logits[wanted[place]] - logits[own[place]])
    verdict = "a tie: rounding decides" if abs(gap) <= _TIE else "no tie"
    return (
        f"prompt {number + 1}, token {place + 1}: {asked.word(own[place])!r} for {asked.word(wanted[place])!r}, {gap:.1e} apart; {verdict}"
    )


def lines(asked: Asked, python: str | None) -> Iterator[Line]:
    """Every side, one after the other; one that cannot be had is named with the reason."""
    sides: list[tuple[str, bool, Callable[[], list[Ids]]]] = [
        ("embedded, batched", False, lambda: embedded(asked)),
        ("embedded, batched, two adapters in one batch", True, lambda: embedded(asked, adapted=True)),
        ("embedded, cached", False, lambda: embedded(asked, cached=True)),
        ("merged export, by transformers", True, lambda: merged(asked)),
        ("llama.cpp, GGUF in float32", False, lambda: llama_cpp(asked, "f32")),
        ("llama.cpp, GGUF in float16", False, lambda: llama_cpp(asked, "f16")),
        ("vLLM", False, lambda: vllm(asked, python)),
    ]
    for side, adapted, work in sides:
        try:
            line = compared(side, asked, work(), adapted=adapted)
        except (RuntimeError, ImportError) as error:
            line = Line(side, 0, 0, (0, 0), reason=str(error).splitlines()[0])
        print("  " + "  ".join(line.cells()), flush=True)
        yield line
        gc.collect()


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, compare and write."""
    from tunesmith.core.chat import Renderer

    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--prompts", type=int, default=PROMPTS)
    reader.add_argument("--tokens", type=int, default=TOKENS)
    reader.add_argument("--vllm", default=None, help="the interpreter of an environment with vLLM")
    given = reader.parse_args(arguments)
    renderer = Renderer.load(folder())
    prompts = [renderer.prompt(prompt) for prompt in questions(given.prompts)]
    asked = Asked(prompts, renderer.stop_ids, renderer.word, given.tokens, adapters())
    for adapted in (False, True):
        asked.answers[adapted] = answered(asked, adapted=adapted)
        print(f"  transformers{' and peft' if adapted else ''}: {sum(map(len, asked.answers[adapted]))} tokens", flush=True)
    seen = list(lines(asked, given.vllm))
    computed = [line for line in seen if not line.reason]
    headline = ratio("greedy_same", min(line.same / line.rows for line in computed))
    if given.prompts < PROMPTS:
        return
    about = (
        f"SmolLM2-135M, {given.prompts} prompts of two tasks ({min(map(len, prompts))} to {max(map(len, prompts))} tokens), at most "
        f"{given.tokens} new ones, everything computed in float32: what each engine answers greedily against transformers' `generate` "
        "(with peft, where there are adapters). A gap is between the reference's own logits of both tokens."
    )
    body = table(("engine", "same answers", "same tokens", "first difference"), [line.cells() for line in seen])
    write_section(
        "serve_greedy",
        "Greedy answers, token for token",
        f"{about}\n\n{body}\n\n`{headline}`: of the engine with the fewest the same, the share of the answers.",
        again="python -m benchmarks.serve_greedy",
    )


if __name__ == "__main__":
    main()
