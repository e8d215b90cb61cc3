"""What is kept and then damaged is never used in silence: one clear error that names it, or it is made again."""

from __future__ import annotations

import io
import json
import random
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from api_parts import MODEL, Server, chat_rows, running_server
from tunesmith.core.errors import DataError, StoreError, TunesmithError
from tunesmith.core.rows import read_jsonl, read_parquet, write_jsonl, write_parquet
from tunesmith.core.seal import seal
from tunesmith.core.stored_rows import StoredRows
from tunesmith.core.types import Example, Message, example_id
from tunesmith.data import review
from tunesmith.evaluate.openings import open_sealed
from tunesmith.evaluate.openings import openings as opened
from waiting import until

openai = pytest.importorskip("openai")


def flipped(path, bit=None):
    """One bit of a file the other way round; its size and time stay."""
    data = bytearray(path.read_bytes())
    at = len(data) * 4 if bit is None else bit
    data[at // 8] ^= 1 << at % 8
    path.write_bytes(data)


def outcome(read):
    """What a reader gives, or the one error that it may raise."""
    try:
        return read()
    except (DataError, StoreError) as error:
        return error


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("damaged")) as server:
        yield server


def blob(server: Server, number: str):
    return server.store.folder / "blobs" / "files" / number


def job_of(server: Server, file: str):
    made = server.client.fine_tuning.jobs.create(model=MODEL, training_file=file, hyperparameters={"n_epochs": 1, "batch_size": 12})
    server.work()
    return server.client.fine_tuning.jobs.retrieve(made.id)


@pytest.mark.slow
def test_a_training_file_that_changed_after_its_upload_trains_nothing(server: Server):
    file = server.upload()
    assert server.client.files.content(file.id).read() == chat_rows()
    changed = blob(server, file.id).read_bytes().replace(b"yes 3", b"no! 3")
    blob(server, file.id).write_bytes(changed)
    job = job_of(server, file.id)
    assert (job.status, job.error.code, job.error.param) == ("failed", "invalid_training_file", "training_file")
    assert "are not those that came" in job.error.message
    with pytest.raises(openai.InternalServerError, match="are not those that came"):
        server.client.files.content(file.id)


def test_a_batch_whose_file_changed_fails(server: Server):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "echo", "messages": []}}
    file = server.client.files.create(file=("b.jsonl", json.dumps(line).encode()), purpose="batch")
    blob(server, file.id).write_bytes(json.dumps(line | {"custom_id": "b"}).encode())
    made = server.client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    ended = until(lambda: (batch := server.client.batches.retrieve(made.id)).status == "failed" and batch)
    assert "are not those that came" in ended.errors.data[0].message


def test_a_damaged_copy_of_a_job_is_made_again(server: Server):
    from tunesmith.flow.jobs.reading import folder_of, read_rows
    from tunesmith.store.jobs import Jobs

    made = server.client.fine_tuning.jobs.create(model=MODEL, training_file=server.upload().id)
    job = Jobs(server.store).find(made.id, None)
    rows = read_rows(server.store, job, "training_file")
    copy = folder_of(server.store, made.id) / "training_file.jsonl"
    copy.write_bytes(copy.read_bytes().replace(b"yes 3", b"no! 3"))
    assert [row.messages for row in read_rows(server.store, job, "training_file")] == [row.messages for row in rows]
    server.client.fine_tuning.jobs.cancel(made.id)


@pytest.mark.slow
def test_a_damaged_adapter_answers_nothing(server: Server):
    """Over HTTP, damaged before it was first asked."""
    file = server.upload()
    made = server.client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, hyperparameters={"n_epochs": 1, "batch_size": 12})
    server.work()
    name = server.client.fine_tuning.jobs.retrieve(made.id).fine_tuned_model
    weights = server.store.folder / "jobs" / made.id / "run" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    largest = max(tensors, key=lambda key: tensors[key].size)
    tensors[largest] = np.full_like(tensors[largest], np.nan)
    save_file(tensors, weights)
    with pytest.raises(openai.InternalServerError) as caught:
        server.client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])
    assert (caught.value.status_code, caught.value.code) == (503, "model_not_loaded")
    assert str(server.store.folder) not in caught.value.message


