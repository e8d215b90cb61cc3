"""What clients of every kind send and count on: tool loops, histories as servers gave them, log-probabilities of prompts, forms, limits."""

from __future__ import annotations

import json
import logging
import socket
import threading

import httpx
import pytest

import tiny
from tunesmith.models.echo import EchoModel

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
PAGE = "https://app.example.org"
USER = {"role": "user", "content": "Who signed it?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "7"}


class Broken:
    """A model with a fault of its own."""

    name, digest = "broken", "x"

    def answer(self, prompts, sampling, on_answer=None):
        raise ZeroDivisionError("secret inside")


class Served:
    def __init__(self, url, local):
        self.url, self.local = url, local
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)

    def post(self, path="/chat/completions", **body):
        return httpx.post(self.url + path, json={"model": "tiny", **body}, timeout=60)

    def ask(self, *messages, **more):
        return self.post(messages=list(messages) or [USER], **{"max_tokens": 4, "temperature": 0, **more})


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    from tunesmith.api.app import ServeConfig, create_app, running
    from tunesmith.models.local import LocalModel

    local = LocalModel(tiny.model(tmp_path_factory.mktemp("model"), context=1024), name="tiny@1", dtype="float32")
    encoder = tiny.encoder(tmp_path_factory.mktemp("encoder"))
    config = ServeConfig(encoders={"encoder": str(encoder)}, cors_origins=(PAGE,))
    with running(create_app({"tiny": local, "echo": EchoModel(), "broken": Broken()}, config=config)) as url:
        yield Served(url, local)


@pytest.fixture(scope="module")
def impatient():
    """The URL of a server that waits for nobody."""
    from tunesmith.api.app import ServeConfig, create_app, running

    config = ServeConfig(port=0, headers_s=0.3, body_s=0.3)
    with running(create_app({"echo": EchoModel()}, config=config), config) as url:
        yield url


# histories


@pytest.mark.slow
@pytest.mark.parametrize(
    "messages",
    [
        [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT],
        [USER, {"role": "assistant", "content": "", "tool_calls": [{**CALL, "index": 0, "function": {**CALL["function"], "parsed_arguments": {}}}]}, RESULT],
        [USER, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": {"town": "Ghent"}}}]}, RESULT],
        [USER, {"role": "assistant", "content": None, "function_call": {"name": "w", "arguments": "{}"}}, {"role": "function", "name": "w", "content": "7"}],
        [USER, {"role": "assistant", "content": "Hi", "reasoning_content": "They greet.", "refusal": None, "annotations": [], "audio": None}, USER],
        [USER, {"role": "assistant", "content": "Hi", "function_call": None, "tool_calls": None, "reasoning": None, "logprobs": None, "index": 0}, USER],
        [USER, {"role": "assistant", "content": None, "reasoning_content": "Hm."}, USER],
        [USER, {"role": "assistant", "content": "Hi", "provider_specific_fields": {"a": 1}, "thinking_blocks": [], "images": [], "parsed": None}, USER],
        [{"role": "system", "content": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]}, {**USER, "name": None}],
        [USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "output_text", "text": "Hi", "annotations": []}]}, USER],
        [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {**RESULT, "content": None}],
    ],
)  # fmt: skip
def test_what_a_server_gave_may_come_back(served, messages):
    answer = served.ask(*messages)
    assert answer.status_code == 200, answer.text


def test_older_calls_and_their_results_are_paired():
    from tunesmith.core.history import turns

    raw = [USER, {"role": "assistant", "content": None, "function_call": {"name": "w", "arguments": "{}"}}, {"role": "function", "name": "w", "content": "7"}]  # fmt: skip
    _, call, result = turns(raw * 2)[3:]
    assert call.tool_calls[0].id == result.tool_call_id != turns(raw)[2].tool_call_id


