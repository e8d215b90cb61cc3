"""Server and worker are killed with -9 at random moments under fine-tuning jobs and chat traffic; then everything that was acknowledged is
looked for, and the jobs' results are compared with those of an undisturbed run.

    python -m benchmarks.kills --kills 100 --jobs 4
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
HEADLINES: tuple[str, ...] = ()
LEASE_S, MODEL = 1.5, "gpt-4o-mini-2024-07-18"


def serve(folder: Path, port: int) -> None:
    """The server's own process."""
    from tunesmith.api.app import ServeConfig, create_app
    from tunesmith.api.app import serve as answer
    from tunesmith.models.echo import EchoModel
    from tunesmith.store.store import Store

    config = ServeConfig(port=port, names={MODEL: str(folder / "base")})
    answer(create_app({"echo": EchoModel()}, config=config, store=Store.open(folder / "store")), config)


def work(words: list[str]) -> None:
    """A worker's own process."""
    from tunesmith.flow.jobs.worker import main as worker

    worker(words)


class Run:
    """One store with its server, its workers and what clients were told; a death ends one that is not `disturbed`."""

    def __init__(self, folder: Path, base: Path, *, disturbed: bool) -> None:
        import httpx

        folder.mkdir(parents=True)
        (folder / "base").symlink_to(base)
        self.client = httpx.Client(timeout=20)  # one each thread: making one costs more than many requests
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.processes: dict[str, Any] = {}
        self.chats: list[str] = []
        self.killed: list[str] = []
        self.stop = threading.Event()
        self.disturbed = disturbed

    def start(self, name: str) -> None:
        """Start the server or a worker (again), as forks of one process that has imported what is heavy."""
        from forked import start

        words = ["--store", str(self.folder / "store"), "--lease", str(LEASE_S), "--threads", "1"]
        self.processes[name] = start(serve, self.folder, self.port) if name == "server" else start(work, words)

    def check_alive(self) -> None:
        """Raises RuntimeError with what it said last when a process that nobody was to kill has ended."""
        for name, process in self.processes.items():
            if not self.disturbed and not process.alive():
                raise RuntimeError(f"the {name} has ended: {process.err[-2000:]}")

    def call(self, method: str, path: str, **more: Any) -> Any:
        """A request that is sent again until it is answered; the same Idempotency-Key each time."""
        import httpx

        while True:
            try:
                answer = self.client.request(method, self.url + path, **more)
                if answer.status_code < 500:
                    answer.raise_for_status()
                    return answer.json()
            except httpx.TransportError:
                self.check_alive()
            time.sleep(0.1)

    def chat(self) -> None:
        """Ask all the time, and remember the ids of what was answered whole."""
        import httpx

        body = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
        client = httpx.Client(timeout=20)
        while not self.stop.is_set():
            try:
                answer = client.post(f"{self.url}/chat/completions", json=body)
                self.chats.append(answer.json()["id"])
            except (httpx.TransportError, KeyError, ValueError):
                time.sleep(0.05)
            time.sleep(0.05)

    def end(self) -> None:
        """Stop everything."""
        self.stop.set()
        for process in self.processes.values():
            process.kill(signal.SIGTERM)


def create(run: Run, jobs: int, epochs: int, wave: int = 0) -> tuple[list[str], list[str]]:
    """(file ids, job ids) as acknowledged; each wave makes the same jobs once more."""
    from api_parts import chat_rows

    files, made = [], []
    for i in range(jobs):
        data = {"file": ("a.jsonl", chat_rows(24, first=100 * i))}
        files.append(run.call("POST", "/files", files=data, data={"purpose": "fine-tune"})["id"])
        body = {
            "model": MODEL,
            "training_file": files[-1],
            "seed": i,
            "hyperparameters": {"n_epochs": epochs, "batch_size": 2, "lora_r": 4},
        }
        made.append(run.call("POST", "/fine_tuning/jobs", json=body, headers={"idempotency-key": f"job-{wave}-{i}"})["id"])
    return files, made


def wait(run: Run, made: list[str]) -> None:
    """Until every job has ended; not by a clock, but as long as they get on."""
    from waiting import until

    def ended() -> bool:
        run.check_alive()
        return all(run.call("GET", f"/fine_tuning/jobs/{number}")["status"] in ("succeeded", "failed") for number in made)

    def newest() -> list[Any]:
        return [run.call("GET", f"/fine_tuning/jobs/{number}/events", params={"limit": 1})["data"] for number in made]

    until(ended, progress=newest)


def results(folder: Path, made: list[str]) -> list[Any]:
    """What each job came to: result files byte by byte, steps as told, checkpoints."""
    from tunesmith.store.files import Files
    from tunesmith.store.jobs import Jobs
    from tunesmith.store.store import Store

    store = Store.open(folder / "store")
    found = []
    for number in made:
        job = Jobs(store).find(number, None)
        events = Jobs(store).events(number, limit=1000)[0]
        steps = sorted((e["message"], json.dumps(e["data"])) for e in events if e["type"] == "metrics")
        files = {Files(store).find(one, "default")["filename"]: Files(store).open(one).read() for one in job["result_files"]}
        files.pop("adapter_config.json", None)  # names the base's folder
        kept = [(row["step"], json.dumps(row["metrics"])) for row in Jobs(store).checkpoints(number)[0]]
        found.append((job["status"], files, steps, kept))
    store.close()
    return found