def test_damaged_weights_are_said_with_their_file(tmp_path, server: Server):
    from tunesmith.models.local import LocalModel

    base = shutil.copytree(server.base, tmp_path / "base")
    seal(base)
    LocalModel(base, name="whole")
    flipped(base / "model.safetensors")
    with pytest.raises(StoreError, match=r"model\.safetensors: the file is damaged"):
        LocalModel(base, name="bent")
    (base / "config.json").unlink()
    with pytest.raises(TunesmithError, match=r"config\.json"):
        LocalModel(base, name="gone")


def rows(n=60):
    made = []
    for i in range(n):
        messages = (Message(role="user", content=f"question {i} of many"), Message(role="assistant", content=f"answer {i * 7}"))
        made.append(Example(id=example_id(messages), messages=messages, origin=f"a.jsonl:{i}", meta={"n": i}))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [True, False])
def test_a_flipped_bit_of_a_parquet_gives_no_other_rows(tmp_path, sealed):
    """With its digest beside it every flip is an error; without one (a file that was carried away) none is a raw one."""
    path, wanted = tmp_path / "rows.parquet", rows()
    write_parquet(path, wanted, batch=30)
    whole, rng, other = path.read_bytes(), random.Random(3), 0
    if sealed:
        seal(tmp_path)
    for _ in range(40):
        flipped(path, rng.randrange(len(whole) * 8))
        for read in (lambda: list(read_parquet(path)), lambda: list(StoredRows(path))):
            got = outcome(read)
            assert isinstance(got, list) != (str(path) in str(got))  # an error names the file
            assert not (sealed and isinstance(got, list))
            other += isinstance(got, list) and got != wanted
        path.write_bytes(whole)
    assert other <= (0 if sealed else 4)  # names and numbers of the file's own description have no checksum
    assert list(read_parquet(path)) == wanted


def test_a_changed_line_of_a_kept_file_is_found(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", rows(5))
    seal(tmp_path)
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text.replace("answer 7", "answer 8"))
    with pytest.raises(StoreError, match=r"rows\.jsonl: the file is damaged"):
        list(read_jsonl(tmp_path / "rows.jsonl", Example))


def test_a_log_of_people_is_evidence(tmp_path):
    """Every bit of a verdict and of an opening counts, and a line that a crash left half-written was never given."""
    verdicts, openings = tmp_path / "verdicts.jsonl", tmp_path / "openings.jsonl"
    for number in range(3):
        review.append(verdicts, review.Verdict(row=f"row {number}", annotator="ann", action="accept", created=7.0))
        open_sealed(openings, f"set {number}", who="ann", why="to look")
    for log, read in ((verdicts, lambda: review.verdicts(verdicts)), (openings, lambda: opened(openings))):
        whole, before = log.read_bytes(), read()
        assert len(before) == 3
        second = range(whole.index(b"\n") + 1, whole.index(b"\n", whole.index(b"\n") + 1))
        for at in second:
            log.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            fault = outcome(read)
            assert isinstance(fault, StoreError) or fault == before, at  # the name of the digest's key may change: an older line has none
            assert not isinstance(fault, StoreError) or f"{log}:2" in fault.where
        log.write_bytes(whole + whole[:20])
        assert read() == before
        log.write_bytes(whole.replace(b',"digest":', b',"was":'))
        assert isinstance(outcome(read), StoreError)
    verdicts.write_bytes(b'{"action":"accept","annotator":"ann","row":"old"}\n{"action":"acc')
    review.append(verdicts, review.Verdict(row="new", annotator="ann", action="reject"))
    assert [verdict.row for verdict in review.verdicts(verdicts)] == ["old", "new"]


