"""Upload → create → poll → events → checkpoints → result → chat → delete, by whatever SDK runs this: python sdk_scenario.py URL MODEL FILE."""

import asyncio
import sys
import time

import openai

url, model, path = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key="none")
with open(path, "rb") as rows:
    file = client.files.create(file=rows, purpose="fine-tune")
parameters = {"n_epochs": 2, "batch_size": 4}
job = client.fine_tuning.jobs.create(model=model, training_file=file.id, hyperparameters=parameters)
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(0.1)
    job = client.fine_tuning.jobs.retrieve(job.id)
assert job.status == "succeeded", job.error
events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
assert len({event.id for event in events}) == len(events) > 6
checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
assert len(checkpoints) == 2
assert client.files.content(job.result_files[0]).text.startswith("step,train_loss")
asked = [{"role": "user", "content": "say 3"}]
assert client.chat.completions.create(model=job.fine_tuned_model, messages=asked, max_tokens=3).usage.completion_tokens > 0


async def again():
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as other:
        found = [one.id async for one in other.fine_tuning.jobs.list(limit=1)]
        assert found == [job.id]
        stream = await other.chat.completions.create(model=job.fine_tuned_model, messages=asked, max_tokens=3, stream=True)
        assert [chunk async for chunk in stream][-1].choices[0].finish_reason


asyncio.run(again())
refused = None
try:
    client.fine_tuning.jobs.create(model="gpt-9", training_file=file.id)
except openai.BadRequestError as error:
    refused = error.code
assert refused == "model_not_available"
assert client.models.delete(job.fine_tuned_model).deleted
assert client.files.delete(file.id).deleted
print(openai.__version__)
