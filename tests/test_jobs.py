"""The queue: leases, priorities, limits, poisoned jobs, and processes that are killed at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from benchmarks import kills

import tiny
from api_parts import MODEL, chat_rows, reward_rows, running_server
from forked import start
from tunesmith.core.epochs import default_epochs
from tunesmith.flow.jobs.request import job_request
from tunesmith.flow.jobs.worker import Worker
from tunesmith.flow.jobs.worker import main as worker_main
from tunesmith.store.files import Files
from tunesmith.store.jobs import MAX_TRIES, Jobs, Stopped
from tunesmith.store.paging import Refused
from tunesmith.store.store import Store
from waiting import until

ROOT = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "store")
    yield store
    store.close()


def add(store, base, *, project="default", rows=None, **more):
    import io

    file = Files(store).put(io.BytesIO(rows or chat_rows()), project=project, filename="a.jsonl", purpose="fine-tune")
    body = {"model": "m", "training_file": file["id"], "hyperparameters": {"n_epochs": 2, "batch_size": 4}, "seed": 1} | more
    return Jobs(store).create(job_request(json.dumps(body).encode()), base=str(base), project=project)["id"]


def state(store, number):
    return Jobs(store).find(number, None)["status"]


def test_the_highest_priority_goes_first_then_the_oldest(store, base):
    first, second, urgent = add(store, base), add(store, base), add(store, base, priority=5)
    order = [Jobs(store).lease(seconds=60).job for _ in range(3)]
    assert order == [urgent, first, second]
    assert Jobs(store).lease(seconds=60) is None


def test_a_project_has_its_limit(store, base):
    mine = [add(store, base) for _ in range(3)]
    other = add(store, base, project="other")
    leases = [Jobs(store).lease(seconds=60, per_project=1) for _ in range(3)]
    assert [lease and lease.job for lease in leases] == [mine[0], other, None]
    leases[0].release()
    assert Jobs(store).lease(seconds=60, per_project=1).job == mine[0]


def test_who_lost_the_lease_can_change_nothing(store, base):
    number = add(store, base)
    old = Jobs(store).lease(seconds=0.05)
    time.sleep(0.1)
    new = Jobs(store).lease(seconds=60)
    for act in (old.beat, old.read, old.begin, lambda: old.fail("x", "y"), lambda: old.write(step=7)):
        with pytest.raises(Stopped):
            act()
    old.release()
    assert new.read()["id"] == number
    new.begin()
    assert state(store, number) == "running"


def test_a_worker_learns_of_a_pause_a_resume_and_a_cancel(store, base):
    number = add(store, base)
    lease = Jobs(store).lease(seconds=60)
    lease.begin()
    assert not lease.pausing()
    Jobs(store).pause(number, None)
    assert lease.pausing()
    lease.write([{"key": "step:7", "message": "x"}], pausing=True, step=7)
    with pytest.raises(Stopped):
        lease.write(step=8)
    Jobs(store).resume(number, None)  # before the worker has let go: it runs on
    assert not lease.pausing()
    assert (state(store, number), Jobs(store).find(number, None)["step"]) == ("running", 7)
    assert not lease.cancelled()
    Jobs(store).cancel(number, None)
    assert lease.cancelled()
    with pytest.raises(Stopped):
        lease.pausing()


@pytest.mark.slow
def test_one_worker_gets_a_job_however_many_ask(store, base):
    numbers = {add(store, base) for _ in range(5)}
    got, errors = [], []

    def take():
        try:
            while (lease := Jobs(store).lease(seconds=60)) is not None:
                got.append(lease.job)
        except Exception as error:  # noqa: BLE001 - a thread's failure must reach the test
            errors.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (errors, sorted(got)) == ([], sorted(numbers))


@pytest.mark.parametrize(("rows", "expected"), [(10, 10), (12, 8), (33, 3), (34, 3), (4, 25), (8333, 3), (8334, 2), (30_000, 1)])
def test_epochs_are_openais(rows, expected):
    assert default_epochs(rows) == expected


@pytest.mark.slow
def test_a_base_that_is_gone_fails_the_job_alone(store, base, tmp_path):
    bad, good = add(store, tmp_path / "nowhere"), add(store, base)
    worker = Worker(store, isolated=False)
    while worker.once():
        pass
    job = Jobs(store).find(bad, None)
    assert (job["status"], job["error"]["code"], job["error"]["param"]) == ("failed", "model_not_available", "model")
    assert state(store, good) == "succeeded"


@pytest.mark.slow
def test_a_deleted_file_does_not_break_a_job_under_way(store, base):
    number = add(store, base)
    lease = Jobs(store).lease(seconds=60)
    from tunesmith.flow.jobs.run import read_rows

    read_rows(store, lease.read(), "training_file")
    lease.release()
    Files(store).delete(Jobs(store).find(number, None)["training_file"], "default")
    Worker(store, isolated=False).once()
    assert state(store, number) == "succeeded"
    assert not list((store.folder / "jobs" / number).glob("*.jsonl"))


@contextlib.contextmanager
def at_work(store, *, lease_s=5):
    """A worker process that forks a process for each job."""
    process = start(worker_main, ["--store", str(store.folder), "--lease", str(lease_s), "--threads", "1"])
    try:
        yield process
    finally:
        process.kill(signal.SIGTERM)


def rewarded(source_or_metric="fuzzy_match", **hyperparameters):
    grader = {"name": "g", "type": "text_similarity", "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}
    grader |= {"evaluation_metric": source_or_metric}
    if "def grade" in source_or_metric:
        grader = {"name": "g", "type": "python", "source": source_or_metric}
    settings = {"max_tokens": 6, "learning_rate_multiplier": 100, "compute_multiplier": 0.25} | hyperparameters
    return {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": settings}}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["supervised", "reinforcement"])
def test_a_paused_job_keeps_a_checkpoint_and_ends_as_it_would_have(tmp_path, base, kind):
    settings, steps_each = ({"n_epochs": 5, "batch_size": 2}, 20) if kind == "supervised" else ({"n_epochs": 4, "batch_size": 2}, 6)
    rows = (chat_rows if kind == "supervised" else reward_rows)(2 * steps_each)
    method = {"type": kind, kind: {"hyperparameters": settings}} if kind == "supervised" else rewarded(**settings)
    with running_server(tmp_path, base) as server, at_work(server.store) as worker:
        jobs, file = server.client.fine_tuning.jobs, server.upload(rows).id
        whole, paused = (jobs.create(model=MODEL, training_file=file, method=method, seed=5).id for _ in range(2))

        def steps():
            return [event.data["step"] for event in jobs.list_events(paused, limit=100).data if event.type == "metrics"]

        def step():
            return [Jobs(server.store).find(number, None)["step"] for number in (whole, paused)]

        until(lambda: step()[1] >= 3, alive=worker.alive, progress=step)
        jobs.pause(paused)
        until(lambda: jobs.retrieve(paused).status == "paused", alive=worker.alive, progress=step)
        reached = steps()[0]
        assert reached < settings["n_epochs"] * steps_each
        kept = jobs.checkpoints.list(paused).data[0]
        assert kept.step_number == reached
        assert kept.metrics.train_loss is not None
        asked = [{"role": "user", "content": "say 3"}]
        assert server.client.chat.completions.create(model=kept.fine_tuned_model_checkpoint, messages=asked, max_tokens=2).usage
        assert (server.store.folder / "jobs" / paused / "run" / "checkpoints" / f"checkpoint-{reached}").is_dir()
        jobs.resume(paused)
        until(lambda: {jobs.retrieve(one).status for one in (whole, paused)} == {"succeeded"}, alive=worker.alive, progress=step)
        said = [event.message for event in jobs.list_events(paused)]
        assert [message for message in said if "paused" in message or "resumed" in message] == [
            "Fine-tuning job resumed",
            "Fine-tuning job paused",
        ]
        told = [event.data["step"] for event in jobs.list_events(paused) if event.type == "metrics"]
        assert told == list(range(settings["n_epochs"] * steps_each, 0, -1))
        first, second = (adapter(server, jobs.retrieve(one)) for one in (whole, paused))
        assert first == second
        assert server.client.chat.completions.create(model=kept.fine_tuned_model_checkpoint, messages=asked, max_tokens=2).usage


def adapter(server, job):
    names = {server.client.files.retrieve(number).filename: number for number in job.result_files}
    return server.client.files.content(names["adapter_model.safetensors"]).read()


@pytest.mark.slow
def test_a_cancelled_job_does_not_end_its_step(tmp_path, base):
    """A Python grader that takes its time, in the sandbox; the step would last for minutes."""
    slow = "import time\ndef grade(sample, item):\n    time.sleep(8)\n    return len(sample['output_text']) / 100"
    with running_server(tmp_path, base, python_graders=True) as server, at_work(server.store) as worker:
        jobs = server.client.fine_tuning.jobs
        job = jobs.create(model=MODEL, training_file=server.upload(reward_rows()).id, method=rewarded(slow, n_epochs=1, batch_size=12)).id
        until(lambda: len(psutil.Process(worker.pid).children(recursive=True)) > 1, alive=worker.alive)  # the job and its grader
        assert jobs.cancel(job).status == "cancelled"
        until(lambda: Jobs(server.store).find(job, None)["lease"] is None, alive=worker.alive)
        assert not [event for event in jobs.list_events(job) if event.type == "metrics"]


@pytest.mark.slow
def test_a_poisoned_job_fails_alone_with_its_log(store, base, tmp_path):
    poison = tiny.model(tmp_path / "poison")
    config = json.loads((poison / "config.json").read_text())
    (poison / "config.json").write_text(json.dumps(config | {"num_hidden_layers": "two"}))  # nobody expects that: the process dies of it
    bad, good = add(store, poison), add(store, base)
    with at_work(store, lease_s=3) as worker:
        ended = lambda: (state(store, bad), state(store, good)) == ("failed", "succeeded")  # noqa: E731
        until(ended, alive=worker.alive, progress=lambda: Jobs(store).find(bad, None)["tries"])
    job = Jobs(store).find(bad, None)
    assert (job["tries"], job["error"]["code"]) == (MAX_TRIES, "server_error")
    assert "Traceback" in (store.folder / "jobs" / bad / "log.txt").read_text()
    said = [event["message"] for event in Jobs(store).events(bad, limit=50)[0]]
    assert sum("died, trying again" in message for message in said) == MAX_TRIES - 1


@pytest.mark.slow
def test_kills_change_nothing(tmp_path, base):
    """Server and worker die again and again under jobs and chats; the script benchmarks/kills.py does the same a hundred times."""
    found = kills.measure(tmp_path, kills.options(["--kills", "6", "--jobs", "2", "--epochs", "3", "--pause", "2.5"]))
    assert (found["kills"], found["lost_files"], found["lost_jobs"], found["lost_log_rows"], found["lost_events"]) == (6, 0, 0, 0, 0)
    assert found["different_results"] == []
    assert found["acknowledged_log_rows"] > 0


def parent_of_a_worker(folder):
    parent = os.getpid()
    worker = os.fork()
    if not worker:
        os._exit(worker_main(["--store", folder, "--lease", "2", "--parent", str(parent)]))
    print(worker, flush=True)
    signal.pause()


@pytest.mark.slow
def test_a_worker_dies_with_its_parent(store, base):
    number = add(store, base, rows=chat_rows(40), hyperparameters={"n_epochs": 50, "batch_size": 1})
    parent = start(parent_of_a_worker, str(store.folder))
    until(lambda: Jobs(store).find(number, None)["step"] >= 3, alive=parent.alive)
    worker = int(parent.out)
    family = [worker, *(child.pid for child in psutil.Process(worker).children())]
    assert len(family) == 2
    parent.kill()
    until(lambda: not any(map(alive, family)))
    Jobs(store).cancel(number, None)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_random_orders_of_requests_never_break_the_life_of_a_job(store, base):
    """Whatever clients and workers do, a job moves along the documented arrows only."""
    arrows = {
        "validating_files": {"queued", "paused", "cancelled", "failed"},
        "queued": {"running", "paused", "cancelled"},
        "running": {"paused", "cancelled", "failed", "queued"},
        "paused": {"queued", "cancelled"},
    }
    rng = random.Random(5)
    for _ in range(15):
        number, lease = add(store, base), None
        before = state(store, number)
        for _ in range(12):
            act = rng.choice(["pause", "resume", "cancel", "lease", "begin", "validated", "fail", "release"])
            try:
                if act in ("pause", "resume", "cancel"):
                    getattr(Jobs(store), act)(number, None)
                elif act == "lease":
                    lease = Jobs(store).lease(seconds=60) or lease
                elif lease is not None and act == "validated" and before == "validating_files":
                    lease.write([], status="queued")
                elif lease is not None and act == "begin" and before in ("queued", "running"):
                    lease.begin()
                elif lease is not None and act == "fail" and before != "queued":
                    lease.fail("x", "y")
                elif lease is not None and act == "release":
                    lease.release()
            except (Stopped, Refused):
                pass  # the act was not allowed, which is one of the right answers
            after = state(store, number)
            assert after == before or after in arrows.get(before, set()), (act, before, after)
            before = after
        if lease is not None:
            lease.release()
        if before in arrows:
            Jobs(store).cancel(number, None)
