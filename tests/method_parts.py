"""Parts of the tests of training methods: rows of each kind as people have them, and a project of each method."""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.core.types import Example, Labelled, Preference
from tunesmith.train.methods import METHODS

GRADER = {
    "type": "text_similarity", "name": "likeness", "input": "{{ sample.output_text }}", "reference": "{{ item.reference }}",
    "evaluation_metric": "fuzzy_match",
}  # fmt: skip
WORDS = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated"]


def asked(i: int) -> str:
    return f"{WORDS[i % 12]} {WORDS[i * 5 % 11]} {WORDS[i * 7 % 12]} {i}?"


def lines(kind: type, count: int = 40) -> list[dict]:
    """Rows of a kind in the format that people have them in."""
    said = ["yes" if i % 2 else "no" for i in range(count)]
    if kind is Example:
        return [
            {"messages": [{"role": "user", "content": asked(i)}, {"role": "assistant", "content": answer}]} for i, answer in enumerate(said)
        ]
    if kind is Preference:
        return [{"prompt": asked(i), "chosen": answer, "rejected": f"not {answer}"} for i, answer in enumerate(said)]
    if kind is Labelled:
        return [{"prompt": asked(i), "completion": answer, "label": answer == "yes"} for i, answer in enumerate(said)]
    return [{"text": " ".join(f"{word}{i}" for word in WORDS)} for i in range(count)]


SECTIONS = {
    "grpo": {"reinforcement": {"grader": GRADER, "samples": 3, "max_tokens": 4}, "epochs": 1},
    "ipo": {"method": "dpo", "preference": {"loss": "ipo"}},
    "full": {"method": "sft", "adapter": {"kind": "none"}},
    "full-dpo": {"method": "dpo", "adapter": {"kind": "none"}},
    "pairs-kto": {"method": "kto"},
}


def project(folder: Path, base: Path, name: str) -> Path:
    """A project of that method in `folder`; returns its file."""
    section = {"epochs": 2, "learning_rate": 0.01, "batch_size": 8, "dtype": "float32", "threads": 1, "lanes": 1, "adapter": {"r": 4}}
    section |= {"method": name} | SECTIONS.get(name, {})
    if name == "distil":
        section["distillation"] = {"teacher": str(base)}
    kind = Preference if name == "pairs-kto" else METHODS[section["method"]].takes
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines(kind)))
    tree = {
        "name": "tiny", "sources": [{"path": "rows.jsonl"}], "base": str(base), "split": {"validation": 0.2, "test": 0.2}, "train": section,
        "clean": {"near_duplicates": {"threshold": 1.0, "same_prompt": False}},
        "baselines": [{"name": "zero-shot"}], "evaluate": {"max_tokens": 4}, "deploy": {"alias": "tiny", "questions": 1},
    }  # fmt: skip
    (folder / "tunesmith.yaml").write_text(json.dumps(tree))
    return folder / "tunesmith.yaml"
