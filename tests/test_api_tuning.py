"""The fine-tuning API from upload to a served model, asked by the real OpenAI SDK over real sockets; jobs train for real."""

from __future__ import annotations

import csv
import io
import json

import pytest

from api_parts import MODEL, Server, chat_rows, preference_rows, reward_rows, running_server
from openai_spec import assert_valid, require_spec
from waiting import until

openai = pytest.importorskip("openai")
PARAMETERS = {"n_epochs": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


def supervised(**hyperparameters):
    return {"type": "supervised", "supervised": {"hyperparameters": PARAMETERS | hyperparameters}}


@pytest.fixture(scope="module")
def finished(server: Server):
    """A finished job with validation rows."""
    made = server.client.fine_tuning.jobs.create(
        model=MODEL, training_file=server.upload().id, validation_file=server.upload(chat_rows(4, first=100)).id,
        method=supervised(lora_r=4), suffix="my-suffix", seed=7, metadata={"team": "a"},
        integrations=[{"type": "wandb", "wandb": {"project": "tried"}}],
    )  # fmt: skip
    assert (made.status, made.fine_tuned_model, made.error, made.seed) == ("validating_files", None, None, 7)
    assert made.hyperparameters.learning_rate_multiplier == "auto"
    server.work()
    return server.client.fine_tuning.jobs.retrieve(made.id)


@pytest.mark.slow
def test_a_job_succeeds(server: Server, finished):
    assert (finished.status, finished.error) == ("succeeded", None)
    assert finished.fine_tuned_model == f"ft:{MODEL}:default:my-suffix:{finished.id[-8:]}"
    shown = finished.hyperparameters
    assert (shown.n_epochs, shown.batch_size, shown.learning_rate_multiplier) == (2, 4, 1.0)
    assert finished.trained_tokens > 0
    assert finished.finished_at >= finished.created_at
    said = [event.message for event in server.client.fine_tuning.jobs.list_events(finished.id, limit=2)][::-1]
    assert said[0] == f"Created fine-tuning job: {finished.id}"
    assert said[1].startswith("Validating training file: file-")
    assert said[2:4] == ["Files validated, moving job to queued state", "Fine-tuning job started"]
    assert "Weights & Biases (project tried) is not used: this server has no WANDB_API_KEY" in said
    assert said[-2:] == [f"New fine-tuned model created: {finished.fine_tuned_model}", "The job has successfully completed"]
    steps = [event for event in server.client.fine_tuning.jobs.list_events(finished.id, limit=1) if event.type == "metrics"]
    trained = [event.data for event in steps if "train_loss" in event.data]
    assert [data["step"] for data in trained] == [6, 5, 4, 3, 2, 1]
    assert {"total_steps", "train_mean_token_accuracy"} <= trained[0].keys()
    assert [event.data["step"] for event in steps if "full_valid_loss" in event.data] == [6, 3, 0]


@pytest.mark.slow
def test_a_job_and_its_answers_are_traced(server: Server, finished):
    from tunesmith.flow.trace import trace

    name = finished.fine_tuned_model
    answer = server.client.chat.completions.create(model=name, messages=[{"role": "user", "content": "say 1"}], max_tokens=2)
    walked = trace(server.store, answer.id)
    kinds = [(link.kind, link.id) for link in walked.came_from]
    assert kinds[:3] == [("model", name), ("job", finished.id), ("plan", finished.id)]
    assert ("file", finished.training_file) in kinds
    assert kinds[-1][0] == "base"
    for word in (name, finished.id, finished.training_file):
        led = {(link.kind, link.id) for link in trace(server.store, word).led_to}
        assert ("answers", name) in led
    assert ("job", finished.id) in {(link.kind, link.id) for link in trace(server.store, finished.training_file).led_to}


def test_its_results_are_files(server: Server, finished):
    rows = list(csv.DictReader(io.StringIO(server.client.files.content(finished.result_files[0]).text)))
    assert list(rows[0]) == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [bool(row["valid_loss"]) for row in rows] == [False, False, True, False, False, True]
    assert server.client.files.retrieve(finished.result_files[0]).purpose == "fine-tune-results"


def test_its_checkpoints_have_weights(server: Server, finished):
    from safetensors.torch import load

    checkpoints = list(server.client.fine_tuning.jobs.checkpoints.list(finished.id, limit=1))
    assert [one.step_number for one in checkpoints] == [6, 3]
    assert checkpoints[0].metrics.full_valid_loss is not None
    names = {}
    for number in checkpoints[0].result_files:
        names[server.client.files.retrieve(number).filename] = server.client.files.content(number).read()
    assert names.keys() == {"step-6-adapter_config.json", "step-6-adapter_model.safetensors"}
    assert json.loads(names["step-6-adapter_config.json"])["r"] == 4
    assert any("lora_A" in name for name in load(names["step-6-adapter_model.safetensors"]))


def test_the_model_answers_at_once(server: Server, finished):
    def ask(model):
        asked = [{"role": "user", "content": "say 3"}]
        return (
            server.client.chat.completions.create(model=model, messages=asked, temperature=0, logprobs=True).choices[0].logprobs.content[0]
        )

    checkpoint = server.client.fine_tuning.jobs.checkpoints.list(finished.id).data[-1].fine_tuned_model_checkpoint
    tuned, base, early = ask(finished.fine_tuned_model), ask(MODEL), ask(checkpoint)
    assert tuned.logprob != base.logprob
    assert early.logprob not in (tuned.logprob, base.logprob)
    listed = [model.id for model in server.client.models.list()]
    assert listed[:3] == ["echo", MODEL, finished.fine_tuned_model]
    assert server.client.models.retrieve(finished.fine_tuned_model).owned_by == "default"


def test_bodies_are_valid(server: Server, finished):
    require_spec()
    jobs = "/fine_tuning/jobs"
    assert_valid("FineTuningJob", server.request("GET", f"{jobs}/{finished.id}").json())
    assert_valid("ListPaginatedFineTuningJobsResponse", server.request("GET", jobs).json())
    assert_valid("ListFineTuningJobEventsResponse", server.request("GET", f"{jobs}/{finished.id}/events").json())
    assert_valid("ListFineTuningJobCheckpointsResponse", server.request("GET", f"{jobs}/{finished.id}/checkpoints").json())
    body = {"model": MODEL, "training_file": server.upload().id, "hyperparameters": {"n_epochs": "auto"}}
    made = server.request("POST", jobs, json=body).json()
    assert_valid("FineTuningJob", made)
    for word in ("pause", "resume", "cancel"):
        assert_valid("FineTuningJob", server.request("POST", f"{jobs}/{made['id']}/{word}").json())
    assert_valid("ErrorResponse", server.request("GET", f"{jobs}/ftjob-nobody").json())


@pytest.mark.slow
def test_preferences_are_trained(server: Server):
    method = {"type": "dpo", "dpo": {"hyperparameters": PARAMETERS | {"n_epochs": 1, "beta": 0.2}}}
    job = server.client.fine_tuning.jobs.create(model=MODEL, training_file=server.upload(preference_rows()).id, method=method)
    server.work()
    job = server.client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    assert job.method.dpo.hyperparameters.beta == 0.2
    asked = [{"role": "user", "content": "say 3"}]
    assert server.client.chat.completions.create(model=job.fine_tuned_model, messages=asked).choices[0].finish_reason


LIKENESS = {
    "type": "text_similarity", "name": "likeness", "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
    "evaluation_metric": "fuzzy_match",
}  # fmt: skip


def reinforcement(grader=LIKENESS, **hyperparameters):
    settings = {"n_epochs": 2, "batch_size": 4, "max_tokens": 6, "learning_rate_multiplier": 100} | hyperparameters
    return {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": settings}}


PYTHON = {"type": "python", "name": "x", "source": "def grade(sample, item): return 1.0"}
ASKS = {"type": "score_model", "name": "x", "model": "gpt-9", "input": [{"role": "user", "content": "x"}]}


def with_format(form):
    method = reinforcement()
    return {**method, "reinforcement": {**method["reinforcement"], "response_format": form}}


@pytest.mark.slow
def test_graders_are_rewards(server: Server):
    job = server.client.fine_tuning.jobs.create(
        model=MODEL, training_file=server.upload(reward_rows()).id, seed=3,
        validation_file=server.upload(reward_rows(4, first=100)).id,
        method=reinforcement(compute_multiplier=0.5, eval_interval=2, eval_samples=3),
    )  # fmt: skip
    assert job.method.reinforcement.hyperparameters.reasoning_effort == "default"
    server.work()
    job = server.client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    shown = job.method.reinforcement.hyperparameters
    assert (shown.n_epochs, shown.compute_multiplier, shown.eval_interval, shown.eval_samples) == (2, 0.5, 2, 3)
    assert job.method.reinforcement.grader.evaluation_metric == "fuzzy_match"
    events = [event for event in server.client.fine_tuning.jobs.list_events(job.id, limit=100) if event.type == "metrics"]
    steps = [event for event in events if "train_mean_reward" in event.data]
    assert [event.data["step"] for event in steps] == [6, 5, 4, 3, 2, 1]
    assert all(0 < event.data["train_mean_reward"] < 1 and event.data["train_failed"] == 0 for event in steps)
    assert steps[0].message == f"Step 6/6: training reward={steps[0].data['train_mean_reward']:.2f}"
    assert [event.data["step"] for event in events if "full_valid_mean_reward" in event.data] == [6, 4, 2, 0]
    checkpoints = server.client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert sorted(one.step_number for one in checkpoints) == [3, 6]
    rows = list(csv.DictReader(io.StringIO(server.client.files.content(job.result_files[0]).text)))
    assert list(rows[0])[:3] == ["step", "train_reward_mean", "valid_reward_mean"]
    assert [bool(row["valid_reward_mean"]) for row in rows] == [False, True, False, True, False, True]
    asked = [{"role": "user", "content": "say 3"}]
    assert server.client.chat.completions.create(model=job.fine_tuned_model, messages=asked).choices[0].finish_reason
    assert job.trained_tokens > 12 * 2 * 4
    require_spec()
    assert_valid("FineTuningJob", server.request("GET", f"/fine_tuning/jobs/{job.id}").json())
    assert_valid("ListFineTuningJobCheckpointsResponse", server.request("GET", f"/fine_tuning/jobs/{job.id}/checkpoints").json())


@pytest.mark.slow
def test_a_model_grades_and_what_it_does_not_say_is_missing(server: Server):
    """The random base gives hardly ever a number: those answers are left out and told, and are no rewards of 0."""
    asks = [{"role": "user", "content": "Grade: {{ sample.output_text }} against {{ item.answer }}"}]
    grader = {
        "type": "multi", "calculate_output": "0.5 * likeness + 0.5 * likeness", "name": "both",
        "graders": {"likeness": LIKENESS, "verdict": {"type": "score_model", "name": "verdict", "model": MODEL, "input": asks, "sampling_params": {"max_completions_tokens": 3}}},
    }  # fmt: skip
    job = server.client.fine_tuning.jobs.create(
        model=MODEL, training_file=server.upload(reward_rows()).id, method=reinforcement(grader, n_epochs=1, compute_multiplier=0.25)
    )
    server.work()
    told = server.client.fine_tuning.jobs.list_events(job.id, limit=100).data
    ungraded = [event.message for event in told if event.level == "warn"]
    assert any("answers could not be graded and are left out: model_grader_parse_error" in message for message in ungraded)
    job = server.client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded" or "in none of 3 steps" in job.error.message


@pytest.mark.parametrize(
    ("method", "param", "code"),
    [
        ({"type": "reinforcement", "reinforcement": {}}, "method.reinforcement.grader", "missing_required_parameter"),
        (reinforcement({"type": "string_check", "name": "x"}), "method.reinforcement.grader", "invalid_grader"),
        (reinforcement(PYTHON), "method.reinforcement.grader", "invalid_grader"),
        ({"type": "supervised", "supervised": {"grader": LIKENESS}}, "method.supervised.grader", "unknown_parameter"),
        (
            reinforcement(ASKS),
            "method.reinforcement.grader",
            "invalid_grader",
        ),
        (reinforcement(compute_multiplier=11), "method.reinforcement.hyperparameters.compute_multiplier", "invalid_value"),
        (reinforcement(reasoning_effort="extreme"), "method.reinforcement.hyperparameters.reasoning_effort", "invalid_value"),
        (reinforcement(eval_interval=0), "method.reinforcement.hyperparameters.eval_interval", "invalid_value"),
        (reinforcement(temperature=0), "method.reinforcement.hyperparameters.temperature", "invalid_value"),
        (reinforcement(over_length="truncate"), "method.reinforcement.hyperparameters.over_length", "invalid_value"),
        (supervised(max_tokens=9), "method.supervised.hyperparameters.max_tokens", "unknown_parameter"),
    ],
)  # fmt: skip
def test_faults_of_reinforcement_are_named(server: Server, method, param, code):
    body = {"model": MODEL, "training_file": server.upload(reward_rows()).id, "method": method}
    answer = server.request("POST", "/fine_tuning/jobs", json=body)
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code), answer.text


@pytest.mark.parametrize(
    ("method", "param", "said"),
    [
        (reinforcement(PYTHON), "method.reinforcement.grader", "serve.python_graders"),
        (reinforcement({"type": "multi", "name": "m", "graders": {"p": PYTHON}, "calculate_output": "p"}), "method.reinforcement.grader", "serve.python_graders"),
        (reinforcement(ASKS | {"model": "ft:x:y::z"}), "method.reinforcement.grader", "'ft:x:y::z' is not available"),
        (with_format({"type": "json_object"}), "method.reinforcement.response_format", "are not held to a format"),
    ],
)  # fmt: skip
def test_what_reinforcement_does_not_take_is_told_with_what_it_does(server: Server, method, param, said):
    body = {"model": MODEL, "training_file": server.upload(reward_rows()).id, "method": method}
    answer = server.request("POST", "/fine_tuning/jobs", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), answer.text
    assert said in error["message"]
    assert "allowed: " in error["message"]


def test_a_text_format_is_taken(server: Server):
    body = {"model": MODEL, "training_file": server.upload(reward_rows()).id, "method": with_format({"type": "text"})}
    made = server.request("POST", "/fine_tuning/jobs", json=body)
    assert made.status_code == 200, made.text
    server.client.fine_tuning.jobs.cancel(made.json()["id"])


@pytest.mark.parametrize(
    ("data", "method", "code", "said"),
    [
        (chat_rows(7), "supervised", "invalid_n_examples", "Training file has 7 example(s), but must have at least 10 examples"),
        (preference_rows(), "supervised", "invalid_training_file", "the line is in the format 'dpo'"),
        (chat_rows(), "reinforcement", "invalid_training_file", "expected 'rft'"),
        (chat_rows(), "dpo", "invalid_training_file", "expected 'dpo'"),
        (b"what is this\n" * 12, "supervised", "invalid_training_file", "12 lines"),
        (b"\xff\xfea\x00", "supervised", "invalid_training_file", "UTF-16"),
        (b"", "supervised", "invalid_n_examples", "0 example(s)"),
    ],
)
def test_a_file_that_does_not_fit_fails_the_job(server: Server, data, method, code, said):
    made = server.client.files.create(file=("rows.jsonl", data), purpose="fine-tune")
    settings = reinforcement() if method == "reinforcement" else {"type": method}
    job = server.client.fine_tuning.jobs.create(model=MODEL, training_file=made.id, method=settings)
    server.work()
    job = server.client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.error.code, job.error.param) == ("failed", code, "training_file")
    assert said in job.error.message
    assert server.client.fine_tuning.jobs.list_events(job.id).data[0].level == "error"


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"model": "gpt-9"}, "model", "model_not_available"),
        ({"model": None}, "model", "invalid_type"),
        ({"training_file": "file-nobody"}, "training_file", "invalid_training_file"),
        ({"validation_file": "file-nobody"}, "validation_file", "invalid_validation_file"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"suffix": ""}, "suffix", "invalid_value"),
        ({"suffix": "x" * 65}, "suffix", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": {"a": "x" * 513}}, "metadata", "invalid_value"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"n_epochs": 1.5}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size", "invalid_value"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier", "invalid_value"),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta", "unknown_parameter"),
        ({"hyperparameters": {"lora_q": 8}}, "hyperparameters.lora_q", "unknown_parameter"),
        ({"hyperparameters": {"threads": 8}}, "hyperparameters.threads", "unknown_parameter"),
        ({"hyperparameters": {"warmup_ratio": 2}}, "hyperparameters.warmup_ratio", "invalid_value"),
        ({"hyperparameters": {"lora": {"rank": 2}}}, "hyperparameters.adapter.rank", "invalid_value"),
        ({"hyperparameters": {"lora": {"start_from": "jobs/of-another/run/adapter"}}}, "hyperparameters.lora.start_from", "unknown_parameter"),
        ({"method": {"type": "magic"}}, "method.type", "invalid_type"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}}, "method.dpo.hyperparameters.beta", "invalid_value"),
        ({"integrations": [{"type": "wandb"}]}, "integrations[0].wandb", "missing_required_parameter"),
    ],
)  # fmt: skip
def test_every_fault_is_named(server: Server, change, param, code):
    body = {"model": MODEL, "training_file": server.upload().id} | change
    answer = server.request("POST", "/fine_tuning/jobs", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error


def test_a_file_of_another_purpose_is_refused(server: Server):
    other = server.client.files.create(file=("a.jsonl", chat_rows()), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="purpose 'batch'"):
        server.client.fine_tuning.jobs.create(model=MODEL, training_file=other.id)


def test_a_lost_answer_leads_to_one_job(server: Server):
    body = {"model": MODEL, "training_file": server.upload().id, "suffix": "once"}

    def create(headers, **more):
        answer = server.request("POST", "/fine_tuning/jobs", json=body | more, headers=headers)
        return answer.json().get("id"), answer

    first, _ = create({"x-stainless-retry-count": "0"})
    assert create({"x-stainless-retry-count": "1"})[0] == first
    assert create({"x-stainless-retry-count": "2"})[0] == first
    assert create({"x-stainless-retry-count": "0"})[0] != first
    keyed, _ = create({"idempotency-key": "k1"})
    assert create({"idempotency-key": "k1"})[0] == keyed
    assert create({"idempotency-key": "k2"})[0] != keyed
    other = create({"idempotency-key": "k1"}, seed=1)[1]
    assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_key_reused")


def test_lists_are_paged_and_filtered_by_metadata(server: Server):
    file = server.upload().id
    made = [
        server.client.fine_tuning.jobs.create(model=MODEL, training_file=file, metadata={"n": str(i % 2), "x y": "ü"}).id for i in range(5)
    ]
    assert [job.id for job in server.client.fine_tuning.jobs.list(limit=2)][:5] == made[::-1]
    assert [job.id for job in server.client.fine_tuning.jobs.list(limit=1, metadata={"n": "1", "x y": "ü"})] == [made[3], made[1]]
    assert server.client.fine_tuning.jobs.list(after="ftjob-nobody").data == []
    for number in made:
        assert server.client.fine_tuning.jobs.cancel(number).status == "cancelled"


@pytest.mark.slow
def test_pause_resume_cancel_while_waiting(server: Server):
    jobs = server.client.fine_tuning.jobs
    for other in jobs.list():  # of tests before this one, which would be trained here
        if other.status in ("validating_files", "queued"):
            jobs.cancel(other.id)
    job = jobs.create(model=MODEL, training_file=server.upload().id)
    assert jobs.pause(job.id).status == "paused"
    assert jobs.pause(job.id).status == "paused"
    server.work()
    assert jobs.retrieve(job.id).status == "paused"
    assert jobs.resume(job.id).status == "queued"
    assert jobs.cancel(job.id).status == "cancelled"
    assert jobs.cancel(job.id).finished_at
    for change in (jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError) as caught:
            change(job.id)
        assert caught.value.code == "invalid_job_status"
    with pytest.raises(openai.NotFoundError):
        jobs.cancel("ftjob-nobody")


@pytest.mark.slow
def test_pause_and_cancel_act_within_a_step(server: Server):
    jobs = server.client.fine_tuning.jobs
    job = jobs.create(model=MODEL, training_file=server.upload(chat_rows(40)).id, hyperparameters={"n_epochs": 50, "batch_size": 2})

    def steps():
        return [e.data["step"] for e in jobs.list_events(job.id, limit=100).data if e.type == "metrics"]

    with server.worker():
        until(lambda: (steps() or [0])[0] >= 30)
        assert jobs.pause(job.id).status in ("running", "paused")
        until(lambda: _lease(server, job.id) is None)
        reached = steps()[0]
        assert jobs.retrieve(job.id).status == "paused"
        short = {"n_epochs": 1, "batch_size": 12}
        after = jobs.create(model=MODEL, training_file=server.upload().id, hyperparameters=short).id
        until(lambda: jobs.retrieve(after).status == "succeeded")
        assert steps()[0] == reached < 1000, "the worker did another job, and not a step of the paused one"
        assert jobs.resume(job.id).status in ("queued", "running")
        until(lambda: steps()[0] > reached)
        assert jobs.cancel(job.id).status == "cancelled"
        until(lambda: _lease(server, job.id) is None)
    done = [e.data["step"] for e in jobs.list_events(job.id, limit=100) if e.type == "metrics"]
    assert done == list(range(done[0], 0, -1))  # each step told once, in order, over the pause
    assert jobs.retrieve(job.id).fine_tuned_model is None


def _lease(server, number):
    from tunesmith.store.jobs import Jobs

    return Jobs(server.store).find(number, None)["lease"]


def test_events_stream(server: Server, finished):
    text = server.request("GET", f"/fine_tuning/jobs/{finished.id}/events?stream=true").text
    lines = text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    streamed = [json.loads(line.removeprefix("data: "))["id"] for line in lines[:-1]]
    assert streamed == [event.id for event in server.client.fine_tuning.jobs.list_events(finished.id)][::-1]


def test_permissions(server: Server, finished):
    require_spec()
    checkpoint = server.client.fine_tuning.jobs.checkpoints.list(finished.id).data[0].fine_tuned_model_checkpoint
    permissions = server.client.fine_tuning.checkpoints.permissions
    made = permissions.create(checkpoint, project_ids=["a", "b", "c"])
    assert [one.project_id for one in made] == ["a", "b", "c"]
    assert [one.project_id for one in permissions.create(checkpoint, project_ids=["b"])] == ["b"]
    assert [one.project_id for one in permissions.list(checkpoint, limit=2)] == ["c", "b", "a"]
    assert [one.project_id for one in permissions.list(checkpoint, project_id="a", order="ascending")] == ["a"]
    path = f"/fine_tuning/checkpoints/{checkpoint}/permissions"
    assert_valid("ListFineTuningCheckpointPermissionResponse", server.request("GET", path).json())
    assert permissions.delete(made.data[0].id, fine_tuned_model_checkpoint=checkpoint).deleted
    with pytest.raises(openai.NotFoundError):
        permissions.delete(made.data[0].id, fine_tuned_model_checkpoint=checkpoint)
    with pytest.raises(openai.NotFoundError):
        permissions.list("ft:nobody")


@pytest.mark.slow
def test_a_deleted_model_answers_no_more(server: Server):
    job = server.client.fine_tuning.jobs.create(
        model=MODEL, training_file=server.upload().id, hyperparameters={"n_epochs": 1, "batch_size": 12}
    )
    server.work()
    name = server.client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert server.client.models.delete(name).deleted
    for gone in (server.client.models.retrieve, server.client.models.delete):
        with pytest.raises(openai.NotFoundError):
            gone(name)
    with pytest.raises(openai.NotFoundError):
        server.client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.PermissionDeniedError):
        server.client.models.delete("echo")