@pytest.mark.parametrize(
    ("message", "param", "said"),
    [
        ({**USER, "wait": 1}, "messages[1].wait", "wait"),
        ({**USER, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages[1].content[0]", "images"),
        ({**USER, "content": [{"type": "input_audio", "input_audio": {}}]}, "messages[1].content[0]", "audio"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[1].audio", "audio"),
        (
            {"role": "assistant", "content": "x", "tool_calls": [{"id": "a", "type": "custom", "custom": {}}]},
            "messages[1].tool_calls[0]",
            "",
        ),
    ],
)
def test_what_no_model_here_reads_is_refused_by_its_place(served, message, param, said):
    answer = served.ask(USER, message)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["param"] or "").startswith(param)
    assert said in error["message"]


@pytest.mark.parametrize("path", ["/images/generations", "/audio/speech", "/moderations", "/threads/x/runs"])
def test_what_is_not_served_is_refused_by_name(served, path):
    error = served.post(path, input="x").json()["error"]
    assert error["code"] == "unsupported_endpoint"
    assert path.split("/")[1] in error["message"]
    assert "audio" in served.ask(modalities=["text", "audio"], audio={"voice": "x", "format": "wav"}).json()["error"]["message"]


# tools


class Day(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=6)


class Booking(pydantic.BaseModel):
    when: Day


def tool(model=Booking, **function):
    made = openai.pydantic_function_tool(model)
    return {**made, "function": {**made["function"], **function}}


@pytest.mark.slow
def test_schemas_with_definitions_hold_in_forced_tools(served):
    def called(**more):
        answer = served.client.chat.completions.create(model="tiny", messages=[USER], max_tokens=120, seed=2, **more)
        return answer.choices[0].message

    one = {"parallel_tool_calls": False}
    both = [tool(), tool(Day, name="Other")]
    names = {"Booking": Booking, "Other": Day}
    for choice in ("required", {"type": "function", "function": {"name": "Booking"}}):
        (call,) = called(tools=both, tool_choice=choice, **one).tool_calls
        assert names[call.function.name].model_validate_json(call.function.arguments)
    old = called(functions=[tool()["function"]], function_call={"name": "Booking"})
    assert Booking.model_validate_json(old.function_call.arguments)


def test_references_hold_wherever_a_schema_is_moved():
    from tunesmith.core.strict_schema import moved

    tree = {
        "type": "object",
        "properties": {"$ref": {"$ref": "#"}, "a": {"$ref": "#/$defs/A"}},
        "$defs": {"A": {"enum": [{"$ref": "#/x"}]}},
    }
    assert moved(tree, "#/$defs/p") == {
        "type": "object",
        "properties": {"$ref": {"$ref": "#/$defs/p"}, "a": {"$ref": "#/$defs/p/$defs/A"}},
        "$defs": {"A": {"enum": [{"$ref": "#/x"}]}},
    }


@pytest.mark.parametrize(
    ("schema", "shut"),
    [
        ({"properties": {"a": {}}}, {"properties": {"a": {}}, "additionalProperties": False}),
        ({"anyOf": [{"properties": {"a": {}}}, {"type": "null"}]}, {"anyOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"type": "null"}]}),
        ({"type": "object"}, None),
        ({"properties": {"a": {}}, "additionalProperties": True}, None),
        ({"properties": {"a": {}}, "patternProperties": {"b": {}}}, None),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, None),
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]}, None),
    ],
)  # fmt: skip
def test_forms_are_closed_where_nothing_that_is_valid_is_lost(schema, shut):
    from tunesmith.core.strict_schema import closed

    assert closed(schema) == (shut or schema)


@pytest.mark.slow
def test_a_forced_call_adds_no_keys_of_its_own(served):
    open_tool = {"type": "function", "function": {"name": "when", "parameters": Booking.model_json_schema()}}
    chosen = {"type": "function", "function": {"name": "when"}}
    for seed in range(2):
        choice = served.ask(tools=[open_tool], tool_choice=chosen, max_tokens=100, temperature=1.3, seed=seed).json()["choices"][0]
        assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]).keys() == {"when"}


@pytest.mark.parametrize("limit", [3, 14, 30, 44])
def test_a_call_that_is_cut_leaves_no_markup(served, limit):
    choice = served.ask(tools=[tool()], tool_choice="required", max_tokens=limit, parallel_tool_calls=False).json()["choices"][0]
    assert "tool_call" not in (choice["message"]["content"] or "")
    calls = choice["message"].get("tool_calls", [])
    if choice["finish_reason"] == "tool_calls":
        Booking.model_validate_json(calls[0]["function"]["arguments"])
    else:
        assert choice["finish_reason"] == "length"
        assert all(call["function"]["name"] == "Booking" for call in calls)


def test_a_stop_string_within_a_call_leaves_no_markup_either(served):
    answer = served.ask(tools=[tool()], tool_choice="required", max_tokens=100, stop=["when"], parallel_tool_calls=False)
    choice = answer.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) in ((None, "stop"), ("", "stop"))


def test_a_cut_call_is_given_as_far_as_it_came():
    from tunesmith.models.held_calls import cut_call

    marks = ("<tool_call>",)
    whole = 'Yes.\n<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>'
    seen = {}
    for end in range(len(whole)):
        text, calls = cut_call(whole[:end], marks) or (whole[:end], ())
        assert "tool_call" not in text
        assert text.startswith("Yes") or end < 4
        seen |= {call.function.arguments: call.function.name for call in calls}
    assert seen == {'{"a": "b"}'[:n]: "f" for n in range(11)}
    assert cut_call("a < b and a <", marks) is None
    assert cut_call(whole + " And?", marks) is None


