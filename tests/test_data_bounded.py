"""Rows that stay on disk are cleaned and divided as rows in memory are, whoever executes; what the ledger keeps on disk comes back."""

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.map_rows import here, in_processes, map_rows, on_ray
from tunesmith.core.origins import Origins
from tunesmith.core.rows import write_parquet
from tunesmith.core.stored_rows import Rewriting, StoredRows
from tunesmith.core.types import Example, LedgerLine, Message, example_id
from tunesmith.data.clean import Clean, clean
from tunesmith.data.contamination import Contamination, contaminated
from tunesmith.data.ledger import Ledger
from tunesmith.data.pii import PersonalData
from tunesmith.data.set_rules import NearDuplicates
from tunesmith.data.split import Split, split

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi"]


def made(n, seed=0):
    """Rows of which some are broken, empty, equal, nearly equal or hold an address."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        question = " ".join(draw.choices(WORDS, k=8)) + draw.choice(["", "", " cafÃ©", " write to a@example.com", " 7"])
        if rows and draw.random() < 0.2:
            question = draw.choice(rows).messages[0].text + draw.choice(["", " too"])
        turns = (Message(role="user", content=question), Message(role="assistant", content=draw.choice(["yes", "no", "maybe so", ""])))
        meta = {"created": draw.randrange(1000)}
        group, label = draw.choice([None, None, f"g{draw.randrange(n)}"]), draw.choice(["a", "b"])
        rows.append(Example(id=example_id(turns), messages=turns, origin=f"f.jsonl:{i + 1}", group=group, label=label, meta=meta))
    return rows


def entered(rows):
    ledger = Ledger()
    for one in rows:
        ledger.enter(one.origin, one.id)
    return ledger


def stored(folder, rows, batch=50):
    write_parquet(folder / "rows.parquet", rows, batch=batch)
    return StoredRows(folder / "rows.parquet")


SETTINGS = Clean(personal_data=PersonalData(action="redact"), contradictions="majority", near_duplicates=NearDuplicates(threshold=0.7))


@pytest.mark.slow
@pytest.mark.parametrize("by", ["cluster", "stratified", "temporal"])
@pytest.mark.parametrize("near", ["cluster", "drop", "keep"])
def test_rows_on_disk_are_cleaned_and_divided_as_rows_in_memory(by, near, tmp_path):
    rows = made(400, seed=3)
    cleaning = msgspec.structs.replace(SETTINGS, near_duplicates=msgspec.structs.replace(SETTINGS.near_duplicates, action=near))
    dividing = Split(by=by, max_leakage=1.0, leakage_threshold=0.7)
    ledgers = entered(rows), entered(rows)
    inside = clean(rows, cleaning, ledgers[0], evaluation=rows[:3])
    outside = clean(stored(tmp_path, rows), cleaning, ledgers[1], evaluation=rows[:3])
    assert isinstance(outside.rows, StoredRows)
    assert list(inside.rows) == list(outside.rows)
    assert list(ledgers[0]) == list(ledgers[1])
    assert {line.fate for line in ledgers[0]} == {"kept", "mended", "dropped", "duplicate_of"}
    assert inside.clusters.tolist() == outside.clusters.tolist()
    assert (inside.personal_data, inside.contaminated) == (outside.personal_data, outside.contaminated)
    parts = split(inside.rows, dividing, inside.clusters, inside.prints), split(outside.rows, dividing, outside.clusters)
    assert [list(getattr(parts[0], name)) for name in ("train", "validation", "test")] == [
        list(getattr(parts[1], name)) for name in ("train", "validation", "test")
    ]
    assert parts[0].leakage == parts[1].leakage


@pytest.mark.slow
def test_the_place_of_the_work_changes_nothing(tmp_path):
    rows = stored(tmp_path, made(300), batch=40)
    results = []
    for executor in (here, in_processes(2)):
        ledger = entered(rows)
        done = clean(rows, SETTINGS, ledger, executor=executor)
        results.append((list(done.rows), list(ledger), done.personal_data, done.clusters.tolist()))
    assert results[0] == results[1]
    assert results[0][2]["email"] > 0
    with pytest.raises(ConfigError, match="at least 1"):
        in_processes(0)


def _spans(rows):
    return [row.origin for row in rows], os.getpid()


@pytest.mark.slow
def test_results_come_in_the_order_of_the_pieces(tmp_path):
    rows = stored(tmp_path, made(100), batch=30)
    for executor in (here, in_processes(2)):
        results = list(map_rows(_spans, rows, executor, size=7))
        assert [origin for origins, _ in results for origin in origins] == [row.origin for row in rows]
        assert [len(origins) for origins, _ in results] == [7] * 14 + [2]
        assert (os.getpid() in {pid for _, pid in results}) == (executor is here)


@pytest.mark.slow
def test_ray_gives_the_same(tmp_path):
    pytest.importorskip("ray", reason="pip install ray")
    rows = stored(tmp_path, made(200), batch=40)
    ledgers = entered(rows), entered(rows)
    inside, outside = clean(rows, SETTINGS, ledgers[0]), clean(rows, SETTINGS, ledgers[1], executor=on_ray(num_cpus=1))
    assert (list(inside.rows), list(ledgers[0])) == (list(outside.rows), list(ledgers[1]))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_view_of_stored_rows_is_a_list_of_them(data, tmp_path_factory):
    rows = made(data.draw(st.integers(1, 60)), seed=1)
    view = stored(tmp_path_factory.mktemp("rows"), rows, batch=data.draw(st.integers(1, 25)))
    for _ in range(data.draw(st.integers(0, 3))):
        rewriting = Rewriting(view)
        plain = list(rows)
        for at in sorted(data.draw(st.sets(st.integers(0, max(0, len(rows) - 1))))) if rows else ():
            plain[at] = msgspec.structs.replace(plain[at], reference="put right")
            rewriting.put(at, plain[at])
        which = np.array(sorted(data.draw(st.sets(st.integers(0, max(0, len(rows) - 1))))) if rows else [], dtype=np.int64)
        rows, view = [plain[i] for i in which.tolist()], rewriting.left(which)
    assert len(view) == len(rows)
    assert list(view) == rows
    assert view == rows
    if rows:
        at = data.draw(st.integers(-len(rows), len(rows) - 1))
        assert view[at] == rows[at]
    low, high = data.draw(st.integers(0, 60)), data.draw(st.integers(0, 60))
    assert list(view[low:high]) == rows[low:high]


def test_stored_rows_can_be_sent_unless_they_were_changed(tmp_path):
    rows = made(20)
    view = stored(tmp_path, rows)[5:9]
    assert pickle.loads(pickle.dumps(view)) == rows[5:9]
    rewriting = Rewriting(view)
    rewriting.put(0, rows[0])
    with pytest.raises(DataError, match="write them to a file first"):
        pickle.dumps(rewriting.left(np.arange(4)))


def test_a_damaged_file_of_rows_is_one_error(tmp_path):
    view = stored(tmp_path, made(200))
    data = bytearray(view.path.read_bytes())
    for at in range(40, len(data) - 4_000):
        data[at] = 0
    view.path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged"):
        list(view)


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(["a", "b:c", "d:7"]), st.sampled_from([":1", ":2", ":10", ":007", "", ":x", ":3"]))))
def test_origins_are_texts_that_are_found(parts):
    texts = ["".join(part) for part in parts]
    origins = Origins(texts)
    assert list(origins) == texts
    for text in texts:
        assert texts[origins.find(text)] == text
    assert origins.find("nowhere:1") is None
    before = len(origins)
    assert all(origins.append_new(text) is None for text in texts)
    assert len(origins) == before


IDS = st.one_of(
    st.text(st.sampled_from("0123456789abcdef"), min_size=24, max_size=24), st.sampled_from(["0" * 24, "A" * 24, "raw-1", "x" * 24])
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), IDS), unique_by=lambda pair: pair[0]), st.data())
def test_the_ledger_says_what_was_said_last(entries, data):
    ledger, lines = Ledger(), {}
    for number, row in entries:
        origin = f"f:{number}"
        line = LedgerLine(row=row, origin=origin, fate=data.draw(st.sampled_from(["kept", "mended"])))
        ledger.add(line)
        lines[origin] = line
    for number, _ in entries:
        if data.draw(st.booleans()):
            fate = data.draw(st.sampled_from(["mended", "truncated", "dropped"]))
            ledger.mark(f"f:{number}", fate, "rule", "why", row=data.draw(st.one_of(st.none(), IDS)))
            lines[f"f:{number}"] = None
    for line, (number, _) in zip(ledger, entries, strict=True):
        assert line.origin == f"f:{number}"
        assert lines[line.origin] in (line, None)
        assert line in ledger.find(line.origin)
        assert line in ledger.find(line.row)
        assert all(line.row == other.row for other in ledger.find(line.row))
    assert sum(ledger.counts().values()) == len(ledger) == len(entries)
    for fate, n in ledger.counts().items():
        assert n == sum(line.fate == fate for line in ledger)


def test_items_are_looked_for_in_pieces_as_in_the_whole():
    rows = made(300, seed=5)
    longer = [(Message(role="user", content=row.messages[0].text + " and it goes on"), row.messages[1]) for row in rows[::7]]
    items = [*rows[:5], *(Example(id=example_id(turns), messages=turns, origin=f"e:{i}") for i, turns in enumerate(longer))]
    whole = contaminated(rows, items, Contamination(containment=0.3, threshold=0.9))
    assert {one.jaccard > 0 for one in whole} == {True, False}
    assert contaminated(rows, items, Contamination(containment=0.3, threshold=0.9), size=37) == whole


@pytest.mark.slow
def test_memory_does_not_grow_with_the_texts(tmp_path):
    """Ten times the text a row, not ten times the memory: what is held of a row does not depend on how long its answer is."""
    made_rows = """
