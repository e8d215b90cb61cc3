"""Faults planted in real rows, and what the data room finds of them and flags falsely; wrong labels also against cleanlab on the same set.

Not a race: the section is a table of what was planted, found and falsely flagged.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data_corpus import FOLDER, LOCALES, OTHERS, downloaded, pairs, personal

HEADLINES = ("label_errors_vs_cleanlab",)
SIDES = str(Path(__file__).parent / "data_sides.py")
CLEANLAB = ("cleanlab==2.9.0", "scikit-learn", "numpy")
CLEAN, EACH = 4_000, 100
SPECIALS = "éüöäñçß–’“”€àêîôû"


def main() -> None:
    """Plant, import and clean; then the labels; then the page's section."""
    from benchmarks.data import USUAL
    from benchmarks.harness import peer_python, table, write_section

    body = [
        table(["planted", "rows", "found", "falsely flagged", "by"], [*rows_found(), *personal_found(peer_python("data-usual", USUAL))])
    ]
    body.append(labels_found())
    note = f"{CLEAN:,} real rows and {EACH} rows of each fault in one file, imported and cleaned once. Found: the rule named the row."
    write_section("data_faults", "Planted faults", "\n\n".join([note, *body]))


def chat(question: str, answer: str) -> bytes:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}, ensure_ascii=False).encode()


def distinct(n: int) -> list[tuple[str, str]]:
    """`n` real pairs of twelve words and more, of which no two are alike by half: whatever is flagged in them is flagged falsely."""
    from tunesmith.data.dedup import near_duplicates

    found = [pair for pair in pairs(20_000) if len(pair[0].split()) >= 12 and "\r" not in "".join(pair)]  # line ends are mended rightly
    again = set(near_duplicates([f"{question}\n{answer}" for question, answer in found], 0.5).right.tolist())
    return [pair for i, pair in enumerate(found) if i not in again][:n]