def test_ids_of_calls_are_their_own_and_the_same_in_a_stream(served):
    body = {"model": "echo", "messages": [{"role": "user", "content": "call {}"}], "tools": [tool()]}
    ids = {served.client.chat.completions.create(**body, n=2).choices[i].message.tool_calls[0].id for i in (0, 1) for _ in range(3)}
    assert len(ids) == 6
    assert all(number.startswith("call_") and len(number) >= 20 for number in ids)


def test_words_stream_when_tools_are_given(served):
    free = {"model": "tiny", "messages": [USER], "temperature": 0, "max_tokens": 12, "tools": [tool()]}
    whole = served.client.chat.completions.create(**free).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in served.client.chat.completions.create(**free, stream=True)]
    assert "".join(pieces) == whole
    assert sum(map(bool, pieces)) > 3


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, "additionalProperties"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}, "Missing 'a'"),
        (
            {"type": "object", "properties": {"a": {"anyOf": [{"type": "object"}]}}, "required": ["a"], "additionalProperties": False},
            "anyOf",
        ),
        ({"$defs": {"B": {"properties": {}}}, "type": "object", "properties": {}, "additionalProperties": False}, "'B'"),
    ],
)
def test_strict_forms_are_closed_as_openai_wants_them(served, schema, said):
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    for param, more in (
        ("response_format", {"response_format": form}),
        ("tools[0].function.parameters", {"tools": [tool(parameters=schema)]}),
    ):
        error = served.ask(**more).json()["error"]
        assert error["param"] == param
        assert said in error["message"]
    assert served.ask(response_format=form | {"json_schema": {"name": "x", "schema": {"type": "object"}}}).status_code == 200


# completions


