"""What a person reads while a run trains: the figures of the last step at each evaluation, and whatever went wrong."""

from __future__ import annotations

import pytest

from train_parts import make_rows, tiny_base, user_plan
from tunesmith.flow.train_progress import TrainProgress
from tunesmith.train.loop import train


class Page:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[float, float]] = []

    def say(self, text: str) -> None:
        self.lines.append(text.strip())

    def bar(self, label: str, done: float, total: float) -> None:
        assert label == "train"
        self.steps.append((done, total))


def told(base, out, **changes) -> Page:
    page = Page()
    train(user_plan(**changes), make_rows(8), make_rows(3, seed=5), base=base, out=out, on_event=TrainProgress(page))
    return page


@pytest.mark.slow
def test_evaluations_speak_of_the_step_before_them_and_of_what_is_kept(tmp_path):
    base = tiny_base(tmp_path / "base")
    page = told(base, tmp_path / "a", epochs=20, learning_rate=5e-2, schedule="constant", patience=2)
    assert page.lines[0].startswith("route fused: packs with shared beginnings")
    assert page.lines[1].startswith("step 0 of 40: validation loss ")
    for word in (
        "step 2 of 40",
        "training loss",
        "of the tokens right",
        "tokens/s (",
        "of the machine's limit",
        "s left",
        "validation loss",
    ):
        assert word in page.lines[2]
    assert page.lines[-2].startswith("stopped at step ")
    assert page.lines[-1].endswith("the best of this run")
    assert page.steps[:2] == [(1, 40), (2, 40)]


def test_what_goes_wrong_is_said():
    page = Page()
    say = TrainProgress(page)
    say({"event": "start", "step": 0, "total_steps": 9})
    left = "the adapter reaches 14% of the weights in the model's matrices"
    say({"event": "start", "step": 4, "total_steps": 9, "route": "rows", "route_why": "one row a pass", "unreached": left, "untried": ""})
    say({"event": "fell_back", "step": 2, "failed_step": 7, "why": "loss 9.1 above 3.2", "rate_factor": 0.5})
    say({"event": "spike", "step": 8, "train_loss": 9.13, "limit": 3.2})
    say({"event": "checkpoint_failed", "step": 8, "error": "no checkpoint at step 8: no space left"})
    say({"event": "checkpoint", "step": 9, "folder": "x"})
    assert page.lines == [
        f"continuing at step 4 of 9\n  route rows: one row a pass\n  {left}",
        "step 7 went wrong (loss 9.1 above 3.2): back to step 2, at 0.5 of the learning rate",
        "step 8: the loss jumped to 9.130, and no recovery is left",
        "step 8: no checkpoint at step 8: no space left; the run goes on",
    ]
