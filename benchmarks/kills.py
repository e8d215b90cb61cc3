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
import subprocess
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
    from tunesmith.core.store import Store
    from tunesmith.models.echo import EchoModel

    config = ServeConfig(port=port, names={MODEL: str(folder / "base")})
    answer(create_app({"echo": EchoModel()}, config=config, store=Store.open(folder / "store")), config)


class Run:
    """One store with its server, its workers and what clients were told."""

    def __init__(self, folder: Path, base: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "base").symlink_to(base)
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.chats: list[str] = []
        self.stop = threading.Event()

    def start(self, name: str) -> None:
        """Start the server or a worker (again)."""
        worker = ["tunesmith.flow.jobs.worker", "--store", str(self.folder / "store"), "--lease", str(LEASE_S), "--threads", "1"]
        command = ["benchmarks.kills", "--serve", str(self.folder), "--port", str(self.port)] if name == "server" else worker
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)

    def call(self, method: str, path: str, **more: Any) -> Any:
        """A request that is sent again until it is answered; the same Idempotency-Key each time."""
        import httpx

        while True:
            try:
                answer = httpx.request(method, self.url + path, timeout=20, **more)
                if answer.status_code < 500:
                    answer.raise_for_status()
                    return answer.json()
            except httpx.TransportError:
                pass
            time.sleep(0.1)

    def chat(self) -> None:
        """Ask all the time, and remember the ids of what was answered whole."""
        import httpx

        body = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
        while not self.stop.is_set():
            try:
                answer = httpx.post(f"{self.url}/chat/completions", json=body, timeout=20)
                self.chats.append(answer.json()["id"])
            except (httpx.TransportError, KeyError, ValueError):
                time.sleep(0.02)
            time.sleep(0.02)

    def end(self) -> None:
        """Stop everything."""
        self.stop.set()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()


def create(run: Run, jobs: int) -> tuple[list[str], list[str]]:
    """(file ids, job ids) as acknowledged."""
    from api_parts import chat_rows

    files, made = [], []
    for i in range(jobs):
        data = {"file": ("a.jsonl", chat_rows(24, first=100 * i))}
        files.append(run.call("POST", "/files", files=data, data={"purpose": "fine-tune"})["id"])
        body = {"model": MODEL, "training_file": files[-1], "seed": i, "hyperparameters": {"n_epochs": 6, "batch_size": 2, "lora_r": 4}}
        made.append(run.call("POST", "/fine_tuning/jobs", json=body, headers={"idempotency-key": f"job-{i}"})["id"])
    return files, made


def wait(run: Run, made: list[str], limit_s: float) -> None:
    """Until every job has ended."""
    limit = time.monotonic() + limit_s
    while any(run.call("GET", f"/fine_tuning/jobs/{number}")["status"] not in ("succeeded", "failed") for number in made):
        if time.monotonic() > limit:
            raise TimeoutError(f"jobs did not end within {limit_s} s")
        time.sleep(0.3)


def results(folder: Path, made: list[str]) -> list[Any]:
    """What each job came to: result files byte by byte, steps as told, checkpoints."""
    from tunesmith.core.store import Store
    from tunesmith.flow.jobs.queue import Jobs
    from tunesmith.flow.server.files import Files

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


def kill(run: Run, kills: int, rng: random.Random) -> None:
    """Kill the server or a worker, and start it again."""
    for _ in range(kills):
        time.sleep(rng.uniform(0.2, 5.0))
        name = rng.choice(list(run.processes))
        run.processes[name].send_signal(signal.SIGKILL)
        run.processes[name].wait()
        run.start(name)


def measure(folder: Path, kills: int, jobs: int, seed: int) -> dict[str, Any]:
    """Both runs and what was lost."""
    from sqlalchemy import select

    import tiny
    from tunesmith.core.store import Store
    from tunesmith.core.tables import interactions

    base = tiny.model(folder / "base")
    quiet = Run(folder / "quiet", base)
    for name in ("server", "worker"):
        quiet.start(name)
    wait(quiet, expected := create(quiet, jobs)[1], 600)
    quiet.end()
    run, started = Run(folder / "killed", base), time.monotonic()
    for name in ("server", "worker-1", "worker-2"):
        run.start(name)
    threads = [threading.Thread(target=run.chat, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    killer = threading.Thread(target=kill, args=(run, kills, random.Random(seed)))
    killer.start()
    files, made = create(run, jobs)
    killer.join()
    wait(run, made, 600)
    run.end()
    for thread in threads:
        thread.join()
    store = Store.open(folder / "killed" / "store")
    with store.engine.connect() as connection:
        logged = set(connection.execute(select(interactions.c.id)).scalars())
    listed = {path.name for path in (store.folder / "blobs" / "files").iterdir()}
    store.close()
    different = sum(a != b for a, b in zip(results(folder / "quiet", expected), results(folder / "killed", made), strict=True))
    return {
        "kills": kills,
        "jobs": jobs,
        "acknowledged_log_rows": len(run.chats),
        "lost_log_rows": len(set(run.chats) - logged),
        "lost_files": len(set(files) - listed),
        "lost_jobs": len(made) - len(set(made)),
        "different_results": different,
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    """Run it and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--serve", type=Path, default=None)
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    if asked.serve is not None:
        return serve(asked.serve, asked.port)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(asked.folder or Path(folder), asked.kills, asked.jobs, asked.seed)))
    return None


if __name__ == "__main__":
    main()