def oracle(local, ids):
    """The log-probability of each id after the first, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(local.base, dtype=torch.float32)
    with torch.inference_mode():
        log_p = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    return [float(log_p[i, ids[i + 1]]) for i in range(len(ids) - 1)], log_p


TEXT = "The credit agreement between é and 🙂 is dated " * 20


@pytest.mark.parametrize("as_ids", [False, True])
def test_an_echoed_prompt_has_its_log_probabilities(served, as_ids):
    ids = served.local.encode(TEXT)
    assert len(ids) > 256  # read in several passes
    right, log_p = oracle(served.local, ids)
    answer = served.client.completions.create(
        model="tiny", prompt=ids if as_ids else TEXT, echo=True, logprobs=2, max_tokens=1, temperature=0
    )
    choice = answer.choices[0]
    told = choice.logprobs
    assert choice.text.startswith(TEXT)
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == len(ids) + 1
    assert (told.token_logprobs[0], told.top_logprobs[0]) == (0.0, {told.tokens[0]: 0.0})
    assert told.token_logprobs[1:-1] == pytest.approx(right, abs=1e-4)
    greedy = [own == max(top.values()) for own, top in zip(told.token_logprobs[1:-1], told.top_logprobs[1:-1], strict=True)]
    assert greedy == [int(log_p[i].argmax()) == ids[i + 1] for i in range(len(ids) - 1)]
    assert all(token in top for token, top in zip(told.tokens[1:], told.top_logprobs[1:], strict=True))
    assert told.token_logprobs[-1] == pytest.approx(float(log_p[-1].max()), abs=1e-4)
    words = zip(told.tokens, told.text_offset, strict=True)
    assert all(TEXT.startswith(token, at) for token, at in words if not token.startswith("bytes:") and at < len(TEXT))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 1)


def test_several_prompts_without_a_token_more(served):
    body = {"prompt": ["ab", "The bank"], "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = served.post("/completions", **body).json()
    assert [choice["text"] for choice in answer["choices"]] == ["ab", "The bank"]
    assert answer["usage"]["completion_tokens"] == 0
    for choice in answer["choices"]:
        told = choice["logprobs"]
        assert "".join(told["tokens"]) == choice["text"]
        assert [list(top.values()) for top in told["top_logprobs"][1:]] == [[value] for value in told["token_logprobs"][1:]]
    lines = served.post("/completions", **body, stream=True).text.split("\n\n")[:-2]
    parts = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    assert [part["logprobs"] for part in parts if part["logprobs"]] == [choice["logprobs"] for choice in answer["choices"]]
    alone = served.post("/completions", prompt=["ab", "x"], max_tokens=0, logprobs=1).json()
    assert [(choice["text"], choice["logprobs"]["tokens"]) for choice in alone["choices"]] == [("", []), ("", [])]
    chat = served.ask(max_tokens=0).json()
    assert (chat["usage"]["completion_tokens"], chat["choices"][0]["message"]["content"]) == (0, "")


@pytest.mark.slow
def test_the_token_that_ends_an_answer_is_counted_among_the_log_probabilities(served):
    import torch
    from transformers import AutoModelForCausalLM

    (end,) = served.local.renderer.stop_ids
    pairs = torch.cartesian_prod(torch.arange(3, 300), torch.arange(60, 90))
    with torch.inference_mode():
        next_ids = AutoModelForCausalLM.from_pretrained(served.local.base, dtype=torch.float32)(pairs).logits[:, -1].argmax(-1)
    prompt = pairs[int((next_ids == end).nonzero()[0])].tolist()
    body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    choice = served.post("/completions", **body).json()["choices"][0]
    assert (choice["finish_reason"], len(choice["logprobs"]["token_logprobs"])) == ("stop", 3)
    lines = served.post("/completions", **body, stream=True).text.split("\n\n")[:-2]
    told = [json.loads(line.removeprefix("data: "))["choices"][0]["logprobs"] for line in lines]
    assert sum(len(part["tokens"]) for part in told if part) == 3


def test_a_model_that_tells_no_log_probabilities_of_a_prompt_says_so(served):
    error = served.post("/completions", model="echo", prompt="ab", echo=True, logprobs=1).json()["error"]
    assert error["param"] == "echo"


# embeddings


def test_ids_of_another_vocabulary_are_refused(served):
    own = served.post("/embeddings", model="encoder", input=[70, 71, 72])
    assert own.status_code == 200  # what its tokenizer gives of "def"
    text = served.post("/embeddings", model="encoder", input="def").json()
    assert own.json()["data"][0]["embedding"] == text["data"][0]["embedding"]
    letters = [number for letter in "The" for number in served.local.encode(letter)]
    assert letters != served.local.encode("The")
    for ids in ([40, 41, 9000000], letters):
        error = served.post("/embeddings", model="encoder", input=[ids]).json()["error"]
        assert (error["param"], "encoder" in error["message"]) == ("input", True)


@pytest.mark.parametrize(("wanted", "status"), [(32, 200), (7, 200), (33, 400), (0, 400)])
def test_dimensions_are_had_or_refused(served, wanted, status):
    answer = served.post("/embeddings", model="encoder", input="def", dimensions=wanted)
    assert answer.status_code == status
    assert len(answer.json()["data"][0]["embedding"]) == wanted if status == 200 else answer.json()["error"]["param"] == "dimensions"


# limits and faults


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("words", [600, 6_000, 60_000])  # counted, counted at the beginning, not counted
def test_a_prompt_that_is_too_long_is_refused_before_anything_is_sent(served, words, stream):
    for path, body in (
        ("/chat/completions", {"messages": [{"role": "user", "content": "word " * words}]}),
        ("/completions", {"prompt": "word " * words}),
    ):
        answer = served.post(path, **body, stream=stream)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["param"] in body


@pytest.mark.slow
def test_others_are_answered_while_a_huge_prompt_is_read(served):
    huge = threading.Thread(target=served.ask, args=({"role": "user", "content": "\u00e9a" * (2 << 20)},))
    huge.start()
    times = 0
    while huge.is_alive():
        httpx.get(served.url.removesuffix("/v1") + "/healthz", timeout=10)
        times += 1
    huge.join()
    assert times >= 1


def raw(url, *parts):
    """What the server answers to bytes that come and then do not go on."""
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        seen = b""
        while piece := connection.recv(4096):
            seen += piece
    return seen


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(("part", "said"), [(HEAD, b"headers"), (HEAD + b"content-length: 99\r\n\r\n{", b"body"), (b"", b"headers")])
def test_a_client_that_does_not_go_on_is_let_go(impatient, part, said):
    answer = raw(impatient, part)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
    assert said in answer


def test_headers_without_end_are_refused(impatient):
    assert raw(impatient, HEAD + b"x-a: " + b"a" * (1 << 20)).startswith(b"HTTP/1.1 431 ")


def test_a_500_names_its_request_and_so_does_the_log(served, caplog):
    with caplog.at_level(logging.ERROR, "tunesmith.api"):
        answer = served.ask(model="broken")
    number = answer.headers["x-request-id"]
    assert (answer.status_code, number in answer.json()["error"]["message"]) == (500, True)
    assert "secret" not in answer.text
    assert ["ZeroDivisionError" in text for record in caplog.records if number in (text := record.getMessage())] == [True]


def test_pages_that_are_named_may_ask_and_others_may_not(served):
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    url = served.url + "/chat/completions"
    allowed = httpx.options(url, headers={"origin": PAGE, **asks})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (204, PAGE)
    assert allowed.headers["access-control-allow-headers"] == asks["access-control-request-headers"]
    asked = httpx.post(url, json={"model": "echo", "messages": [USER]}, headers={"origin": PAGE})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, PAGE)
    for method in ("OPTIONS", "POST"):
        other = httpx.request(method, url, headers={"origin": "https://evil.example", **asks})
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers
