"""A running server over a store, a tiny base under one of OpenAI's names, and a worker in a thread: the parts of the API tests."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

import httpx

import tiny
from tunesmith.models.echo import EchoModel
from tunesmith.store.store import Store

MODEL = "gpt-4o-mini-2024-07-18"
TLS = httpx.create_ssl_context()  # made once: it costs more than many requests


def chat_rows(n=12, answer="yes", first=0):
    """A supervised file of `n` different rows, as bytes."""
    rows = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"{answer} {i}"}]}
        for i in range(first, first + n)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def preference_rows(n=12):
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"say {i}"}]},
            "preferred_output": [{"role": "assistant", "content": f"yes {i}"}],
            "non_preferred_output": [{"role": "assistant", "content": f"no {i}"}],
        }
        for i in range(n)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def reward_rows(n=12, first=0):
    """A reinforcement file of `n` prompts with the answer that a grader compares with."""
    rows = [{"messages": [{"role": "user", "content": f"say {i}"}], "answer": f"the bank of York {i}"} for i in range(first, first + n)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Server:
    """A running server; `client` is the real SDK without retries."""

    def __init__(self, url: str, store: Store, base: Path):
        import openai

        self.url, self.store, self.base = url, store, base
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)

    def request(self, method, path, **more):
        return httpx.request(method, self.url + path, timeout=600, verify=TLS, **more)

    def upload(self, data=None, **more):
        return self.client.files.create(file=("rows.jsonl", data or chat_rows()), purpose="fine-tune", **more)

    def work(self):
        """Work on every job that waits, here and now."""
        from tunesmith.flow.jobs.worker import Worker

        worker = Worker(self.store, isolated=False, lease_s=30)
        while worker.once():
            pass

    @contextlib.contextmanager
    def worker(self, **more):
        """A worker in a thread for as long as the block lasts."""
        from tunesmith.flow.jobs.worker import Worker

        worker = Worker(self.store, isolated=False, poll_s=0.02, **more)
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        try:
            yield worker
        finally:
            worker.stopping.set()
            thread.join()


@contextlib.contextmanager
def running_server(folder: Path, base: Path | None = None, store: Store | None = None, **config):
    from tunesmith.api.app import ServeConfig, create_app, running

    base = base or tiny.model(folder / "base")
    store = store or Store.open(folder / "store")
    settings = ServeConfig(default_max_tokens=8, names={MODEL: str(base)}, **config)
    with running(create_app({"echo": EchoModel()}, config=settings, store=store)) as url:
        yield Server(url, store, base)