def watch(run: Run, made: list[str], seen: set[str]) -> None:
    """Read the jobs' events all the time, and remember the ids of what was told."""
    import httpx

    client = httpx.Client(timeout=20)
    while not run.stop.is_set():
        for number in list(made):
            try:
                answer = client.get(f"{run.url}/fine_tuning/jobs/{number}/events", params={"limit": 100})
                seen.update(event["id"] for event in answer.json()["data"])
            except (httpx.TransportError, KeyError, ValueError):
                pass
            run.stop.wait(0.1)
        run.stop.wait(0.1)


def kill(run: Run, asked: argparse.Namespace) -> None:
    """Kill the server or a worker, and start it again; as often as asked, or until the time is over."""
    rng, limit = random.Random(asked.seed), time.monotonic() + asked.seconds
    while len(run.killed) < asked.kills and time.monotonic() < limit:
        time.sleep(rng.uniform(0.2, asked.pause))
        name = rng.choice(list(run.processes))
        run.processes[name].kill()
        run.killed.append(name)
        run.start(name)


def undisturbed(folder: Path, base: Path, jobs: int, epochs: int) -> list[Any]:
    """What the jobs come to when nobody is killed."""
    run = Run(folder, base, disturbed=False)
    for name in ("server", "worker"):
        run.start(name)
    wait(run, made := create(run, jobs, epochs)[1])
    run.end()
    return results(folder, made)


def measure(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Both runs and what was lost. Jobs are made anew, the same ones, for as long as somebody is killed."""
    import tiny

    base = tiny.model(folder / "base")
    expected = undisturbed(folder / "quiet", base, asked.jobs, asked.epochs)
    run, started = Run(folder / "killed", base, disturbed=True), time.monotonic()
    for name in ("server", *(f"worker-{i}" for i in range(asked.jobs))):
        run.start(name)
    files, made, events = list[str](), list[str](), set[str]()
    killer = threading.Thread(target=kill, args=(run, asked))
    threads = [threading.Thread(target=run.chat), threading.Thread(target=run.chat)]
    threads += [threading.Thread(target=watch, args=(run, made, events))]
    for thread in (killer, *threads):
        thread.start()
    while killer.is_alive() or not made:
        for found, new in zip((files, made), create(run, asked.jobs, asked.epochs, wave=len(made) // asked.jobs), strict=True):
            found += new
        wait(run, made)
    killer.join()
    run.end()
    for thread in threads:
        thread.join()
    kept, found = kept_rows(folder / "killed"), results(folder / "killed", made)
    return {
        "kills": len(run.killed),
        "kills_of_the_server": run.killed.count("server"),
        "jobs": len(made),
        "acknowledged_log_rows": len(run.chats),
        "acknowledged_events": len(events),
        "seconds": round(time.monotonic() - started, 1),
        "lost_log_rows": len(set(run.chats) - kept["interactions"]),
        "lost_events": len(events - kept["job_events"]),
        "lost_files": len(set(files) - kept["files"]),
        "lost_jobs": len(made) - len(set(made) & kept["jobs"]),
        "different_results": [parts for i, one in enumerate(found) if (parts := different(expected[i % asked.jobs], one))],
    }


def different(expected: Any, found: Any) -> list[str]:
    """What of a job's results is not as it would have been: the names of files and parts."""
    files = {name for name in expected[1].keys() | found[1].keys() if expected[1].get(name) != found[1].get(name)}
    parts = zip(("status", "steps", "checkpoints"), (0, 2, 3), strict=True)
    return sorted(files) + [name for name, i in parts if expected[i] != found[i]]


def kept_rows(folder: Path) -> dict[str, set[str]]:
    """The ids in the store, by table; a file counts when its bytes are there too."""
    from sqlalchemy import select

    from tunesmith.store import tables
    from tunesmith.store.store import Store

    store, found = Store.open(folder / "store"), {}
    with store.engine.connect() as connection:
        for table in (tables.interactions, tables.job_events, tables.files, tables.jobs):
            found[table.name] = set(connection.execute(select(table.c.id)).scalars())
    found["files"] &= {path.name for path in (store.folder / "blobs" / "files").iterdir()}
    store.close()
    return found


def options(words: list[str] | None = None) -> argparse.Namespace:
    """What is asked on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop killing after so long")
    parser.add_argument("--pause", type=float, default=5.0, help="longest time between two kills, s")
    parser.add_argument("--jobs", type=int, default=4, help="jobs, and workers, at once")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of a job, each with its checkpoint")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None)
    return parser.parse_args(words)


def main() -> int:
    """Run it, print what was lost; 1 when anything was."""
    asked = options()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked.folder or Path(folder), asked)
    print(json.dumps(found))
    lost = {name: count for name, count in found.items() if name.startswith(("lost_", "different_")) and count}
    print(
        f"{found['kills']} kills in {found['seconds']} s, {found['jobs']} jobs: {lost or 'nothing lost, every job ended as it would have'}"
    )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
