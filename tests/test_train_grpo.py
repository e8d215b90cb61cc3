"""Reinforcement: the loss against the papers' formulas and TRL's, rewards that rise, failures that are said, runs that resume."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny
from train_parts import adapter_bytes, awake, killed, plan
from tunesmith.core.chat import Rendered, Renderer
from tunesmith.core.errors import ConfigError, TrainingError, UsageError
from tunesmith.core.progress import Silent
from tunesmith.core.types import Message, Prompt
from tunesmith.data.formats.registry import parse_line
from tunesmith.flow.pipeline.rewards import item_of, reward_of, tasks_of
from tunesmith.flow.pipeline.train_only import train_project
from tunesmith.flow.project import load_project
from tunesmith.train.checkpoint import save_adapter
from tunesmith.train.grpo import reinforce
from tunesmith.train.grpo_loss import GRPO, known_logps, places, token_logps, weight
from tunesmith.train.items import Item
from tunesmith.train.methods import METHODS
from tunesmith.train.microbatch import StepItems, gradients, lanes
from tunesmith.train.plan import Adapter, Plan, Reinforcement, ResolvedReinforcement
from tunesmith.train.resolve import check
from tunesmith.train.rollout import Graded, Sampler, Task, advantages, roll_out
from tunesmith.train.routes import PLAIN
from tunesmith.train.run import Paused

PEER = Path(__file__).parents[1] / ".peers" / "trl" / "bin" / "python"
KILLED = """
from pathlib import Path
from test_train_grpo import tasks, user, vowels
from train_parts import dying_at
from tunesmith.train.grpo import reinforce

base = Path({base!r})
reinforce(user({updates}), tasks(base, 12), vowels, tasks(base, 4, first=100), base=base, out=Path({out!r}), on_event=dying_at({at}))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"))


def tasks(base, count, first=0):
    renderer, found = Renderer.load(base), []
    for i in range(first, first + count):
        ids = renderer.prompt(Prompt(messages=(Message(role="user", content=f"say {i}"),)))
        found.append(Task(Rendered(f"task-{i}", np.array(ids, np.int32), np.zeros(len(ids), np.uint8)), {"number": i}))
    return found


def vowels(answers):
    """The share of vowels in what was said."""
    return [Graded(sum(letter in "aeiou" for letter in text) / max(1, len(text))) for text, _ in answers]


def user(updates=1, **changes):
    options = {"samples": 8, "eval_samples": 8, "max_tokens": 8, "updates": updates, "beta": 0.01 if updates > 1 else 0.0}
    values = {"epochs": 4, "batch_size": 4, "learning_rate": 4e-2, "dtype": "float32", "threads": 1, "lanes": 1, "checkpoint_every": 2}
    values |= {"adapter": Adapter(r=4, dropout=0.1), "reinforcement": Reinforcement(**options)}
    return Plan(method="grpo", **values | changes)


def batch(trainable, resolved, *, noise=0.6):
    """Answers of different lengths to two prompts, with advantages, and log-probabilities at sampling and of the base that are others."""
    rng = np.random.default_rng(1)
    items = []
    for i in range(6):
        prompt, answer = rng.integers(3, 90, 20 + i % 2), rng.integers(3, 90, 2 + i)
        mask = np.concatenate([np.zeros(len(prompt)), np.ones(len(answer))]).astype(np.uint8)
        items.append(Item((Rendered(f"{i}", np.concatenate([prompt, answer]).astype(np.int32), mask),), float(rng.normal())))
    with lanes(resolved) as side:
        logp = token_logps(trainable, items, resolved, side)
    known = np.stack([logp + noise * rng.normal(size=logp.shape), logp + noise * rng.normal(size=logp.shape)], 1).astype(np.float32)
    return StepItems(items, known)


def slopes(trainable, resolved, found, *, on_policy=False):
    options = resolved.reinforcement
    whole = weight([item.rows[0] for item in found.items], options)
    with lanes(resolved) as side:
        sums = gradients(trainable, GRPO(options, whole, on_policy=on_policy), found, resolved, side, seed=0)
    grads = {name: p.grad.clone() for name, p in trainable.parameters().items()}
    trainable.model.zero_grad()
    return sums["loss"] / whole, grads


