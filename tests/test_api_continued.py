"""Jobs on what jobs made: training goes on from an adapter or from whole weights, and tuned models grade; by the real SDK, trained for real."""

from __future__ import annotations

import json

import pytest

from api_parts import MODEL, Server, chat_rows, reward_rows, running_server
from tunesmith.models.catalog import Catalog
from tunesmith.models.resolve import Models
from tunesmith.store.permissions import TunedModels

openai = pytest.importorskip("openai")
pytest.importorskip("torch")
SETTINGS = {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 50}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


def trained(server: Server, model: str, **hyperparameters):
    """A job on `model`, worked on to its end."""
    method = {"type": "supervised", "supervised": {"hyperparameters": SETTINGS | hyperparameters}}
    job = server.client.fine_tuning.jobs.create(model=model, training_file=server.upload(chat_rows()).id, method=method, seed=1)
    server.work()
    job = server.client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    return job


@pytest.fixture(scope="module")
def first(server):
    return trained(server, MODEL, lora_r=4, lora_targets=["q_proj", "v_proj"])


@pytest.fixture(scope="module")
def whole(server):
    return trained(server, MODEL, lora=False)


def weights_that_answer(server: Server, model: str) -> str:
    """What names the weights that answered a request (an answer itself may be empty, and two models may give the same one)."""
    asked = [{"role": "user", "content": "say 3"}]
    return server.client.chat.completions.create(model=model, messages=asked, temperature=0).system_fingerprint


def reference(server: Server, name: str):
    return Models(server.store, Catalog()).ref(name)


def settings(server: Server, name: str) -> dict:
    return json.loads((server.store.folder / reference(server, name).adapter / "adapter_config.json").read_text())


@pytest.mark.slow
def test_a_job_goes_on_from_the_adapter_that_a_job_made(server, first):
    second = trained(server, first.fine_tuned_model)
    base, suffix = second.fine_tuned_model.split(":")[1], second.id[-8:]
    assert (second.model, base, second.fine_tuned_model[-8:]) == (first.fine_tuned_model, MODEL, suffix)
    assert settings(server, second.fine_tuned_model)["target_modules"] == ["q_proj", "v_proj"]
    assert settings(server, second.fine_tuned_model)["r"] == 4
    assert reference(server, second.fine_tuned_model).base == reference(server, first.fine_tuned_model).base
    said = [weights_that_answer(server, model) for model in (MODEL, first.fine_tuned_model, second.fine_tuned_model)]
    assert len(set(said)) == 3
    manifest = json.loads((server.store.folder / "jobs" / second.id / "run" / "run.json").read_text())
    assert manifest["plan"]["adapter"]["start_from"] == str(server.store.folder / reference(server, first.fine_tuned_model).adapter)


@pytest.mark.slow
def test_a_checkpoint_is_a_base_too(server, first):
    checkpoint = server.client.fine_tuning.jobs.checkpoints.list(first.id).data[-1].fine_tuned_model_checkpoint
    assert ":ckpt-step-" in checkpoint
    assert trained(server, checkpoint).fine_tuned_model.startswith(f"ft:{MODEL}:default::")


@pytest.mark.slow
def test_whole_weights_are_trained_answer_and_are_a_base(server, whole):
    made = reference(server, whole.fine_tuned_model)
    assert (made.adapter, made.weights) == (None, f"jobs/{whole.id}/run/model")
    on_it = trained(server, whole.fine_tuned_model)
    assert reference(server, on_it.fine_tuned_model).base == f"./{made.weights}"
    again = trained(server, whole.fine_tuned_model, lora=False)
    said = [weights_that_answer(server, job) for job in (MODEL, whole.fine_tuned_model, on_it.fine_tuned_model, again.fine_tuned_model)]
    assert len(set(said)) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"lora": False}, "hyperparameters", "low-rank matrices cannot be trained as whole weights"),
        ({"lora_r": 8}, "hyperparameters", "r is 8, and 4 in the adapter"),
        ({"lora_targets": ["o_proj"]}, "hyperparameters", "targets are o_proj, and q_proj, v_proj"),
    ],
)
def test_another_adapter_than_the_one_to_go_on_from_is_refused(server, first, more, param, said):
    method = {"type": "supervised", "supervised": {"hyperparameters": SETTINGS | more}}
    with pytest.raises(openai.BadRequestError) as refused:
        server.client.fine_tuning.jobs.create(model=first.fine_tuned_model, training_file=server.upload().id, method=method)
    assert refused.value.param == param
    assert said in str(refused.value)


@pytest.mark.slow
def test_who_may_not_use_a_model_cannot_train_on_it(server, first):
    assert TunedModels(server.store).find(first.fine_tuned_model, "another") is None
    for name in (first.fine_tuned_model.replace("ft:", "ft:x"), "ft:none"):
        with pytest.raises(openai.BadRequestError, match="not available for fine-tuning"):
            server.client.fine_tuning.jobs.create(model=name, training_file=server.upload().id)


@pytest.mark.slow
def test_what_a_job_made_grades_another_jobs_answers(server, first):
    asks = [{"role": "user", "content": "Grade: {{ sample.output_text }}"}]
    verdict = {
        "type": "score_model",
        "name": "verdict",
        "model": first.fine_tuned_model,
        "input": asks,
        "sampling_params": {"max_completions_tokens": 3},
    }
    alike = {
        "type": "text_similarity", "name": "alike", "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
        "evaluation_metric": "fuzzy_match",
    }  # fmt: skip
    grader = {"type": "multi", "name": "both", "graders": {"alike": alike, "verdict": verdict}, "calculate_output": "alike + 0 * verdict"}
    method = {
        "type": "reinforcement",
        "reinforcement": {"grader": grader, "hyperparameters": SETTINGS | {"max_tokens": 4, "compute_multiplier": 0.25}},
    }
    job = server.client.fine_tuning.jobs.create(model=MODEL, training_file=server.upload(reward_rows()).id, method=method)
    server.work()
    events = server.client.fine_tuning.jobs.list_events(job.id, limit=100).data
    said = " ".join(event.message for event in events if event.level == "warn")
    assert "model_grader_server" not in said, "the grading model was not found"
    assert "model_grader_parse_error" in said, "a random model was asked, and says no number"