def plant(draw: random.Random) -> tuple[list[tuple[str, bytes]], list[tuple[str, str]]]:
    """(fault, line) of every row in the file, '' for a real one; and the evaluation rows that leak."""
    real = distinct(CLEAN + 5 * EACH)
    clean, rest = real[:CLEAN], real[CLEAN:]
    lines = [("", chat(*pair)) for pair in clean]
    part = iter(range(0, len(rest), EACH))

    def some() -> list[tuple[str, str]]:
        at = next(part)
        return rest[at : at + EACH]

    for question, answer in some():
        words = question.split(" ")
        at = draw.randrange(len(words))
        words[at] = words[at] + draw.choice(SPECIALS) + "né"
        lines.append(("mojibake", chat(" ".join(words).encode("utf-8").decode("cp1252", "replace"), answer)))
    for question, answer in some():
        line = chat(question, answer)
        lines.append(("broken JSON", draw.choice([line[:-3], line.replace(b'": ', b'" ', 1), line[:-1] + b",}", line[: len(line) // 2]])))
    for question, _ in some():
        call: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": None}}
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        lines.append(("null in a tool call", json.dumps({"messages": turns}).encode()))
    for question, answer in draw.sample([pair for pair in clean if len(pair[0].split()) >= 30], EACH):
        words = question.split(" ")
        words[draw.randrange(len(words))] = "also"
        lines.append(("near-duplicate", chat(" ".join(words), answer)))
    for i, (question, answer) in enumerate(draw.sample(clean, EACH)):
        lines.append(("exact duplicate", chat(f" {question.upper() if i % 2 else question}  ", answer)))
    leaked = some()
    lines += [("leaked test row", chat(f"Please answer this: {question}", answer)) for question, answer in leaked]
    draw.shuffle(lines)
    return lines, leaked


def rows_found() -> list[list[Any]]:
    """A line of the table for each kind of fault."""
    from tunesmith.data.clean import Clean, NearDuplicates, clean
    from tunesmith.data.collect import Source, collect

    lines, leaked = plant(random.Random(5))
    with tempfile.TemporaryDirectory() as folder:
        path, test = Path(folder) / "rows.jsonl", Path(folder) / "test.jsonl"
        path.write_bytes(b"\n".join(line for _, line in lines) + b"\n")
        test.write_bytes(b"\n".join(chat(*pair) for pair in leaked) + b"\n")
        found = collect(Source(path=str(path)), max_invalid=1.0)
        asked = collect(Source(path=str(test))).rows
        clean(found.rows, Clean(near_duplicates=NearDuplicates(action="drop", same_prompt=False)), found.ledger, evaluation=asked)
    rules = {
        "mojibake": "repair_text", "broken JSON": "invalid", "null in a tool call": "tool_arguments", "near-duplicate": "near_duplicate",
        "exact duplicate": "exact_duplicate", "leaked test row": "contamination",
    }  # fmt: skip
    named = [f"{line.rule}; {line.reason}" for line in found.ledger]  # what was mended before a row was dropped is in the reason
    table = []
    for fault, rule in rules.items():
        mine = [i for i, (kind, _) in enumerate(lines) if kind == fault]
        hits = sum(rule in named[i] for i in mine)
        others = sum(rule in said for i, said in enumerate(named) if lines[i][0] == "")
        if "duplicate" in fault:  # a copy links two rows: the one that comes later is dropped, be it the copy or the original
            hits, others = min(hits + others, len(mine)), max(hits + others - len(mine), 0)
        table.append([fault, len(mine), hits, others, rule])
    return table


def personal_found(python: str) -> list[list[Any]]:
    """Personal data made with Faker in real texts, of the locales that the patterns were written on and of others: rows found by kind, and
    real rows that were flagged."""
    from tunesmith.data.pii import find_all

    rows = [json.loads(line) for line in personal(python).read_text("utf-8").splitlines()]
    spans = find_all([row["text"] for row in rows])
    table = []
    for kind in sorted({span[0] for row in rows for span in row["spans"]}):
        wrong = sum(any(one.kind == kind for one in found) for row, found in zip(rows, spans, strict=True) if not row["spans"])
        for where, locales in (("", LOCALES), (", other locales", OTHERS)):
            planted = [
                (row["spans"][0], found)
                for row, found in zip(rows, spans, strict=True)
                if row["spans"] and row["spans"][0][0] == kind and row["locale"] in locales
            ]
            hits = sum(any(one.start <= span[1] and one.end >= span[2] for one in found) for span, found in planted)
            table.append([f"personal data: {kind}{where}", len(planted), hits, wrong if not where else "", "personal_data"])
    return table


def labelled(n: int = 6_000, classes: int = 14, share: float = 0.05) -> tuple[Path, list[bool]]:
    """Real evaluation items with the file that they are from as label, `share` of the labels flipped; and which were."""
    draw, found = random.Random(9), {}
    wheel = next(path for path in downloaded() if path.name.startswith("evals"))
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if "/registry/data/" in name and name.endswith(".jsonl"):
                texts = list(dict.fromkeys(_questions(archive.read(name))))
                if len(texts) >= n // classes:
                    found[name.split("/data/")[1]] = draw.sample(texts, n // classes)
    chosen = draw.sample(sorted(found), classes)
    items = [(text[:400], label) for label in chosen for text in found[label]]
    draw.shuffle(items)
    flipped = [draw.random() < share for _ in items]
    labels = [
        draw.choice([one for one in chosen if one != label]) if wrong else label for (_, label), wrong in zip(items, flipped, strict=True)
    ]
    path = FOLDER / "labelled.json"
    path.write_text(json.dumps({"texts": [text for text, _ in items], "labels": labels}), "utf-8")
    return path, flipped


def _questions(data: bytes) -> Sequence[str]:
    texts = []
    for line in data.splitlines()[:20_000]:
        try:
            asked = json.loads(line).get("input")
        except (ValueError, AttributeError):
            continue
        said = asked[-1].get("content") if isinstance(asked, list) and asked and isinstance(asked[-1], dict) else None
        if isinstance(said, str) and len(said) > 20:
            texts.append(said)
    return texts


def average_precision(scores: Sequence[float], wrong: Sequence[bool]) -> float:
    """Mean precision at each wrong label, the highest score first."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    hits, total = 0, 0.0
    for place, i in enumerate(order, start=1):
        if wrong[i]:
            hits += 1
            total += hits / place
    return total / max(hits, 1)


def labels_found() -> str:
    """Average precision of ranked wrong labels, ours and cleanlab's, on the same rows."""
    from benchmarks.harness import Side, alternate, peer_python, ratio, table

    path, wrong = labelled()
    found = alternate(
        [
            Side("ours", (sys.executable, SIDES, "labels ours", str(path))),
            Side("cleanlab", (peer_python("cleanlab", CLEANLAB), SIDES, "labels cleanlab", str(path))),
        ],
        rounds=1,
    )
    precision = {label: average_precision(one.rounds[0]["scores"], wrong) for label, one in found.items()}
    line = ratio("label_errors_vs_cleanlab", precision["ours"] / precision["cleanlab"])
    cells = [[label, f"{precision[label]:.3f}", f"{one.per_cpu_s:,.0f}"] for label, one in found.items()]
    return f"### Wrong labels\n\n{len(wrong):,} rows of 14 classes, {sum(wrong)} labels flipped.\n\n" + table(
        ["side", "average precision", "rows per CPU-s"], cells
    ) + f"\n\n{line}"  # fmt: skip