import sys
from pathlib import Path
from tunesmith.core.rows import write_parquet
from tunesmith.core.stored_rows import StoredRows
from tunesmith.core.types import Example, Message, example_id
from tunesmith.data.clean import Clean, NearDuplicates, clean
from tunesmith.data.ledger import Ledger
from tunesmith.data.split import Split, split
folder, length = Path(sys.argv[1]), int(sys.argv[2])
def rows():
    for i in range(2_500):
        turns = (Message(role="user", content=f"question {i} of many"), Message(role="assistant", content=f"{i} " + "a" * length))
        yield Example(id=example_id(turns), messages=turns, origin=f"f:{i}")
write_parquet(folder / "rows.parquet", rows(), batch=250)
ledger = Ledger()
stored = StoredRows(folder / "rows.parquet")
for row in stored:
    ledger.enter(row.origin, row.id)
done = clean(stored, Clean(), ledger)
parts = split(done.rows, Split(max_leakage=1.0), done.clusters, done.prints)
write_parquet(folder / "train.parquet", parts.train, batch=250)
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    peaks = []
    for length in (100, 24_000):
        run = subprocess.run([sys.executable, "-c", made_rows, str(tmp_path), str(length)], capture_output=True, text=True, check=True)
        peaks.append(int(run.stdout) / 1024)
    assert peaks[1] < peaks[0] + 45, peaks  # MB; there are 59 MB of text more, and as rows more than twice that
