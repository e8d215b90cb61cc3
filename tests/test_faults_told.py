"""Faults of the machine and of files, and what others wrote, at the terminal: one clear error each, and nothing that a terminal obeys."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import signal
import threading
import zipfile

import pytest

from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.atomic import atomic_folder
from tunesmith.core.errors import DataError, StoreError
from tunesmith.core.rows import read_lines
from tunesmith.core.terminal import printable

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\x7f\x08\rgone\u202eback"


def told(capsys, *words):
    """(exit code, all that a command printed)."""
    code = guarded(app, list(words))
    seen = capsys.readouterr()
    return code, seen.out + seen.err


def test_what_a_terminal_obeys_is_written_out():
    assert printable(ESCAPES) == "\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\x7f\\x08\\rgone\\u202eback"
    assert printable("two\nlines\tand é 漢字 🙂\r\n") == "two\nlines\tand é 漢字 🙂\n"


def test_no_escape_of_a_row_or_a_name_reaches_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"{ESCAPES} {i}"}, {"role": "assistant", "content": f"a{ESCAPES}"}]} for i in range(12)
    ]
    rows.append({"messages": [{"role": f"user{ESCAPES}", "content": ESCAPES}], f"key{ESCAPES}": 1})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bad.jsonl").write_bytes(ESCAPES.encode() + b"\n")
    name = f"n{ESCAPES}"
    for words in (
        ("data", "show", "rows.jsonl"),
        ("data", "import", "rows.jsonl", "--yes"),
        ("data", "show", "bad.jsonl"),
        ("init", "rows.jsonl", "--name", name),
        ("eval", name),
        ("data", name),
        (f"--{name}",),
        ("keys", "create", name),
        ("keys", "list"),
    ):
        _, text = told(capsys, *words)
        assert text
        assert printable(text) == text, words


def test_a_suffix_with_controls_is_refused():
    from tunesmith.core.wire import BadRequest
    from tunesmith.flow.jobs.request import job_request

    with pytest.raises(BadRequest, match="cannot be printed"):
        job_request(json.dumps({"model": "m", "training_file": "f", "suffix": "a\x1b[2J"}).encode())


# packed files


def bomb(path, size, pack=gzip.compress):
    path.write_bytes(pack(b"[" + b" " * size))
    return path


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "rows.txt.gz", "rows.csv.gz", "rows.jsonl.zst"])
def test_a_decompression_bomb_is_one_error(tmp_path, name, monkeypatch, capsys):
    import zstandard

    from tunesmith.core import rows

    monkeypatch.setattr(rows, "SMALL_BYTES", 1 << 20)
    bomb(tmp_path / name, 4 << 20, zstandard.compress if name.endswith("zst") else gzip.compress)
    code, text = told(capsys, "data", "show", str(tmp_path / name))
    assert code == 1
    assert "unpacks to more than 200 times its size" in text


def test_rows_that_repeat_are_no_bomb(tmp_path):
    """Packed they are a thousandth; in all they are few."""
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 100_000))
    assert sum(1 for _ in read_lines(tmp_path / "rows.jsonl.gz")) == 100_000


def test_a_log_that_is_a_bomb_or_damaged_is_one_error(tmp_path, monkeypatch):
    from tunesmith.evaluate import importers

    monkeypatch.setattr(importers, "_MOST_UNPACKED", 1 << 16)
    with zipfile.ZipFile(tmp_path / "log.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", "{}")
        archive.writestr("samples/1.json", b" " * (1 << 20))
    with pytest.raises(DataError, match="unpack to"):
        importers.inspect_log(tmp_path / "log.eval")
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("header.json", "[" * 5000)
    (tmp_path / "deep.eval").write_bytes(whole.getvalue())
    with pytest.raises(DataError, match="cannot be read"):
        importers.inspect_log(tmp_path / "deep.eval")


@pytest.mark.parametrize("levels", [90, 300, 600, 990, 5000])
def test_a_row_of_any_depth_is_read_or_refused(tmp_path, levels, capsys):
    deep = '{"a": ' * levels + "1" + "}" * levels
    turns = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'
    lines = [f'{{"messages": {turns}}}', f'{{"messages": {turns}, "meta": {deep}}}', f'{{"messages": [{deep}]}}', f'{{"text": {deep}}}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    code, text = told(capsys, "data", "show", str(tmp_path / "rows.jsonl"))
    assert code in (0, 1)
    assert ("nested deeper than 100 levels" in text) == (levels > 100)


# a disk that is full, two processes


@pytest.fixture
def full_disk():
    """No file may have more than 4 kB: what a full disk says, said at once."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_at_a_checkpoint_is_one_error_and_leaves_what_was_there(tmp_path, full_disk):
    import torch
    from safetensors.torch import save_file

    from tunesmith.train import checkpoint
    from tunesmith.train.adapters import Trainable

    class Weights:
        lora = False

        @property
        def causal(self):
            return self

        def save_pretrained(self, folder):
            folder.mkdir()
            save_file({"w": torch.zeros(64, 64)}, folder / "model.safetensors")

        def parameters(self):
            return {"w": torch.nn.Parameter(torch.zeros(64, 64))}

    weights: Trainable = Weights()
    with pytest.raises(StoreError, match="no checkpoint at step 3"):
        checkpoint.save(
            tmp_path,
            tmp_path,
            weights,
            torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]),
            checkpoint.TrainingState(step=3, identity="x"),
        )
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_two_trainings_in_one_folder_do_not_meet(tmp_path):
    import fcntl

    from tunesmith.core.errors import TrainingError
    from tunesmith.train.loop import train
    from tunesmith.train.plan import Plan

    (tmp_path / "out").mkdir()
    other = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)  # what a training in another process holds
    with pytest.raises(TrainingError, match="another process trains into this folder"):
        train(Plan(), [], base=tmp_path, out=tmp_path / "out")
    os.close(other)
    with pytest.raises(TrainingError, match="no model"):
        train(Plan(), [], base=tmp_path, out=tmp_path / "out")


def test_two_that_fill_one_folder_do_not_meet(tmp_path):
    """As two processes that fetch the same model at once."""
    wrong = []

    def fill(number):
        try:
            for _ in range(8):
                with atomic_folder(tmp_path / "model") as work:
                    for name in "abc":
                        (work / name).write_text(str(number))
        except BaseException as error:  # noqa: BLE001 - told below
            wrong.append(error)

    threads = [threading.Thread(target=fill, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len({path.read_text() for path in (tmp_path / "model").iterdir()}) == 1
    left = tmp_path / f".model.{2**22 + 1}-x.part"  # no process has that number
    left.mkdir()
    with atomic_folder(tmp_path / "model"):
        pass
    assert os.listdir(tmp_path) == ["model"]


def test_two_imports_of_the_same_rows_give_one_version(tmp_path, capsys, monkeypatch):
    from tunesmith.data.collect import Source
    from tunesmith.flow.datasets.imports import imported

    line = '{"messages": [{"role": "user", "content": "q%d"}, {"role": "assistant", "content": "a"}]}\n'
    (tmp_path / "rows.jsonl").write_text("".join(line % i for i in range(50)))
    made, wrong = [], []

    def take():
        try:
            made.append(
                imported(
                    tmp_path / "root",
                    [Source(path=str(tmp_path / "rows.jsonl"))],
                    {},
                    max_invalid=0,
                    note="",
                    on_row=lambda _: None,
                    named=str,
                )[0].id
            )
        except BaseException as error:  # noqa: BLE001 - told below
            wrong.append(error)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(set(made)) == 1
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == [made[0]]
