"""Parity with TRL, step by step, in float32: the same rows, seed and plan give the same losses and the same adapter.

TRL lives in its own environment (.peers/trl); without it these tests are skipped. What they show of the formulas is tested without TRL in
test_train_preference.py.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from train_parts import VOCABULARY, make_pairs, make_rows, tiny_base, user_plan
from tunesmith.train.items import Item
from tunesmith.train.loop import train
from tunesmith.train.packing import epoch_order
from tunesmith.train.plan import Adapter, PreferencePlan

PEER = Path(__file__).parents[1] / ".peers" / "trl" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEER.exists(), reason="needs TRL in .peers/trl: python -m venv .peers/trl, then pip install trl==1.16.0 in it"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The tiny base with a tokenizer that TRL's trainers insist on."""
    from tokenizers import Tokenizer, models

    folder = tiny_base(tmp_path_factory.mktemp("base"))
    Tokenizer(models.WordLevel({f"<{i}>": i for i in range(VOCABULARY)}, unk_token="<0>")).save(str(folder / "tokenizer.json"))
    return folder


def trl(tmp_path, base, **job):
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"base": str(base), "out": str(tmp_path), "beta": 0.1, "loss_type": "sigmoid", "accumulation": 1} | job))
    done = subprocess.run([PEER, Path(__file__).parent / "peer_trl.py", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((tmp_path / "trl.json").read_text()), load_file(tmp_path / "trl.safetensors")


def ours(tmp_path, base, rows, **changes):
    events = []
    changes = {"adapter": Adapter(r=4, alpha=8.0), "schedule": "constant", "warmup_ratio": 0.0, "epochs": 1} | changes
    result = train(user_plan(**changes), rows, base=base, out=tmp_path / "ours", on_event=events.append)
    return [e["train_loss"] for e in events if e["event"] == "step"], load_file(Path(result.artifact) / "adapter_model.safetensors")


def assert_same(mine, theirs):
    losses, adapter = mine
    assert losses == pytest.approx(theirs[0], rel=1e-6, abs=1e-5)
    for name, value in adapter.items():
        other = theirs[1][name.replace(".weight", ".default.weight")]
        assert (value - other).abs().max() <= 2e-3 * other.abs().max() + 1e-6  # Adam divides tiny gradients by their own size


def split(row):
    start = int(row.mask.argmax())
    end = len(row.ids) - int(row.mask[::-1].argmax())
    return row.ids[:start].tolist(), row.ids[start:end].tolist()


@pytest.mark.parametrize("changes", [{}, {"pack": False}, {"micro_batch_tokens": 70}])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_sft(base, tmp_path, changes, accumulation):
    rows = make_rows(16)
    order = epoch_order(16, seed=0, epoch=0)
    job = [{"input_ids": rows[i].ids.tolist(), "completion_mask": rows[i].mask.tolist()} for i in order]
    theirs = trl(tmp_path, base, method="sft", batch=4 // accumulation, accumulation=accumulation, epochs=1, learning_rate=5e-3, rows=job)
    assert_same(ours(tmp_path, base, rows, **changes), theirs)


@pytest.mark.parametrize(
    ("loss_type", "preference"),
    [("sigmoid", PreferencePlan()), ("ipo", PreferencePlan(loss="ipo")), ("sigmoid_norm", PreferencePlan(length_normalised=True))],
)
def test_dpo(base, tmp_path, loss_type, preference):
    pairs = make_pairs(16)
    order = epoch_order(16, seed=0, epoch=0)
    job = []
    for i in order:
        (prompt, chosen), (_, rejected) = (split(row) for row in pairs[i])
        job.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    theirs = trl(tmp_path, base, method="dpo", batch=4, epochs=1, learning_rate=5e-3, rows=job, loss_type=loss_type)
    assert_same(ours(tmp_path, base, pairs, method="dpo", preference=preference), theirs)


def test_kto(base, tmp_path):
    rows = [Item((row,), float(i % 3 > 0)) for i, row in enumerate(make_rows(9))]
    parts = [split(row.rows[0]) for row in rows]
    job = [
        {"prompt_ids": parts[i][0], "completion_ids": parts[i][1], "KL_completion_ids": parts[i - 1][1], "label": bool(rows[i].label)}
        for i in range(9)
    ]
    theirs = trl(tmp_path, base, method="kto", batch=9, epochs=3, learning_rate=5e-3, rows=job)
    assert_same(ours(tmp_path, base, rows, method="kto", batch_size=9, epochs=3), theirs)
