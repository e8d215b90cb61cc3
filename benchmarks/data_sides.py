"""The sides of the data benchmarks: `python data_sides.py SIDE FILE` does one side's work once and prints its figures as a JSON line.

Runs in the project's environment or in a peer's, so each side imports what it needs and nothing of the others. The near-duplicate sides
compare the same sets (pairs of adjacent words) at Jaccard 0.8.
"""

from __future__ import annotations

import itertools
import json
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

THRESHOLD = 0.8
Work = Callable[[], dict[str, Any]]


def read(path: str) -> list[str]:
    """Question and answer of each row as one text."""
    with open(path, encoding="utf-8") as stream:
        return ["\n".join(turn["content"] for turn in json.loads(line)["messages"]) for line in stream]


def word_pairs(text: str) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {f"{a} {b}" for a, b in itertools.pairwise(words)} or set(words)


def near_ours(path: str) -> Work:
    from tunesmith.data.dedup import near_duplicates

    near_duplicates(["a b c", "a b d"], THRESHOLD, compiled=True)  # compiled once on a machine, then loaded
    texts = read(path)

    def work() -> dict[str, Any]:
        found = near_duplicates(texts, THRESHOLD, compiled=True)
        shown = slice(100_000)  # all of the small runs, which are compared with the truth
        return {"work": len(texts), "pairs": list(zip(found.left[shown].tolist(), found.right[shown].tolist(), strict=True))}

    return work


def near_datasketch(path: str) -> Work:
    """As a careful user calls it: 128 permutations in bulk, 21 bands of 6 (0.998 of the pairs at 0.8 are candidates), candidates checked
    by the signatures with some room below the threshold (its default bands and check find about half)."""
    from datasketch import MinHash, MinHashLSH

    texts = read(path)

    def work() -> dict[str, Any]:
        sets = [[shingle.encode() for shingle in word_pairs(text)] for text in texts]
        hashes = MinHash.bulk(sets, num_perm=128)
        index = MinHashLSH(num_perm=128, params=(21, 6))
        found = []
        for i, one in enumerate(hashes):
            found += [(j, i) for j in index.query(one) if one.jaccard(hashes[j]) >= THRESHOLD - 0.03]
            index.insert(i, one, check_duplication=False)
        return {"work": len(texts), "pairs": found}

    return work


def near_datatrove(path: str) -> Work:
    """Its own pipeline with its own files: signatures, buckets, clusters; n-grams of two words, 14 bands of 8."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from loguru import logger

    logger.remove()
    texts = read(path)
    config = MinhashConfig(n_grams=2, num_buckets=14, hashes_per_bucket=8)

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            documents = [Document(text=text, id=str(i)) for i, text in enumerate(texts)]
            steps: Sequence[tuple[list[Any], int]] = [
                ([documents, MinhashDedupSignature(output_folder=f"{folder}/s", config=config)], 1),
                ([MinhashDedupBuckets(input_folder=f"{folder}/s", output_folder=f"{folder}/b", config=config)], config.num_buckets),
                ([MinhashDedupCluster(input_folder=f"{folder}/b", output_folder=f"{folder}/c", config=config)], 1),
            ]
            for number, (pipeline, tasks) in enumerate(steps):
                LocalPipelineExecutor(
                    pipeline=pipeline, tasks=tasks, workers=1, logging_dir=f"{folder}/log{number}", skip_completed=False
                ).run()
            return {"work": len(texts), "removed": sum(file.stat().st_size // 4 for file in Path(f"{folder}/c").glob("*.remove"))}

    return work


def personal_ours(path: str) -> Work:
    from tunesmith.data.pii import find_all

    rows = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    texts = [row["text"] for row in rows] * 20  # 2,000 rows take 40 ms

    def work() -> dict[str, Any]:
        found = find_all(texts)
        return {"work": len(texts), "spans": [[list(span) for span in one] for one in found[: len(rows)]]}

    return work


PRESIDIO_KINDS = {
    "EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "CREDIT_CARD": "card", "IBAN_CODE": "iban", "IP_ADDRESS": "ip", "US_SSN": "ssn",
    "DATE_TIME": "date_of_birth",
}  # fmt: skip


def analyzer() -> Any:
    """Presidio's analyzer with all its patterns and no language model: words and lemmas from a blank pipeline."""
    import spacy
    import tldextract
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpArtifacts, SpacyNlpEngine

    # its e-mail recogniser looks up domains; offline they come from the list that tldextract brings
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class Blank(SpacyNlpEngine):
        def __init__(self) -> None:
            super().__init__()
            self.nlp = {"en": spacy.blank("en")}

        def is_loaded(self) -> bool:
            return True

        def process_text(self, text: str, language: str) -> NlpArtifacts:
            doc = self.nlp[language](text)
            return NlpArtifacts([], doc, [token.idx for token in doc], [token.lower_ for token in doc], self, language, [])

    return AnalyzerEngine(nlp_engine=Blank(), supported_languages=["en"])