def test_rendered_rows_that_are_damaged_are_one_error(tmp_path):
    from tunesmith.core.chat import Rendered
    from tunesmith.train.items import Item, load_items, save_items

    path = tmp_path / "train.npz"
    items = [Item((Rendered(f"r{i}", np.arange(9, dtype=np.int32), np.ones(9, np.uint8), 0),), 1.0) for i in range(20)]
    save_items(path, items)
    whole, rng = path.read_bytes(), random.Random(1)
    for _ in range(40):
        flipped(path, rng.randrange(len(whole) * 8))
        got = outcome(lambda: load_items(path))
        assert isinstance(got, list) != (str(path) in str(got))
        path.write_bytes(whole)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="cannot be read"):
        load_items(path)


def test_a_kept_answer_that_was_changed_is_asked_again(tmp_path):
    from tunesmith.core.types import Answer
    from tunesmith.evaluate.run import Answers

    Answers(tmp_path / "answers.jsonl").keep("k", Answer(text="right"), 0.1)
    file = tmp_path / "answers.jsonl"
    assert Answers(file).get("k").text == "right"
    file.write_text(file.read_text().replace("right", "wrong"))
    assert Answers(file).get("k") is None
    file.write_text(file.read_text() + json.dumps({"key": "old", "answer": {"text": "x"}, "s": 0.1}) + "\n")
    assert Answers(file).get("old").text == "x"


@pytest.mark.slow
def test_a_kept_evaluation_that_was_changed_is_not_reported(tmp_path, capsys, monkeypatch):
    from tunesmith.cli import app
    from tunesmith.cli.shared import guarded

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(chat_rows(12))
    (tmp_path / "tunesmith.yaml").write_text("name: x\nsources: [{path: rows.jsonl}]\nbase: none\nevaluate: {metrics: [exact_match]}\n")
    assert guarded(app, ["eval", "echo", "--data", "rows.jsonl", "--json"]) == 0
    capsys.readouterr()
    kept = tmp_path / ".tunesmith" / "evaluations"
    name = next(kept.glob("*/kept.json")).parent.name
    assert guarded(app, ["report", name]) == 0
    for file in (kept / name / "evaluation.json", kept / name / "kept.json", *(kept / "rows").glob("*.jsonl")):
        whole = file.read_bytes()
        file.write_bytes(whole.replace(b"yes 3", b"yes 4").replace(b'"x"', b'"y"').replace(b'"echo"', b'"ecko"'))
        assert file.read_bytes() != whole
        assert guarded(app, ["report", name]) == 1
        assert f"{file.name}: the file is damaged" in capsys.readouterr().err
        file.write_bytes(whole)


@pytest.mark.slow
def test_a_stage_that_lost_a_file_or_has_a_damaged_one_is_done_again(tmp_path):
    from tunesmith.core.progress import Silent
    from tunesmith.flow.runner import Runner, Stage
    from tunesmith.store.store import Store

    said, made = [], []

    class Told(Silent):
        def say(self, text):
            said.append(text)

    def step(work):
        made.append(sorted(path.name for path in work.rglob("*") if path.is_file()))
        for name in ("kept", "artifact/weights", "checkpoints/1"):
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text(name)
        return {}

    with io.BytesIO():
        store = Store.open(tmp_path / "store")
    runner = Runner(store, "p", Told(), [Stage("train")], {"train": step})
    folder = runner.run("train").folder
    assert runner.run("train").cached
    (folder / "artifact" / "weights").unlink()
    assert runner.peek("train") is None
    assert not runner.run("train").cached
    (folder / "artifact" / "weights").write_text("artifact/w3ights")
    (folder / "checkpoints" / "1").write_text("it has digests of its own")
    assert not runner.run("train").cached
    assert runner.run("train").cached
    assert made == [[], ["1", "kept"], ["1", "kept"]]
    assert sum("artifact/weights is gone or damaged" in line for line in said) == 2
    store.close()
