"""A server that speaks what vLLM documents of its API, as far as we use it: health, chat completions of the base and of loaded adapters, and
`/v1/load_lora_adapter`, `/v1/unload_lora_adapter`. Run with vLLM's own words; plain Python, so that it starts at once."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = sys.argv[1:]
BASE, PORT = WORDS[WORDS.index("--served-model-name") + 1], int(WORDS[WORDS.index("--port") + 1])
ADAPTERS: dict[str, str] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(200 if self.path == "/health" else 404, {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/chat/completions":
            self.chat(body["model"])
        else:
            self.change(body)

    def change(self, body):
        name = body["lora_name"]
        if "--enable-lora" not in WORDS or os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") != "1":
            self.reply(404, {"detail": "Not Found"})
        elif self.path == "/v1/load_lora_adapter":
            taken = name in ADAPTERS or not os.path.isfile(os.path.join(body["lora_path"], "adapter_config.json"))
            ADAPTERS[name] = body["lora_path"]
            self.reply(
                400 if taken else 200, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}} if taken else {}
            )
        else:
            there = ADAPTERS.pop(name, None) is not None
            self.reply(200 if there else 404, {} if there else {"error": {"message": f"The lora adapter '{name}' cannot be found."}})

    def chat(self, name):
        if name != BASE and name not in ADAPTERS:
            self.reply(404, {"error": {"message": f"The model `{name}` does not exist.", "type": "NotFoundError", "code": 404}})
            return
        said = {"role": "assistant", "content": f"{name} of {os.getpid()}"}
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        self.reply(200, {"id": "x", "object": "chat.completion", "created": 1, "model": name, "choices": [choice], "usage": usage})

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


print("stand-in serves", *WORDS, flush=True)
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