def personal_presidio(path: str) -> Work:
    engine = analyzer()
    rows = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]

    def work() -> dict[str, Any]:
        spans = []
        for row in rows:
            found = engine.analyze(row["text"], language="en", score_threshold=0.3)
            spans.append([[PRESIDIO_KINDS[one.entity_type], one.start, one.end] for one in found if one.entity_type in PRESIDIO_KINDS])
        return {"work": len(rows), "spans": spans}

    return work


def pipeline_ours(path: str) -> Work:
    """As the stages of `run` do it: rows to Parquet, cleaned and divided from there, the parts and the ledger to files."""
    from tunesmith.core.rows import write_parquet
    from tunesmith.core.stored_rows import StoredRows
    from tunesmith.data.clean import Clean, clean
    from tunesmith.data.collect import Source
    from tunesmith.data.dedup import near_duplicates
    from tunesmith.data.import_stream import intake
    from tunesmith.data.ledger import Ledger
    from tunesmith.data.split import Split, split
    from tunesmith.flow.clusters import write_clusters

    near_duplicates(["a b c", "a b d"], THRESHOLD, compiled=True)

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=Path(path).parent) as name:
            folder = Path(name)
            taken_in = intake(Source(path=path), folder / "rows.parquet", folder / "ledger.jsonl", max_invalid=0.01)
            ledger = Ledger.read(folder / "ledger.jsonl")
            cleaned = clean(StoredRows(folder / "rows.parquet"), Clean(), ledger)
            parts = split(cleaned.rows, Split(max_leakage=0.01), cleaned.clusters, cleaned.prints)
            for part in ("train", "validation", "test"):
                write_parquet(folder / f"{part}.parquet", getattr(parts, part))
            write_clusters(folder, ((row.id, int(number)) for row, number in zip(cleaned.rows, cleaned.clusters, strict=True)))
            ledger.write(folder / "cleaned.jsonl")
            return {"work": taken_in.inputs, "fates": ledger.counts(), "train": len(parts.train)}

    return work


def import_ours(path: str) -> Work:
    """The stream alone: rows to Parquet, their fates and the rejects to files."""
    from tunesmith.data.collect import Source
    from tunesmith.data.import_stream import intake

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            found = intake(Source(path=path), Path(folder) / "rows.parquet", Path(folder) / "ledger.jsonl", max_invalid=0.01)
        return {"work": found.inputs, "fates": dict(found.fates)}

    return work


def pipeline_usual(path: str) -> Work:
    """The same steps from the usual parts at their defaults: datasets, a set of texts, datasketch, presidio, a random split."""
    from datasets import disable_progress_bars, load_dataset
    from datasketch import MinHash, MinHashLSH

    engine = analyzer()
    disable_progress_bars()

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            rows = load_dataset("json", data_files=path, split="train", cache_dir=folder)
            n = len(rows)
            rows = rows.filter(
                lambda row: bool(row["messages"]) and row["messages"][-1]["role"] == "assistant" and bool(row["messages"][-1]["content"])
            )
            rows = rows.map(lambda row: {"text": "\n".join(turn["content"] for turn in row["messages"])})
            seen: set[str] = set()
            rows = rows.filter(lambda row: not (row["text"] in seen or seen.add(row["text"])))  # type: ignore[func-returns-value]
            index, kept = MinHashLSH(threshold=THRESHOLD, num_perm=128), []
            for i, text in enumerate(rows["text"]):
                one = MinHash(num_perm=128)
                one.update_batch([shingle.encode() for shingle in word_pairs(text)])
                if not index.query(one):
                    kept.append(i)
                index.insert(i, one, check_duplication=False)
            personal = sum(bool(engine.analyze(text, language="en")) for text in rows["text"])
            parts = rows.select(kept).train_test_split(0.2, seed=0)
            return {"work": n, "train": len(parts["train"]), "personal": personal}

    return work


def conversations(path: str) -> list[Any]:
    from tunesmith.core.types import Example, Message

    with open(path, encoding="utf-8") as stream:
        return [Example(id="", messages=tuple(Message(**turn) for turn in json.loads(line)["messages"])) for line in stream]


def tokens_ours(path: str) -> Work:
    from tunesmith.core.tokens import Tokens, row_texts

    texts = list(row_texts(conversations(path)))
    counter = Tokens.load(sys.argv[3], texts)

    def work() -> dict[str, Any]:
        counts = counter.counts(texts)
        return {"work": sum(len(t.encode()) for t in texts), "counts": str(counts.tolist()), "engine": counter.engine, "why": counter.why}

    return work


def tokens_rendered(path: str) -> Work:
    from tunesmith.core.chat import Renderer
    from tunesmith.core.tokens import Tokens, rendered, row_texts

    rows = conversations(path)
    template, counter = Renderer.load(sys.argv[3]).template, Tokens.load(sys.argv[3], list(row_texts(rows)))

    def work() -> dict[str, Any]:
        texts = rendered(template, rows)
        return {"tokens": int(counter.counts(texts).sum()), "work": sum(len(t.encode()) for t in texts)}

    return work


def tokens_plain(path: str) -> Work:
    from tokenizers import Tokenizer

    with open(path, encoding="utf-8") as stream:
        texts = [turn["content"] for line in stream for turn in json.loads(line)["messages"]]
    tokenizer = Tokenizer.from_file(f"{sys.argv[3]}/tokenizer.json")

    def work() -> dict[str, Any]:
        counts = [len(one.ids) for one in tokenizer.encode_batch(texts, add_special_tokens=False)]
        return {"work": sum(len(t.encode()) for t in texts), "counts": str(counts)}

    return work


def labels_ours(path: str) -> Work:
    from tunesmith.data.labels import _codes, label_margins, out_of_fold, tfidf

    data = json.loads(Path(path).read_text("utf-8"))

    def work() -> dict[str, Any]:
        names, given = _codes(data["texts"], data["labels"], 5)
        probability = out_of_fold(tfidf(data["texts"]), given, len(names))
        return {"work": len(given), "scores": label_margins(probability, given).tolist()}

    return work


def labels_cleanlab(path: str) -> Work:
    """As its documentation does it: tf-idf of words and pairs, logistic regression out of fold, ranked by self-confidence."""
    import numpy as np
    from cleanlab.rank import get_label_quality_scores
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    data = json.loads(Path(path).read_text("utf-8"))

    def work() -> dict[str, Any]:
        _, given = np.unique(data["labels"], return_inverse=True)
        table = TfidfVectorizer(ngram_range=(1, 2), min_df=2).fit_transform(data["texts"])
        probability = cross_val_predict(LogisticRegression(max_iter=200), table, given, cv=5, method="predict_proba")
        return {"work": len(given), "scores": (-get_label_quality_scores(given, probability)).tolist()}

    return work


SIDES: dict[str, Callable[[str], Work]] = {
    "tokens ours": tokens_ours,
    "tokens rendered": tokens_rendered,
    "tokens plain": tokens_plain,
    "labels ours": labels_ours,
    "labels cleanlab": labels_cleanlab,
    "near ours": near_ours,
    "near datasketch": near_datasketch,
    "near datatrove": near_datatrove,
    "personal ours": personal_ours,
    "personal presidio": personal_presidio,
    "import ours": import_ours,
    "pipeline ours": pipeline_ours,
    "pipeline usual": pipeline_usual,
}


def cpu_s() -> float:
    """CPU-seconds of this process and its ended children, all threads. (`os.times` counts in hundredths, too coarse for ours.)"""
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def peak_mb() -> float:
    """The largest resident memory of this process. Linux hands a new process the ru_maxrss of the one that started it, so VmHWM is read."""
    try:
        status = Path("/proc/self/status").read_text("utf-8")
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    name, path = sys.argv[1:3]
    work = SIDES[name](path)
    cpu, wall = cpu_s(), time.perf_counter()
    figures = work()
    cpu, wall = cpu_s() - cpu, time.perf_counter() - wall
    print(json.dumps({**figures, "cpu_s": cpu, "wall_s": wall, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
