"""Upload → create → poll → events → checkpoints → result → chat → delete, for each method, by whatever SDK runs this:

    python sdk_scenario.py URL MODEL FOLDER

The folder holds supervised.jsonl, dpo.jsonl and reinforcement.jsonl.
"""

import asyncio
import csv
import io
import sys
import time

import openai

url, model, folder = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key="none")
asked = [{"role": "user", "content": "say 3"}]
parameters = {"n_epochs": 2, "batch_size": 4}
grader = {
    "type": "text_similarity",
    "name": "likeness",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "fuzzy_match",
}
rewarded = {"grader": grader, "hyperparameters": {**parameters, "eval_samples": 2, "max_tokens": 6, "learning_rate_multiplier": 50}}
methods = {
    "supervised": ({"type": "supervised", "supervised": {"hyperparameters": parameters}}, "train_loss"),
    "dpo": ({"type": "dpo", "dpo": {"hyperparameters": {**parameters, "beta": 0.2}}}, "train_loss"),
    "reinforcement": ({"type": "reinforcement", "reinforcement": rewarded}, "train_reward_mean"),
}


def scenario(kind):
    """One job from its file to the deletion of its model; returns what the checks by another client need."""
    method, column = methods[kind]
    with open(f"{folder}/{kind}.jsonl", "rb") as rows:
        file = client.files.create(file=rows, purpose="fine-tune")
    with open(f"{folder}/{kind}-validation.jsonl", "rb") as rows:
        validation = client.files.create(file=rows, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=model, training_file=file.id, validation_file=validation.id, method=method)
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    assert job.method.type == kind
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    assert len({event.id for event in events}) == len(events) > 6
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert len(checkpoints) == 2
    weights = [client.files.retrieve(number) for number in checkpoints[0].result_files]
    assert any(one.filename.endswith("adapter_model.safetensors") for one in weights)
    table = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))
    assert [row["step"] for row in table] == ["1", "2", "3", "4", "5", "6"]
    assert all(float(row[column]) == float(row[column]) for row in table)
    assert float(table[-1]["valid_reward_mean" if kind == "reinforcement" else "valid_loss"]) >= 0
    assert client.chat.completions.create(model=job.fine_tuned_model, messages=asked, max_tokens=3).usage.completion_tokens > 0
    return job, file


async def again(job):
    """The asynchronous client sees the job and streams from its model."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as other:
        found = [one.id async for one in other.fine_tuning.jobs.list(limit=1)]
        assert found[0] == job.id
        stream = await other.chat.completions.create(model=job.fine_tuned_model, messages=asked, max_tokens=3, stream=True)
        assert [chunk async for chunk in stream][-1].choices[0].finish_reason


for kind in methods:
    job, file = scenario(kind)
    asyncio.run(again(job))
    refused = None
    try:
        client.fine_tuning.jobs.create(model="gpt-9", training_file=file.id)
    except openai.BadRequestError as error:
        refused = error.code
    assert refused == "model_not_available"
    assert client.models.delete(job.fine_tuned_model).deleted
    assert client.files.delete(file.id).deleted
print(openai.__version__)
