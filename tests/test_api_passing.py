"""Requests passed through to another server: the same bytes, logged, not delayed."""

from __future__ import annotations

import json
import threading

import httpx
import pytest
from sqlalchemy import select

from tunesmith.models.echo import EchoModel
from tunesmith.store.store import Store
from tunesmith.store.tables import interactions
from waiting import until

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    from tunesmith.api.app import create_app, running
    from tunesmith.models.upstream import Upstream

    store = Store.open(tmp_path_factory.mktemp("store"))
    with running(create_app({"echo": EchoModel()})) as behind:
        models = {"far": Upstream("echo", base_url=behind), "gone": Upstream("echo", base_url="http://127.0.0.1:9/v1")}
        with running(create_app(models, store=store)) as url:
            yield url, store


def rows(store):
    with store.engine.connect() as connection:
        return list(connection.execute(select(interactions).order_by(interactions.c.created)).mappings())


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_passes_and_is_logged(servers, stream):
    url, store = servers
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    before = len(rows(store))
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = client.chat.completions.create(model="far", messages=[{"role": "user", "content": "one two three"}], **more)
    if stream:
        chunks = list(answer)
        text, number = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks[0].id
    else:
        text, number = answer.choices[0].message.content, answer.id
    assert text == "one two three"
    (row,) = rows(store)[before:]  # on disk when the client has seen the end
    assert (row["id"], row["alias"], row["variant"], row["answer"], row["completion_tokens"]) == (number, "far", "echo", "one two three", 3)
    assert json.loads(row["messages"]) == [{"role": "user", "content": "one two three"}]


def test_errors_pass_too(servers):
    url, store = servers
    bad = httpx.post(f"{url}/chat/completions", json={"model": "far", "messages": []})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "messages")
    gone = httpx.post(f"{url}/chat/completions", json={"model": "gone", "messages": [{"role": "user", "content": "x"}]})
    assert (gone.status_code, gone.json()["error"]["code"]) == (502, "upstream_unreachable")
    row = rows(store)[-1]
    assert (row["alias"], row["status"], row["finish_reason"]) == ("gone", 502, "error")
    assert row["error"]


@pytest.mark.parametrize(("path", "asks"), [
    ("chat/completions", {"messages": [{"role": "user", "content": "q"}]}), ("completions", {"prompt": "q"}), ("embeddings", {"input": "q"}),
])  # fmt: skip
def test_what_another_server_refused_is_logged_with_its_prompt(store, path, asks):
    said = {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}}
    statuses = [404, 429, 500]
    upstream, _ = scripted(*([whole(said).replace(b"200 OK", b"%d No" % status)] for status in statuses))
    answers, logged = asked(store, upstream, len(statuses), path=path, **asks)
    assert [answer.status_code for answer in answers] == [row["status"] for row in logged] == statuses
    assert [json.loads(row["messages"]) for row in logged] == [[{"role": "user", "content": "q"}]] * len(statuses)


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_passes_and_is_logged(servers, stream):
    url, store = servers
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = client.completions.create(model="far", prompt="one two three", **more)
    text = "".join(c.choices[0].text for c in answer if c.choices) if stream else answer.choices[0].text
    row = rows(store)[-1]
    assert (row["alias"], row["answer"], row["completion_tokens"], row["id"][:5]) == ("far", text, len(text.split()), "cmpl-")
    assert json.loads(row["messages"]) == [{"role": "user", "content": "one two three"}]


def test_embeddings_pass_and_are_logged_without_their_vectors(store):
    body = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5] * 8}],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    upstream, seen = scripted([whole(body)])
    (answer,), logged = asked(store, upstream, path="embeddings", input=["one", "two"])
    assert answer.json() == body
    assert seen["paths"] == ["/v1/embeddings"]
    (row,) = logged
    assert (row["alias"], row["answer"], row["prompt_tokens"], row["conversation"]) == ("m", "", 3, None)
    assert json.loads(row["messages"]) == [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    assert "0.5" not in str(dict(row))


@pytest.mark.parametrize(("given", "logged"), [(["one", "two"], [{"role": "user", "content": "one\ntwo"}]), ([1, 2], [])])
def test_texts_of_a_completion_are_one_message_and_token_ids_none(store, given, logged):
    choice = {"text": "x", "index": 0, "logprobs": None, "finish_reason": "stop"}
    upstream, _ = scripted([whole({"id": "cmpl-0123456789012345678901", "choices": [choice]})])
    _, (row,) = asked(store, upstream, path="completions", prompt=given)
    assert json.loads(row["messages"]) == logged


def test_only_paths_below_v1_are_passed(servers):
    url, _ = servers
    stray = httpx.post(f"{url.removesuffix('/v1')}/chat/completions", json={"model": "far", "messages": [{"role": "user", "content": "x"}]})
    assert stray.status_code == 404


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"])
def test_a_client_that_leaves_ends_the_work_on_a_whole_answer(store, begun):
    from tunesmith.api.app import create_app, running
    from tunesmith.models.upstream import Upstream

    ended = threading.Event()

    async def silent(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begun)
        while await reader.read(1 << 16):
            pass
        ended.set()
        writer.close()

    with running(create_app({"m": Upstream("x", base_url=listening(silent))}, store=store)) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/chat/completions", json={"model": "m", "messages": []}, timeout=httpx.Timeout(600, read=0.1))
        assert ended.wait(600)
    (row,) = rows(store)
    assert (row["status"], row["error"], row["finish_reason"]) == (499, "the client left", "cancelled")


def test_the_first_piece_does_not_wait_for_the_next():
    import asyncio

    from tunesmith.api.app import create_app, running
    from tunesmith.models.upstream import Upstream

    first = threading.Event()

    async def slow(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for word in ("one", "two"):
            chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            writer.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await writer.drain()
            await asyncio.to_thread(first.wait)
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()

    with running(create_app({"slow": Upstream("m", base_url=listening(slow))})) as url:
        lines = []
        with httpx.stream("POST", f"{url}/chat/completions", json={"model": "slow", "messages": [], "stream": True}, timeout=600) as answer:
            for line in filter(None, answer.iter_lines()):
                lines.append(line)
                first.set()  # only now the next piece is sent
    assert len(lines) == 3


@pytest.mark.parametrize(("stream", "variants"), [(False, 1), (True, 1), (True, 2)])
def test_more_than_may_wait_at_another_server_are_refused_with_when_to_ask_again(store, stream, variants):
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from tunesmith.api.app import ServeConfig, create_app, running
    from tunesmith.core.deployment import Deployment, Variant
    from tunesmith.deploy.router import Router
    from tunesmith.models.upstream import Upstream

    waiting, turn, ended = threading.Semaphore(0), threading.Event(), threading.Event()

    async def busy(reader, writer):  # says at once that a stream comes, and begins it when its turn has come
        await reader.readuntil(b"\r\n\r\n")
        writer.write(STREAM if stream else b"")
        await writer.drain()
        waiting.release()
        await asyncio.to_thread(turn.wait)
        writer.write(event("one") if stream else said())
        await writer.drain()
        if stream:
            await asyncio.to_thread(ended.wait)
            writer.write(b"data: [DONE]\n\n")
        writer.close()

    upstream, router = listening(busy), Router()
    names = ["a", "b"][:variants]
    deployed = tuple(Variant(name=name, upstream=name, weight=1 / variants) for name in names)
    strategy = "split" if variants > 1 else "one"
    router.deploy(
        Deployment(alias="m", version=1, variants=deployed, strategy=strategy), {n: Upstream("x", base_url=upstream) for n in names}
    )
    app = create_app(router, store=store, config=ServeConfig(max_waiting=2))
    with running(app) as url, ThreadPoolExecutor(3) as pool, httpx.Client(timeout=600) as client:

        def ask(number):
            turns = [{"role": "user", "content": f"q{number}"}]
            return client.post(f"{url}/chat/completions", json={"model": "m", "messages": turns, "stream": stream})

        first = [pool.submit(ask, number) for number in range(2)]
        for _ in first:
            waiting.acquire()

        def wait(number):
            return f"vllm:num_requests_waiting {number}.0" in client.get(f"{url.removesuffix('/v1')}/metrics").text

        assert wait(2)
        refused = ask(2)
        assert (refused.status_code, refused.headers["retry-after"], refused.json()["error"]["code"]) == (429, "1", "rate_limit_exceeded")
        turn.set()
        until(lambda: wait(0))  # streams that have begun wait no longer, whenever they end
        third = pool.submit(ask, 3)
        waiting.acquire()
        ended.set()
        assert [each.result().status_code for each in [*first, third]] == [200] * 3
    assert sorted((row["status"], row["messages"]) for row in rows(store))[-1] == (429, "[]")


def listening(serve):
    """The base URL of a server that `serve` answers for, a connection each."""
    import asyncio

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


def scripted(*answers: list[bytes], keep: bool = True):
    """A server that answers request after request with these pieces of bytes; and what it saw."""
    import asyncio

    seen, left = {"connections": 0, "paths": []}, list(answers)

    async def serve(reader, writer):
        seen["connections"] += 1
        while left:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            seen["paths"].append(head.split()[1].decode())
            for piece in left.pop(0):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.02)
            if not keep:
                break
        writer.close()

    return listening(serve), seen


def whole(said):
    body = json.dumps(said).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def said(number="a" * 30, text="yes", tokens=1):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return whole({"id": number, "choices": [choice], "usage": {"prompt_tokens": tokens, "completion_tokens": 1}})


def event(text):
    return b"data: " + json.dumps({"id": "b" * 30, "choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def asked(store, upstream, count=1, path="chat/completions", **more):
    from tunesmith.api.app import ServeConfig, create_app, running
    from tunesmith.models.upstream import Upstream

    app = create_app({"m": Upstream("x", base_url=upstream, timeout_s=1)}, store=store, config=ServeConfig(port=0, names={"gpt-4o": "m"}))
    with running(app) as url:
        asks = {"messages": [{"role": "user", "content": "q"}]} if path == "chat/completions" else {}
        body = {"model": "m", **asks, **more}
        answers = [httpx.post(f"{url}/{path}", json=body, timeout=600) for _ in range(count)]
    return answers, rows(store)


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "store")
    yield store
    store.close()


@pytest.mark.slow
def test_connections_are_kept_and_replaced_when_the_server_closed_them(store):
    upstream, seen = scripted([said("a" * 30)], [said("b" * 30)], [said("c" * 30)])
    answers, logged = asked(store, upstream, 3, model="gpt-4o")  # a mapped name
    assert [answer.status_code for answer in answers] == [200] * 3
    assert (seen["connections"], len(seen["paths"])) == (1, 3)
    assert [row["alias"] for row in logged] == ["gpt-4o"] * 3
    upstream, seen = scripted([said("d" * 30)], [said("e" * 30)], keep=False)
    assert [answer.status_code for answer in asked(store, upstream, 2)[0]] == [200] * 2
    assert (seen["connections"], len(seen["paths"])) == (2, 2)


def test_answers_with_the_same_small_id_are_rows_of_their_own(store):
    upstream, _ = scripted([said("chatcmpl-7")], [said("chatcmpl-7")])
    answers, logged = asked(store, upstream, 2)
    assert [answer.json()["id"] for answer in answers] == ["chatcmpl-7"] * 2
    assert len({row["id"] for row in logged if row["id"].startswith("chatcmpl-7-")}) == 2


@pytest.mark.parametrize("tokens", [-1, 1 << 31, (1 << 64) - 1])
def test_an_answer_whose_count_cannot_be_true_passes_and_is_logged_without_it(store, tokens):
    upstream, _ = scripted([said("f" * 30, tokens=tokens)], [said("g" * 30)])
    answers, logged = asked(store, upstream, 2)
    assert [answer.status_code for answer in answers] == [200] * 2
    assert [(row["answer"], row["prompt_tokens"]) for row in logged] == [("yes", 0), ("yes", 1)]


@pytest.mark.parametrize("cut", range(1, 14, 3))
def test_the_mark_of_the_end_may_come_in_two_pieces(store, cut):
    end = b"data: [DONE]\n\n"
    upstream, _ = scripted([STREAM, event("one"), end[:cut], end[cut:]], keep=False)
    (answer,), (row,) = asked(store, upstream, stream=True)
    assert answer.content == event("one") + end
    assert (row["answer"], row["status"]) == ("one", 200)


def test_an_answer_that_breaks_off_is_told_and_logged(store):
    head = STREAM.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n")
    piece = event("one")
    upstream, _ = scripted([head, b"%x\r\n%b\r\n" % (len(piece), piece)], keep=False)
    (answer,), (row,) = asked(store, upstream, stream=True)
    assert answer.content.startswith(piece)
    assert "upstream_unreachable" in answer.text
    assert (row["answer"], row["status"]) == ("one", 502)


@pytest.mark.parametrize("answer", [b"SMTP hello\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", b""])
def test_what_is_no_answer_is_a_502(store, answer):
    upstream, _ = scripted([answer], keep=False)
    assert [one.status_code for one in asked(store, upstream)[0]] == [502]
    silent, _ = scripted([])
    assert asked(store, silent)[0][0].json()["error"]["code"] == "upstream_unreachable"


# responses


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A server with a model of its own that passes to another one, with the stores of both."""
    from tunesmith.api.app import create_app, running
    from tunesmith.models.upstream import Upstream

    stores = [Store.open(tmp_path_factory.mktemp(name)) for name in ("here", "there")]
    with running(create_app({"echo": EchoModel()}, store=stores[1])) as behind:
        models = {
            "far": Upstream("echo", base_url=behind),
            "gone": Upstream("echo", base_url="http://127.0.0.1:9/v1"),
            "near": EchoModel("near"),
        }
        with running(create_app(models, store=stores[0])) as url:
            clients = [openai.OpenAI(base_url=address, api_key="none", max_retries=0) for address in (url, behind)]
            yield *clients, stores[0]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_response_passes_and_is_logged_and_kept(gateway, stream):
    here, there, store = gateway
    tools = [{"type": "function", "name": "f", "parameters": {}, "strict": False}]
    body = {"model": "far", "input": 'call {"x": 1}', "tools": tools, "instructions": "Be brief."}
    made = list(here.responses.create(**body, stream=True))[-1].response if stream else here.responses.create(**body)
    row = rows(store)[-1]  # on disk when the client has seen the end
    assert (row["id"], row["endpoint"], row["alias"], row["finish_reason"], row["prompt_tokens"]) == (
        made.id,
        "responses",
        "far",
        "tool_calls",
        5,
    )
    assert json.loads(row["tool_calls"])[0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert [message["role"] for message in json.loads(row["messages"])] == ["system", "user"]
    assert here.responses.retrieve(made.id).to_dict() == there.responses.retrieve(made.id).to_dict() == made.to_dict()
    assert [item.content[0].text for item in here.responses.input_items.list(made.id)] == ['call {"x": 1}']
    result = {"type": "function_call_output", "call_id": made.output[0].call_id, "output": "7"}
    later = here.responses.create(model="far", input=[result, {"role": "user", "content": "and now"}], previous_response_id=made.id)
    assert (later.output_text, there.responses.retrieve(later.id).previous_response_id) == ("and now", made.id)
    assert [message["role"] for message in json.loads(rows(store)[-1]["messages"])] == ["user", "assistant", "tool", "user"]
    near = here.responses.create(model="near", input=[result, {"role": "user", "content": "x"}], previous_response_id=made.id)
    assert near.output_text == "x"
    here.responses.delete(made.id)
    for client in (here, there):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(made.id)


def test_what_the_other_server_cannot_know_is_answered_here(gateway):
    here, there, store = gateway
    first = here.responses.create(model="near", input="my name is Ada")
    later = here.responses.create(model="far", input="what is it", previous_response_id=first.id)
    assert later.output_text == "what is it"
    assert [message["content"] for message in json.loads(rows(store)[-1]["messages"])] == ["my name is Ada", "my name is Ada", "what is it"]
    with pytest.raises(openai.NotFoundError):
        there.responses.retrieve(later.id)
    hidden = there.responses.create(model="echo", input="another's secret")
    with pytest.raises(openai.BadRequestError, match="Previous response with id"):
        here.responses.create(model="far", input="tell me", previous_response_id=hidden.id)
    for more in ({"background": True}, {"conversation": "conv_1"}):
        with pytest.raises(openai.BadRequestError, match="not served"):
            here.responses.create(model="far", input="x", **more)
    with pytest.raises(openai.InternalServerError) as caught:
        here.responses.create(model="gone", input="x")
    assert caught.value.code == "upstream_unreachable"


@pytest.mark.slow
def test_a_server_without_responses_is_asked_by_chat_completions(store):
    absent = whole({"detail": "Not Found"}).replace(b"200 OK", b"404 Not Found")
    upstream, seen = scripted([absent], [said("c" * 30, "yes")], [said("d" * 30, "no")])
    answers, logged = asked(store, upstream, 2, path="responses", input="q")
    assert [answer.json()["output"][0]["content"][0]["text"] for answer in answers] == ["yes", "no"]
    assert seen["paths"] == ["/v1/responses", "/v1/chat/completions", "/v1/chat/completions"]
    assert [(row["endpoint"], row["answer"]) for row in logged] == [("responses", "yes"), ("responses", "no")]
    missing = {"error": {"message": "no such model", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}}
    upstream, seen = scripted([whole(missing).replace(b"200 OK", b"404 Not Found")])
    (answer,), _ = asked(store, upstream, path="responses", input="q")
    assert (answer.status_code, answer.json(), seen["paths"]) == (404, missing, ["/v1/responses"])


@pytest.mark.slow
def test_the_end_of_a_stream_of_events_waits_for_the_log(store):
    """The mark of the end comes in two pieces, and what cannot be read passes."""
    done = {"type": "response.completed", "response": {"id": "r" * 30, "model": "x", "status": "incomplete", "output": [
        {"type": "web_search_call", "id": "w"}, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yes"}]},
    ], "incomplete_details": {"reason": "max_output_tokens"}, "usage": {"input_tokens": 3, "output_tokens": 2}}}  # fmt: skip
    text = b"event: response.completed\ndata: " + json.dumps(done).encode() + b"\n\n"
    upstream, _ = scripted([STREAM, text[:45], text[45:]], keep=False)
    (answer,), (row,) = asked(store, upstream, path="responses", input="q", stream=True)
    assert answer.content == text
    assert (row["id"], row["answer"], row["finish_reason"], row["completion_tokens"]) == ("r" * 30, "yes", "length", 2)


def leaky(arm, stream):
    """What a server answers that says everywhere who it is."""
    call = {"index": 0, "id": f"{arm}-call", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    words = {"role": "assistant", "content": "yes", "provider": arm, "tool_calls": [call]}
    choice = {"index": 0, "finish_reason": "tool_calls", "arm": arm, "delta" if stream else "message": words}
    made = {"id": f"{arm}-1", "model": arm, "created": len(arm), "system_fingerprint": arm, "provider": arm, "choices": [choice]}
    data = json.dumps({**made, "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "cost": len(arm)}}).encode()
    body = b": %b\r\n\r\ndata: %b\r\n\r\ndata: [DONE]\r\n\r\n" % (arm.encode(), data) if stream else data
    kind = b"text/event-stream" if stream else b"application/json"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (kind, arm.encode(), len(body))
    return [head + body[:20], body[20:]]


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_of_what_passes_tells_the_arm(store, stream):
    import contextlib

    from tunesmith.api.app import create_app, running
    from tunesmith.core.deployment import Deployment, Variant
    from tunesmith.deploy.router import Router
    from tunesmith.models.upstream import Upstream

    arms = {arm: scripted(*[leaky(arm, stream)] * 6)[0] for arm in ("arm-one", "second-arm")}
    router, variants = Router(), tuple(Variant(name=arm, upstream=arm, weight=0.5) for arm in arms)
    upstreams = {arm: Upstream(arm, base_url=url) for arm, url in arms.items()}
    router.deploy(Deployment(alias="m", version=1, strategy="split", variants=variants), upstreams)
    body = {"model": "m", "messages": [{"role": "user", "content": "q"}], "stream": stream}
    shown, dates = set(), {"id", "created"}
    with running(create_app(router, store=store)) as url, contextlib.closing(httpx.Client(timeout=60)) as client:
        for user in range(8):
            answer = client.post(f"{url}/chat/completions", json={**body, "user": str(user)})
            seen = answer.text + repr(sorted(answer.headers.items()))
            assert not any(word in seen for word in ("arm-one", "second-arm", "provider", '"cost"')), seen
            data = json.loads(answer.text.removeprefix("data: ").partition("\n")[0]) if stream else answer.json()
            (call,) = data["choices"][0]["delta" if stream else "message"].pop("tool_calls")
            assert call.pop("id").startswith("call_")
            shown.add(json.dumps([call, {key: value for key, value in data.items() if key not in dates}, sorted(answer.headers)]))
    assert len(shown) == 1, shown
    logged = rows(store)
    assert {row["variant"] for row in logged} == set(arms)
    assert {(row["prompt_tokens"], row["completion_tokens"], row["answer"]) for row in logged} == {(3, 2, "yes")}, (
        "counted, asked for or not"
    )
    assert all(json.loads(row["tool_calls"])[0]["id"].startswith("call_") for row in logged)
