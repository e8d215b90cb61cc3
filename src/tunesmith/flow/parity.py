"""`tunesmith parity`: one model computed by training, by peft on its base, as a merged export and behind the server's port, on the task's
own rows; joins the rooms and draws the conclusion of the pure comparison (`deploy/parity.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tunesmith.core.chat import Rendered, Renderer
from tunesmith.core.errors import DataError, TunesmithError, UsageError
from tunesmith.core.load import need
from tunesmith.core.memory import give_back
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.row_kinds import as_examples
from tunesmith.core.types import Example, Prompt, Record
from tunesmith.deploy.export.gguf import FILE, PRECISIONS, Precision, write_file
from tunesmith.deploy.export.merged import write_merged
from tunesmith.deploy.export.model_files import ModelFiles
from tunesmith.deploy.parity import END, Agreement, SideRow, TokenPlace, agreement, table
from tunesmith.deploy.parity_gguf import LlamaCpp
from tunesmith.evaluate.prompts import as_given
from tunesmith.flow.evaluation.run import Bench
from tunesmith.flow.exported_files import model_files
from tunesmith.flow.temporary_server import Server
from tunesmith.store.store import Store

if TYPE_CHECKING:
    from tunesmith.train.plan import ResolvedPlan
    from tunesmith.train.predicted import Kind

_Side = Callable[[Sequence[SideRow]], Agreement | None]
_TOP = 20  # log-probabilities that are asked of the server at each token


class ParityAsk(Record, frozen=True):
    """Which rows are asked, how many of them, and how many tokens of each answer are compared. `gguf` are precisions of llama.cpp's file to
    compare too; `brief` leaves out training, and any type but float32."""

    data: str = "validation"
    limit: int = 16
    max_tokens: int = 48
    gguf: tuple[str, ...] = ()
    brief: bool = False

    def __post_init__(self) -> None:
        if unknown := [name for name in self.gguf if name not in PRECISIONS]:
            raise UsageError(f"unknown precision '{unknown[0]}'", where="--gguf", allowed=", ".join(PRECISIONS))
        if self.limit < 1 or self.max_tokens < 1:
            raise UsageError(f"--limit {self.limit} --max-tokens {self.max_tokens}", allowed="1 or more of each")


class Parity(Record, frozen=True):
    """The table, and which sides could not be computed, with the reason."""

    model: str
    data: str
    lines: tuple[Agreement, ...]
    left_out: dict[str, str] = {}

    @property
    def passed(self) -> bool:
        """Whether every side that is judged agrees."""
        return all(line.passed for line in self.lines)

    def text(self) -> str:
        """For people."""
        left = [f"{side}: not computed: {reason}" for side, reason in self.left_out.items()]
        verdict = "pass: every side computes the same model" if self.passed else "BLOCK: a side computes another model than the reference"
        return "\n".join([f"{self.model} on {self.data}, against transformers and peft alone", table(self.lines), *left, verdict])


def parity(word: str, ask: ParityAsk, at: Bench, server: Server, *, ref: ModelRef | None = None) -> Parity:
    """Compare every way to compute the model that the word names, or `ref` by that word. Raises UsageError for sealed rows, and where no
    weights are here."""
    ref = ref or at.models.ref(word)
    files = model_files(word, ref, at)
    name, examples = _rows(ask, at)
    compared = _Compared(files, examples, ask, server, at)
    lines = [line for kind in compared.kinds() for line in compared.lines(kind)]
    return Parity(model=word, data=name, lines=tuple(lines), left_out=compared.left_out)


def _rows(ask: ParityAsk, at: Bench) -> tuple[str, list[Example]]:
    """The first rows that have a question."""
    read = at.reader.read(ask.data)
    sealed = next((rows.name for rows in read if rows.sealed), None)
    if sealed is not None:
        raise UsageError(f"'{sealed}' are sealed rows", where="--data", allowed="validation, train, a file", remedy="--data validation")
    examples = [row for rows in read for row in as_examples(rows.rows) if row.prompt][: ask.limit]
    if not examples:
        raise DataError("no row has a question to answer", where=ask.data)
    return ask.data, examples


@dataclass
class _Compared:
    """One model, computed in every way."""

    files: ModelFiles
    examples: list[Example]
    ask: ParityAsk
    server: Server
    at: Bench
    left_out: dict[str, str] = field(default_factory=dict)
    answers: list[list[int]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.renderer = Renderer.load(self.files.base)
        self.prompts: list[Prompt] = [as_given(row) for row in self.examples]
        self.ids = [self.renderer.prompt(prompt) for prompt in self.prompts]
        self.plan = self._plan()

    def _plan(self) -> ResolvedPlan | None:
        from tunesmith.train.predicted import plan_of

        try:
            return plan_of(self.files.base, self.files.adapter)
        except TunesmithError as error:
            self.left_out["training"] = error.what
            return None

    def word(self, token: int) -> str:
        """How a token is called in answers; every one that ends them alike."""
        return END if token in self.renderer.stop_ids else self.renderer.word(token)

    def kinds(self) -> list[Kind]:
        """The types to compute in: float32, and the plan's where it is another."""
        if self.ask.brief:
            return ["float32"]
        return ["float32", *([self.plan.dtype] if self.plan is not None and self.plan.dtype != "float32" else [])]

    def lines(self, kind: Kind) -> Iterator[Agreement]:
        """Each side's agreement in one type."""
        self.at.progress.say(f"the reference answers in {kind}")
        reference = self._reference(kind)
        give_back(cycles=True)
        sides: list[_Side] = [partial(self._training, kind), partial(self._merged, kind), partial(self._served, kind)]
        sides += [partial(self._gguf, precision) for precision in PRECISIONS if precision in self.ask.gguf and kind == "float32"]
        for side in sides[1:] if self.ask.brief else sides:
            line = side(reference)
            if line is not None:
                self.at.progress.say(f"{line.side} in {kind}: {line.same_answers} of {line.rows} answers are the same")
                yield line
            give_back(cycles=True)

    def _loaded(self, folder: Path, adapter: Path | None, kind: Kind) -> Any:
        """The model by transformers, under its adapter by peft."""
        torch = need("torch", extra="local")
        from tunesmith.models.load_causal import load_causal

        model = load_causal(folder, dtype=getattr(torch, kind)).eval()
        if adapter is not None:
            model = need("peft", extra="local").PeftModel.from_pretrained(model, adapter).eval().get_base_model()
        return model

    def _reference(self, kind: Kind) -> list[SideRow]:
        from tunesmith.deploy.parity_pass import along, greedy, reference_places

        model, rows = self._loaded(self.files.base, self.files.adapter, kind), []
        self.answers = []
        for example, ids in zip(self.examples, self.ids, strict=True):
            answer = greedy(model, ids, self.renderer.stop_ids, self.ask.max_tokens)
            self.answers.append(answer)
            rows.append(SideRow(row=example.id, prompt=tuple(ids), places=reference_places(along(model, ids, answer), answer, self.word)))
        return rows

    def _training(self, kind: Kind, reference: Sequence[SideRow]) -> Agreement | None:
        """The rows as training renders them, and their logits on its own route."""
        from tunesmith.deploy.parity_pass import places
        from tunesmith.train.predicted import predicted

        if self.plan is None:
            return None
        prompts = [self._taught(example, len(ids)) for example, ids in zip(self.examples, self.ids, strict=True)]
        rendered = [
            Rendered(example.id, np.array([*ids, *answer], np.int32), np.array([0] * len(ids) + [1] * len(answer), np.uint8))
            for example, ids, answer in zip(self.examples, self.ids, self.answers, strict=True)
        ]
        four = self.plan.adapter.quantise == "nf4"
        try:
            rows = [
                SideRow(row=row.example_id, prompt=tuple(prompt), places=places(logits, answer, self.word))
                for row, prompt, logits, answer in zip(
                    rendered, prompts, predicted(self.files.base, self.plan, rendered, kind), self.answers, strict=True
                )
            ]
        except TunesmithError as error:
            self.left_out["training"] = error.what
            return None
        line = agreement("training", kind, reference, rows, judged=not four)
        return msgspec.structs.replace(line, reason="the base in 4 bits, as it was trained on") if four else line

    def _taught(self, example: Example, length: int) -> list[int]:
        """The ids before the row's last answer as training renders it; the whole row where no answer begins there."""
        try:
            row = self.renderer.example(self.renderer.apart([example])[0][-1])
        except DataError:
            return []
        begins = length < len(row.ids) and bool(row.mask[length]) and not row.mask[length - 1]
        ids: list[int] = row.ids.tolist()
        return ids[:length] if begins else ids

    def _merged(self, kind: Kind, reference: Sequence[SideRow]) -> Agreement | None:
        """The merged export as others load it: its own files, nothing of the base's folder."""
        from tunesmith.deploy.parity_pass import along, places

        if self.files.adapter is None:
            return None
        with TemporaryDirectory() as made:
            try:
                write_merged(self.files, Path(made))
            except TunesmithError as error:
                self.left_out["merged"] = error.what
                return None
            stored = str(msgspec.json.decode((Path(made) / "config.json").read_bytes())["dtype"])
            renderer, model = Renderer.load(made), self._loaded(Path(made), None, kind)
            rows = [
                SideRow(row=row.id, prompt=tuple(renderer.prompt(prompt)), places=places(along(model, ids, answer), answer, self.word))
                for row, prompt, ids, answer in zip(self.examples, self.prompts, self.ids, self.answers, strict=True)
            ]
        return agreement("merged", stored if kind == "float32" else kind, reference, rows)

    def _gguf(self, precision: Precision, reference: Sequence[SideRow]) -> Agreement | None:
        """llama.cpp over the export in that precision."""
        side, context = f"gguf {precision}", max(map(len, self.ids)) + self.ask.max_tokens + 1
        with TemporaryDirectory() as made:
            try:
                write_file(self.files, Path(made) / FILE, precision)
                model = LlamaCpp(Path(made) / FILE, context)
            except TunesmithError as error:
                self.left_out[side] = f"{error.what}{f' ({error.remedy})' if error.remedy else ''}"
                return None
            rows = []
            for example, prompt, ids, answer, wanted in zip(self.examples, self.prompts, self.ids, self.answers, reference, strict=True):
                said = [model.next([*ids, *answer[:at]]) for at in range(len(answer))]
                own = tuple(self._told(each, token, place) for each, token, place in zip(said, answer, wanted.places, strict=True))
                rows.append(SideRow(row=example.id, prompt=model.tokens(self.renderer.text(prompt)), places=own))
        line = agreement(side, "float16", reference, rows, judged=precision in ("f32", "f16"))
        return line if line.judged else msgspec.structs.replace(line, reason="fewer bits a weight: another model on purpose")

    def _told(self, said: dict[int, float], token: int, wanted: TokenPlace) -> TokenPlace:
        """What llama.cpp says at a place where the reference has that token; where it says nothing, nothing is compared."""
        if not said:
            return TokenPlace(chosen=wanted.chosen, best=None, expected=None)
        chosen, best = next(iter(said.items()))
        return TokenPlace(chosen=self.word(chosen), best=best, expected=said.get(token))

    def _served(self, kind: Kind, reference: Sequence[SideRow]) -> Agreement:
        """Our server on a free port, asked by the `openai` SDK."""
        from tunesmith.models.local import LocalModel

        openai = need("openai", extra="openai")
        model = LocalModel(self.files.base, self.files.adapter, name=self.files.name, dtype=kind, device="cpu")
        with TemporaryDirectory() as folder, closing(Store.open(folder)) as log, self.server({self.files.name: model}, log) as url:
            client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
            rows = [self._answered(client, *each) for each in zip(self.examples, self.prompts, reference, strict=True)]
        return agreement("served over HTTP", kind, reference, rows)

    def _answered(self, client: Any, example: Example, prompt: Prompt, reference: SideRow) -> SideRow:
        tools = {"tools": list(prompt.tools)} if prompt.tools else {}
        completion = client.chat.completions.create(
            model=self.files.name,
            messages=[msgspec.to_builtins(message) for message in prompt.messages],
            max_tokens=self.ask.max_tokens,
            temperature=0,
            logprobs=True,
            top_logprobs=_TOP,
            **tools,
        )
        (choice,) = completion.choices
        tokens = (choice.logprobs.content if choice.logprobs is not None else None) or []
        own = [self._place(token, wanted) for token, wanted in zip(tokens, [*reference.places, *[None] * len(tokens)], strict=False)]
        if choice.finish_reason != "length" and (not own or own[-1].chosen != END):
            own.append(TokenPlace(chosen=END, best=None, expected=None))
        return SideRow(row=example.id, prompt=completion.usage.prompt_tokens, places=tuple(own))

    def _place(self, token: Any, wanted: TokenPlace | None) -> TokenPlace:
        """A token of the server's answer, and what it gives the reference's."""
        ends = {self.renderer.word(number) for number in self.renderer.stop_ids}
        top = {END if entry.token in ends else entry.token: entry.logprob for entry in [*reversed(token.top_logprobs), token]}
        chosen = END if token.token in ends else token.token
        return TokenPlace(chosen=chosen, best=token.logprob, expected=None if wanted is None else top.get(wanted.chosen))