def paper(trainable, options, found):
    """The loss as the papers write it, answer by answer, on plain transformers logits."""
    trainable.causal.set_attn_implementation("eager")
    parts, tokens = [], 0
    for item, (old, base) in zip(found.items, torch.from_numpy(found.reference), strict=True):
        row = item.rows[0]
        ids = torch.from_numpy(row.ids.astype(np.int64))
        logits = trainable.model(input_ids=ids[None]).logits[0, :-1] / options.temperature
        logp = logits.log_softmax(-1).gather(1, ids[1:, None])[-row.trained :, 0]
        old, base = old[: row.trained], base[: row.trained]
        total = 0.0
        for p, o, b in zip(logp, old, base, strict=True):
            ratio = torch.exp(p) / torch.exp(o)
            bounded = torch.clip(ratio, 1 - options.clip, 1 + (options.clip_high if options.clip_high is not None else options.clip))
            gain = min(ratio * item.label, bounded * item.label)
            total = total + gain - options.beta * (torch.exp(b) / torch.exp(p) - torch.log(torch.exp(b) / torch.exp(p)) - 1)
        tokens += row.trained
        parts.append(total / row.trained if options.loss == "grpo" else total)
    whole = {"grpo": len(parts), "dapo": tokens, "dr_grpo": len(parts) * options.max_tokens}[options.loss]
    return -sum(parts) / whole


