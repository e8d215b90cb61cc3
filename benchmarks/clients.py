"""Clients of OpenAI's API against the real server with a small model, each in an environment of its own under `.peers/`.

    python -m benchmarks.clients [NAME …]          # or: make clients ARGS='NAME …'

Each is asked to chat, to stream, to call tools in a loop of three turns and to give a structured answer (its script is in
`benchmarks/clients/`); lm-evaluation-harness gives log-likelihoods, which must be those that transformers computes from the weights. One
that cannot be installed is skipped with the reason. Prints a table, and `ratio clients_wrong N`: checks that failed.

Two models are served: a real one of 135 M parameters, which is told which tool it must call (its calls are held to their schemas), and
`planner`, a rule that calls the tools one after the other and then answers, for clients that loop by themselves.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, machine, peer_python, table

HEADLINES: tuple[str, ...] = ()
SCRIPTS = Path(__file__).resolve().parent / "clients"
MODEL, PLANNER = "small", "planner"
PAIRS = [
    ["The capital of Belgium is", " Brussels"],
    ["The capital of Belgium is", " a town in the north of the country, where it rains."],
    ["Question: 2 + 2 = ?\nAnswer:", " 4"],
    ["naïve café – “quotes”, 日本語 and 🙂:", " 日本語 🙂 é"],
    ["", "Once upon a time"],
]


@dataclass(frozen=True)
class Client:
    """One client: its packages with their versions, and the script that drives it."""

    name: str
    packages: tuple[str, ...]
    script: str

    @property
    def node(self) -> bool:
        """Whether it is JavaScript."""
        return self.script.endswith(".mjs")


CLIENTS = (
    Client("openai-1.109.1", ("openai==1.109.1",), "openai_python.py"),
    Client("openai-2.54.0", ("openai==2.54.0",), "openai_python.py"),
    Client("openai-3.57.0", ("openai==3.57.0",), "openai_python.py"),
    Client("openai-node-7.59.0", ("openai@7.59.0", "zod@4.6.7"), "openai_node.mjs"),
    Client("langchain-openai-1.7.4", ("langchain-openai==1.7.4",), "langchain_openai_client.py"),
    Client("litellm-1.110.2", ("litellm==1.110.2",), "litellm_client.py"),
    Client("instructor-1.17.0", ("instructor==1.17.0",), "instructor_client.py"),
    Client("pydantic-ai-2.68.0", ("pydantic-ai-slim[openai]==2.68.0",), "pydantic_ai_client.py"),
    Client("openai-agents-0.24.0", ("openai-agents==0.24.0",), "openai_agents_client.py"),
    Client("ai-sdk-7.0.173", ("ai@7.0.173", "@ai-sdk/openai-compatible@3.0.92", "zod@4.6.7"), "ai_sdk.mjs"),
    Client("lm-eval-0.4.13", ("lm-eval[api]==0.4.13", "transformers==5.23.0"), "lm_eval_client.py"),
)


class Planner:
    """A rule that decides as an assistant would: each tool once, in their order, then words."""

    name, digest = PLANNER, "planner-1"

    def answer(self, prompts: Sequence[Any], sampling: Any, on_answer: Any = None) -> list[Any]:
        """See `Model.answer`."""
        answers = [self._one(prompt) for prompt in prompts]
        for i, answer in enumerate(answers):
            if on_answer is not None:
                on_answer(i, answer)
        return answers

    def _one(self, prompt: Any) -> Any:
        from tunesmith.core.types import Answer, Function, ToolCall

        last = max((i for i, turn in enumerate(prompt.messages) if turn.role == "user"), default=0)
        done = sum(turn.role == "tool" for turn in prompt.messages[last:])
        counts = {"prompt_tokens": len(prompt.messages), "completion_tokens": 3, "first_token_s": 0.0, "total_s": 0.0}
        if done >= len(prompt.tools):
            return Answer(text="It is 7 degrees, and the ferry leaves at three.", **counts)
        function = prompt.tools[done]["function"]
        schema = function.get("parameters") or {}
        call = ToolCall(id="call_0", function=Function(name=function["name"], arguments=json.dumps(least(schema, schema))))
        return Answer(text="", finish_reason="tool_calls", tool_calls=(call,), **counts)


def least(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """A value that a schema allows."""
    if "$ref" in schema:
        part = root
        for key in schema["$ref"].removeprefix("#/").split("/"):
            part = part[key]
        return least(part, root)
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return least(schema[key][0], root)
    if "const" in schema or schema.get("enum"):
        return schema.get("const", (schema.get("enum") or [None])[0])
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: least(part, root) for name, part in schema.get("properties", {}).items()}
    return {"array": [], "string": "x", "boolean": True, "null": None}.get(kind, schema.get("minimum", 1))


@contextmanager
def server() -> Iterator[tuple[str, Path]]:
    """The running server's base URL, and the folder of its model."""
    from tunesmith.api.app import create_app, running
    from tunesmith.deploy.serve_config import ServeConfig
    from tunesmith.models.catalog import Catalog
    from tunesmith.models.local import LocalModel

    folder = Catalog().model("smollm2-135m")
    models = {MODEL: LocalModel(folder, name=MODEL, dtype="float32"), PLANNER: Planner()}
    with running(create_app(models, config=ServeConfig(default_max_tokens=64))) as url:
        yield url, folder


def environment(client: Client) -> list[str]:
    """The words that start its interpreter; made when it is missing. Raises CalledProcessError or OSError where it cannot be."""
    if not client.node:
        os.environ.setdefault("PIP_NO_COMPILE", "1")
        return [peer_python(client.name, client.packages)]
    folder = ROOT / ".peers" / client.name
    ready, wanted = folder / ".ready", "\n".join(client.packages)
    if not ready.is_file() or ready.read_text() != wanted:
        print(f"making the environment of '{client.name}' (once): {', '.join(client.packages)}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        words = ["npm", "install", "--save-exact", "--no-audit", "--no-fund", "--ignore-scripts", *client.packages]
        subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        ready.write_text(wanted)
    for script in SCRIPTS.glob("*.mjs"):  # node looks for packages where a script is
        shutil.copy(script, folder)
    return ["node"]


def driven(client: Client, url: str, folder: Path) -> list[dict[str, Any]]:
    """What each of its checks gave: {"check", "ok", "what"}."""
    words = environment(client)
    if client.script == "lm_eval_client.py":
        return log_likelihoods(words, url, folder)
    script = ROOT / ".peers" / client.name / client.script if client.node else SCRIPTS / client.script
    done = started([*words, str(script), url, MODEL, PLANNER])
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    if done.returncode or not lines:
        lines.append({"check": "script", "ok": False, "what": done.stderr[-800:]})
    return lines


def started(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """One run of a client's script, which finds no other server than ours."""
    quiet = {"OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    quiet |= {"PYTHONPATH": "", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(list(words), env={**os.environ, **quiet}, capture_output=True, text=True, timeout=900)


def log_likelihoods(words: Sequence[str], url: str, folder: Path) -> list[dict[str, Any]]:
    """Those of the harness beside those that transformers computes from the same weights."""
    with tempfile.TemporaryDirectory() as place:
        pairs = Path(place) / "pairs.json"
        pairs.write_text(json.dumps(PAIRS))
        done = started([*words, str(SCRIPTS / "lm_eval_client.py"), url, MODEL, str(folder), str(pairs)])
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"tokenized"')]
    if done.returncode or not lines:
        return [{"check": "log-likelihoods", "ok": False, "what": done.stderr[-800:]}]
    right = computed(folder)
    found = []
    for line in lines:
        wrong = [pair for pair, a, b in zip(PAIRS, line["pairs"], right, strict=True) if abs(a[0] - b[0]) > 2e-3 or a[1] != b[1]]
        name = "log-likelihoods of ids" if line["tokenized"] else "log-likelihoods of texts"
        found.append({"check": name, "ok": not wrong, "what": f"{wrong}: {line['pairs']} for {right}" if wrong else ""})
    return found


def computed(folder: Path) -> list[tuple[float, bool]]:
    """(log-likelihood of the continuation, whether it is the greedy one) of each pair, as the harness cuts them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for context, continuation in PAIRS:
        whole = tokenizer.encode(context + continuation, add_special_tokens=False)
        before = tokenizer.encode(context, add_special_tokens=False) if context else []
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        ids = whole if before else [first, *whole]
        start = len(before) or 1
        with torch.inference_mode():
            log_p = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        told = [(float(log_p[i - 1, ids[i]]), int(log_p[i - 1].argmax()) == ids[i]) for i in range(start, len(ids))]
        found.append((sum(value for value, _ in told), all(greedy for _, greedy in told)))
    return found


def main(names: Sequence[str] = ()) -> int:
    """Run the named clients (all without a name); returns how many checks failed."""
    chosen = [client for client in CLIENTS if not names or any(client.name.startswith(name) for name in names)]
    rows, wrong = [], 0
    with server() as (url, folder):
        for client in chosen:
            try:
                results = driven(client, url, folder)
            except (subprocess.CalledProcessError, OSError) as error:
                rows.append((client.name, "skipped", f"cannot be installed: {str(error)[:200]}"))
                continue
            failed = [result for result in results if not result["ok"]]
            wrong += len(failed)
            rows.append((client.name, f"{len(results) - len(failed)} of {len(results)}", ", ".join(result["check"] for result in results)))
            print(f"  {client.name}: {rows[-1][1]}", flush=True)
            for result in failed:
                print(f"    {result['check']}: {result['what']}", flush=True)
    print(f"\n{table(('client', 'right', 'checks'), rows)}\n\n{machine()}\nratio clients_wrong {wrong}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