OPTIONS = [
    ResolvedReinforcement(max_tokens=9),
    ResolvedReinforcement(max_tokens=9, beta=0.3, clip=0.1, clip_high=0.4, temperature=0.7),
    ResolvedReinforcement(max_tokens=9, loss="dapo", clip_high=0.28),
    ResolvedReinforcement(max_tokens=9, loss="dr_grpo", beta=0.04),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("budget", [10_000, 30])
def test_the_loss_and_its_gradient_are_the_papers(base, options, budget):
    resolved = plan(method="grpo", reinforcement=options, micro_batch_tokens=budget)
    trainable = awake(base, resolved)
    found = batch(trainable, resolved)
    ours, mine = slopes(trainable, resolved, found)
    expected = paper(trainable, options, found)
    expected.backward()
    assert ours == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    for name, p in trainable.parameters().items():
        assert (mine[name] - p.grad).norm() <= 5e-5 * p.grad.norm() + 1e-7, name


@pytest.mark.slow
@pytest.mark.skipif(not PEER.exists(), reason="needs TRL in .peers/trl: python -m venv .peers/trl, then pip install trl==1.16.0 in it")
@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_and_its_gradient_are_trls(base, tmp_path, options):
    resolved = plan(method="grpo", reinforcement=options)
    trainable = awake(base, resolved)
    found = batch(trainable, resolved)
    save_adapter(trainable, tmp_path / "adapter")
    rows = [item.rows[0] for item in found.items]
    job = {
        "base": str(base), "adapter": str(tmp_path / "adapter"), "out": str(tmp_path), "loss": options.loss, "beta": options.beta,
        "clip": options.clip, "clip_high": options.clip_high or options.clip, "temperature": options.temperature,
        "max_tokens": options.max_tokens, "advantages": [item.label for item in found.items],
        "prompts": [row.ids[: -row.trained].tolist() for row in rows], "answers": [row.ids[-row.trained :].tolist() for row in rows],
        "old": [found.reference[i, 0, : row.trained].tolist() for i, row in enumerate(rows)],
        "reference": [found.reference[i, 1, : row.trained].tolist() for i, row in enumerate(rows)],
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run([PEER, Path(__file__).parent / "peer_trl_grpo.py", tmp_path / "job.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, mine = slopes(trainable, resolved, found)
    assert ours == pytest.approx(json.loads((tmp_path / "trl.json").read_text()), rel=1e-5, abs=1e-5)
    theirs = load_file(tmp_path / "trl.safetensors")
    assert theirs.keys() == mine.keys()
    for name, slope in theirs.items():
        assert (mine[name] - slope).norm() <= 5e-5 * slope.norm() + 1e-7, name


def test_advantages_are_trls():
    rewards = [0.1, 0.9, 0.4, 0.4]
    expected = (torch.tensor(rewards) - torch.tensor(rewards).mean()) / (torch.tensor(rewards).std() + 1e-4)
    assert advantages(rewards, scaled=True) == pytest.approx(expected.tolist(), abs=1e-6)
    assert advantages(rewards, scaled=False) == pytest.approx([-0.35, 0.45, -0.05, -0.05])
    assert advantages([0.3] * 7, scaled=True) == advantages([0.3] * 7, scaled=False) == [0.0] * 7
    assert advantages([], scaled=True) == []


def test_places_count_within_each_row():
    assert places(np.array([2, 2, 0, 1, 1, 1])).tolist() == [0, 1, 0, 0, 1, 2]
    assert places(np.array([0, 1, 0, 1])).tolist() == [0, 0, 1, 1]


def test_answers_to_which_all_rewards_are_equal_have_no_gradient(base):
    resolved = plan(method="grpo", reinforcement=ResolvedReinforcement(max_tokens=9))
    trainable = awake(base, resolved)
    found = batch(trainable, resolved)
    level = StepItems([item._replace(label=0.0) for item in found.items], found.reference)
    loss, grads = slopes(trainable, resolved, level)
    assert loss == 0.0
    assert all(not slope.any() for slope in grads.values())


def test_on_policy_the_gradient_is_reinforce_and_nothing_is_clipped(base):
    """With the ratio at 1 the gradient is that of −A·log p: remembering the probabilities at sampling gives the same."""
    resolved = plan(method="grpo", reinforcement=ResolvedReinforcement(max_tokens=9, updates=2))
    trainable = awake(base, resolved)
    found = batch(trainable, resolved)
    with lanes(resolved) as side:
        found = StepItems(found.items, known_logps(trainable, found.items, resolved, side))
    (ours, mine), (other, remembered) = (slopes(trainable, resolved, found, on_policy=value) for value in (True, False))
    assert ours == pytest.approx(other, abs=1e-6)
    for name, slope in mine.items():
        torch.testing.assert_close(slope, remembered[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "route", "answers"), [("llama", "fused", "batched"), ("lfm2", "rows", "cached")])
def test_the_sampler_draws_from_the_model_as_it_stands_and_repeats_itself(tmp_path, kind, route, answers):
    base = tiny.model(tmp_path, kind)
    resolved = plan(method="grpo", reinforcement=ResolvedReinforcement(samples=4, max_tokens=6))
    trainable = awake(base, resolved)
    sampler = Sampler(trainable, base, resolved)
    assert (trainable.route.name, sampler.choice.route) == (route, answers), sampler.choice.why()
    first, again, other = (sampler.draw(tasks(base, 3), 4, step) for step in (1, 1, 2))
    assert [sample.text for sample in first] == [sample.text for sample in again] != [sample.text for sample in other]
    assert [sample.task.item["number"] for sample in first] == [0] * 4 + [1] * 4 + [2] * 4
    greedy = replace_temperature(resolved, 0.01)
    row = Sampler(trainable, base, greedy).draw(tasks(base, 1), 1, 1)[0].row
    assert trainable.route.name == route, "it goes on training as before"
    trainable.go(PLAIN)
    with torch.no_grad():
        logits = trainable.model.eval()(input_ids=torch.from_numpy(row.ids.astype(np.int64))[None]).logits[0]
    assert logits.argmax(-1)[-row.trained - 1 : -1].tolist() == row.ids[-row.trained :].tolist()


def replace_temperature(resolved, value):
    return msgspec.structs.replace(resolved, reinforcement=msgspec.structs.replace(resolved.reinforcement, temperature=value))


def test_an_answer_that_could_not_be_graded_is_missing_not_worth_nothing(base):
    resolved = plan(method="grpo", reinforcement=ResolvedReinforcement(samples=3, max_tokens=4))
    sampler = Sampler(awake(base, resolved), base, resolved)

    def reward(answers):
        return [Graded(None, "the grader is away") if i % 3 == 0 else Graded(1.0) for i, _ in enumerate(answers)]

    found = roll_out(sampler, reward, tasks(base, 2), 3, 1)
    assert [group.rewards for group in found.groups] == [(1.0, 1.0), (1.0, 1.0)]
    assert found.failures == ("the grader is away",) * 2
    assert (found.means()["reward"], found.means()["failed"], found.degenerate) == (1.0, 2.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 2])
def test_rewards_rise_and_a_killed_run_ends_in_the_same_bytes(base, tmp_path, updates):
    events: list[dict] = []
    arguments = (user(updates), tasks(base, 12), vowels, tasks(base, 4, first=100))
    result = reinforce(*arguments, base=base, out=tmp_path / "whole", on_event=events.append)
    steps = [event for event in events if event["event"] == "step"]
    rewards = [event["train_reward"] for event in steps]
    if updates == 1:
        assert statistics.fmean(rewards[-3:]) > 1.4 * statistics.fmean(rewards[:3])
        assert result.valid_reward > result.first_valid_reward
    assert [event["step"] for event in events if event["event"] == "evaluation"] == [0, 3, 6, 9, 12]
    assert all(("train_kl" in event) == (updates > 1) and event["train_entropy"] > 0 for event in steps)
    assert result.trained_tokens == sum(event["tokens"] for event in steps)
    out = tmp_path / "killed"
    for at in (4, 7, 9):
        killed(KILLED.format(base=str(base), out=str(out), at=at, updates=updates))
    again = reinforce(*arguments, base=base, out=out)
    assert adapter_bytes(out) == adapter_bytes(tmp_path / "whole")
    assert (again.train_reward, again.valid_reward) == (result.train_reward, result.valid_reward)
    assert f"| mean reward over held-out prompts | {again.valid_reward:.4f} |" in (Path(again.artifact) / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": Adapter(r=4, quantise="nf4")},
        {"adapter": Adapter(kind="none"), "learning_rate": 1e-3, "dtype": "bfloat16"},
        {"adapter": Adapter(r=4, dora=True)},
    ],
)
def test_every_kind_of_adapter_samples_and_learns(base, tmp_path, changes):
    events: list[dict] = []
    reinforce(user(**changes), tasks(base, 12), vowels, base=base, out=tmp_path, on_event=events.append)
    rewards = [event["train_reward"] for event in events if event["event"] == "step"]
    assert statistics.fmean(rewards[-3:]) > 1.1 * statistics.fmean(rewards[:3])


@pytest.mark.slow
def test_a_pause_changes_nothing_and_failed_graders_are_told(base, tmp_path):
    def reward(answers):
        return [replace_first(i, one) for i, one in enumerate(vowels(answers))]

    def replace_first(i, one):
        return Graded(None, "no verdict") if i == 0 else one

    whole: list[dict] = []
    reinforce(user(), tasks(base, 8), reward, base=base, out=tmp_path / "whole", on_event=whole.append)
    failed = [event for event in whole if event["event"] == "grading_failed"]
    assert [(event["step"], event["count"], event["why"]) for event in failed] == [(i, 1, "no verdict") for i in range(1, 9)]
    assert {event["train_failed"] for event in whole if event["event"] == "step"} == {1.0}
    asked = iter([False, False, True])
    with pytest.raises(Paused, match="after step 3"):
        reinforce(user(), tasks(base, 8), reward, base=base, out=tmp_path / "paused", should_stop=lambda: next(asked))
    assert (tmp_path / "paused" / "checkpoints" / "checkpoint-3").is_dir()
    reinforce(user(), tasks(base, 8), reward, base=base, out=tmp_path / "paused")
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "paused" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


PROJECT = """
name: tiny
sources: [{{path: rows.jsonl}}]
base: {base}
split: {{validation: 0.1, test: 0.2, semantic: {{max_share: 1.0}}}}
train:
  method: grpo
  epochs: 1
  batch_size: 4
  learning_rate: 0.01
  dtype: float32
  reinforcement:
    samples: 4
    max_tokens: 6
    grader:
      type: text_similarity
      name: likeness
      input: "{{{{ sample.output_text }}}}"
      reference: "{{{{ item.reference }}}}"
      evaluation_metric: fuzzy_match
"""


@pytest.mark.slow
@pytest.mark.parametrize("key", ["reference", "answered"])
def test_a_project_file_reinforces(base, tmp_path, key):
    """Rows with a reference beside the prompt, and rows whose last turn is the reference."""
    words = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated"]
    rng, rows = np.random.default_rng(0), []
    for _ in range(40):
        said = " ".join(rng.choice(words, 6))
        turns = [{"role": "user", "content": said}]
        answer = "yes" if "bank" in said else "no"
        rows.append(
            {"messages": turns, "reference": answer}
            if key == "reference"
            else {"messages": [*turns, {"role": "assistant", "content": answer}]}
        )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tunesmith.yaml").write_text(PROJECT.format(base=base))
    found = train_project(load_project(tmp_path / "tunesmith.yaml"), tmp_path, Silent())
    assert found["plan"]["method"] == "grpo"
    assert 0 < found["train_reward"] < 1
    assert (Path(found["artifact"]) / "adapter_model.safetensors").is_file()
    assert train_project(load_project(tmp_path / "tunesmith.yaml"), tmp_path, Silent())["cached"]
    broken = load_project(tmp_path / "tunesmith.yaml", ["--train.reinforcement.grader", "{type: string_check, name: x}"])
    with pytest.raises(UsageError, match="the grader is not valid: Object missing required field `input`"):
        train_project(broken, tmp_path, Silent())
    with pytest.raises(ConfigError, match="method grpo has no grader"):
        train_project(load_project(tmp_path / "tunesmith.yaml", ["--train.reinforcement.grader", "null"]), tmp_path, Silent())


@pytest.mark.slow
def test_what_cannot_be_learned_is_said(base, tmp_path):
    with pytest.raises(TrainingError, match="in none of 2 steps was an answer better than another"):
        reinforce(user(epochs=1), tasks(base, 8), lambda answers: [Graded(0.5) for _ in answers], base=base, out=tmp_path / "a")
    with pytest.raises(TrainingError, match="none of 2 prompts has at most 2 tokens"):
        reinforce(user(max_length=10), tasks(base, 2), vowels, base=base, out=tmp_path / "b")
    with pytest.raises(TrainingError, match="1 validation rows are training rows too: task-1"):
        reinforce(user(), tasks(base, 2), vowels, tasks(base, 1, first=1), base=base, out=tmp_path / "c")
    with pytest.raises(ConfigError, match="method sft takes no rewards"):
        reinforce(Plan(), tasks(base, 2), vowels, base=base, out=tmp_path / "d")


def test_rows_that_ask_the_same_keep_their_own_items(base):
    rows = [parse_line(b'{"messages": [{"role": "user", "content": "2 + 2?"}], "answer": "%d"}' % i, "rft").row for i in range(3)]
    assert len({row.id for row in rows}) == 1
    tasks = tasks_of(rows, METHODS["grpo"].render(Renderer.load(base), rows))
    assert [task.item["answer"] for task in tasks] == ["0", "1", "2"]


def test_a_row_is_a_task_with_its_item_and_graders_read_it(base):
    line = b'{"messages": [{"role": "user", "content": "2 + 2?"}], "answer": "4", "label": "sum", "parts": {"left": 2}}'
    row = parse_line(line, "rft").row
    assert item_of(row) == {"answer": "4", "label": "sum", "parts": {"left": 2}, "messages": [{"role": "user", "content": "2 + 2?"}]}
    (task,) = tasks_of([row], METHODS["grpo"].render(Renderer.load(base), [row]))
    assert Renderer.load(base).pieces(task.prompt.ids.tolist())[-2:] != []
    assert not task.prompt.mask.any()
    same = {
        "type": "string_check",
        "name": "same",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
        "operation": "eq",
    }
    assert list(reward_of(same, Path)([("4", task.item), ("5", task.item)])) == [Graded(1.0), Graded(0.0)]
    parsed = same | {"input": "{{ sample.output_json.sum }}"}
    assert list(reward_of(parsed, Path)([('{"sum": "4"}', task.item), ("4!", task.item)])) == [Graded(1.0), Graded(0.0)]
    unknown = reward_of(same | {"reference": "{{ item.other }}"}, Path)([("4", task.item)])
    assert list(unknown) == [Graded(None, "invalid_variable_error: True")]
    python = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1 / item['parts']['right']"}
    (failed,) = reward_of(python, Path)([("4", task.item)])
    assert failed.reward is None
    assert "python_grader_runtime_error" in failed.why
    python["source"] = "def grade(sample, item):\n    return item['parts']['left'] / 4"
    assert list(reward_of(python, Path)([("4", task.item)])) == [Graded(0.5)]


@pytest.mark.slow
def test_another_item_is_another_run(base, tmp_path):
    reinforce(user(epochs=1, batch_size=2), tasks(base, 2), vowels, base=base, out=tmp_path)
    changed = [task._replace(item={"number": -1}) for task in tasks(base, 2)]
    with pytest.raises(TrainingError, match="other rows"):
        reinforce(user(epochs=1, batch_size=2), changed, vowels, base=base, out=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Plan(reinforcement=Reinforcement(samples=4)), "reinforcement means nothing to method sft"),
        (Plan(method="grpo", reinforcement=Reinforcement(samples=1)), "samples is 1"),
        (Plan(method="grpo", reinforcement=Reinforcement(temperature=0.0)), "temperature is 0.0"),
        (Plan(method="grpo", over_length="truncate"), "over_length truncate and method grpo exclude"),
        (Plan(method="grpo", adapter=Adapter(kind="none"), reinforcement=Reinforcement(beta=0.1)), "adapter.kind none has no adapter"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        check(wrong)


@pytest.mark.slow
def test_rows_are_what_the_sampler_says(base):
    """The trained tokens of a sample are its answer's, the end of turn included."""
    resolved = plan(method="grpo", reinforcement=ResolvedReinforcement(samples=16, max_tokens=40))
    samples = Sampler(awake(base, resolved), base, resolved).draw(tasks(base, 1), 16, 1)
    prompt = tasks(base, 1)[0].prompt
    assert all(sample.row.ids[: len(prompt.ids)].tolist() == prompt.ids.tolist() for sample in samples)
    assert all(sample.row.trained == len(sample.row.ids) - len(prompt.ids) for sample in samples)
    stopped = [sample for sample in samples if sample.row.trained < 40]
    assert all(sample.row.ids[-1] == 2 and "<|end|>" not in sample.text for sample in stopped)
