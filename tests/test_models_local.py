"""The local decoder against transformers and peft, in float32: the same tokens whatever is batched, shared, chunked or put back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import tiny
from tunesmith.core.errors import NotFound, UsageError
from tunesmith.core.types import Message, Prompt, Sampling
from tunesmith.models.base import Model
from tunesmith.models.local import LocalModel

torch = pytest.importorskip("torch")
SYSTEM = "List the named entities of this sentence. Say yes or no."
ASKED = [
    "Who signed it?",
    "The credit agreement",
    "Acme Holdings and First Bank of Ohio is dated as of June 3",
    "1 2 3",
    "New York " * 9,
    "no",
]
GREEDY = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [tiny.adapter(base, folder / "a", 1), tiny.adapter(base, folder / "b", 2, r=2, use_rslora=True)]


@pytest.fixture(scope="module")
def local(base):
    return LocalModel(base, name="base", dtype="float32")


def prompts(system: str | None = SYSTEM) -> list[Prompt]:
    head = (Message(role="system", content=system),) if system else ()
    return [Prompt(messages=(*head, Message(role="user", content=words))) for words in ASKED]


def reference(folder: Path, adapter: Path | None = None):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


def generated(model, renderer, prompt: Prompt, count: int = 12) -> list[int]:
    """What transformers' own greedy generation says after a prompt."""
    ids = renderer.prompt(prompt)
    out = model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=count, do_sample=False,
        eos_token_id=list(renderer.stop_ids), pad_token_id=0,
    )  # fmt: skip
    return out[0, len(ids) :].tolist()


def decoded(model: LocalModel, requests, **options) -> list[list[int]]:
    """The ids that one decoder gives for all requests together."""
    decoder = model.engine.decoder(**options)
    rows = [decoder.add(request) for request in requests]
    said = {row: [] for row in rows}
    while decoder.busy:
        for token in decoder.step():
            said[token.sequence].append(token.id)
    return [said[row] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_greedy_ids_are_those_of_transformers(kind, tmp_path):
    model = LocalModel(tiny.model(tmp_path, kind), name=kind, dtype="float32")
    expected = [generated(reference(tmp_path), model.renderer, prompt) for prompt in prompts()]
    for share in (0, 24):  # without and with a shared prefix
        requests = [model.request(prompt, model.renderer.prompt(prompt), GREEDY, share=share) for prompt in prompts()]
        assert decoded(model, requests) == expected
        assert decoded(model, requests, chunk=7, max_rows=3) == expected
        assert [decoded(model, [request])[0] for request in requests] == expected


@pytest.mark.slow
def test_a_batch_that_runs_out_of_memory_says_the_same(local):
    requests = [
        local.request(prompt, local.renderer.prompt(prompt), Sampling(max_tokens=40, temperature=1.0, seed=3)) for prompt in prompts()
    ]
    roomy = decoded(local, requests)
    one_row = 2 * 2 * 2 * 16 * 4 * 64  # layers × (keys, values) × kv heads × width × bytes × positions
    assert decoded(local, requests, cache_bytes=3 * one_row) == roomy


@pytest.mark.slow
def test_adapters_in_one_batch_say_what_each_says_alone(local, base, adapters):
    siblings = [local, *(local.with_adapter(folder, folder.name) for folder in adapters)]
    references = [reference(base), *(reference(base, folder) for folder in adapters)]
    expected, requests = [], []
    for prompt in prompts():  # base, a, b, base, a, b, … in one batch, all with the same shared prefix
        for model, truth in zip(siblings, references, strict=True):
            expected.append(generated(truth, model.renderer, prompt))
            requests.append(model.request(prompt, model.renderer.prompt(prompt), GREEDY, share=24))
    assert len({tuple(ids) for ids in expected}) > len(ASKED)  # the adapters do change what is said
    assert decoded(local, requests) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"target_modules": ["q_proj", "v_proj"]},
        {"use_rslora": True},
    ],
    ids=["dora", "patterns", "some-modules", "rslora"],
)
def test_every_kind_of_adapter_scores_as_peft_does(local, base, tmp_path, options):
    folder = tiny.adapter(base, tmp_path, 5, **options)
    ids = local.renderer.prompt(prompts()[2])
    logits = reference(base, folder)(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = -logits[range(len(ids) - 1), ids[1:]].sum().item()
    nats, count = local.with_adapter(folder, "x").nll([(ids, [1] * len(ids))])[0]
    assert count == len(ids) - 1
    assert nats == pytest.approx(expected, rel=1e-5)
    assert nats != pytest.approx(local.nll([(ids, [1] * len(ids))])[0][0], rel=1e-3)


def test_nll_counts_masked_tokens_only(local, base):
    rows = [(local.renderer.prompt(prompt), [0] * 5 + [1, 0, 1]) for prompt in prompts()]
    rows = [(ids, (mask + [1] * len(ids))[: len(ids)]) for ids, mask in rows] + [([4, 5], [1, 0]), ([7], [1])]
    truth = reference(base)
    for (ids, mask), (nats, count) in zip(rows, local.nll(rows), strict=True):
        log_p = truth(torch.tensor([ids])).logits[0].log_softmax(-1)
        places = [i for i in range(1, len(ids)) if mask[i]]
        assert count == len(places)
        assert nats == pytest.approx(-sum(log_p[i - 1, ids[i]].item() for i in places), rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_answers_and_stops(local):
    whole = local.answer(prompts(), GREEDY)
    assert [answer.text for answer in whole] == [local.answer([prompt], GREEDY)[0].text for prompt in prompts()]
    assert all(answer.completion_tokens <= 12 and answer.prompt_tokens > 20 for answer in whole)
    said = max((answer.text for answer in whole), key=len)
    number = next(i for i, answer in enumerate(whole) if answer.text == said)
    word = said[len(said) // 2 :][:2]
    cut = local.answer([prompts()[number]], Sampling(max_tokens=12, stop=(word,)))[0]
    assert cut.text == said[: said.index(word)]
    assert cut.finish_reason == "stop"
    assert cut.completion_tokens <= whole[number].completion_tokens


def test_answers_come_as_they_are_finished(local):
    seen = {}
    answers = local.answer(prompts(), GREEDY, on_answer=lambda i, answer: seen.setdefault(i, answer))
    assert [seen[i] for i in range(len(ASKED))] == answers


@pytest.mark.slow
def test_sampling_depends_on_the_seed_and_not_on_the_batch(local):
    def drawn(asked, seed):
        return [answer.text for answer in local.answer(asked, Sampling(max_tokens=8, temperature=0.9, top_p=0.8, seed=seed))]

    together = drawn(prompts(), 11)
    assert together == drawn(prompts(), 11)
    assert together == [drawn([prompt], 11)[0] for prompt in prompts()]
    assert together != drawn(prompts(), 12)


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_model(local, base):
    prompt = prompts()[1]
    answer = local.answer([prompt], Sampling(max_tokens=4, top_logprobs=3))[0]
    ids = local.renderer.prompt(prompt)
    log_p = reference(base)(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    first = answer.logprobs[0]
    assert first["logprob"] == pytest.approx(log_p.max().item(), rel=1e-4)
    assert [top["logprob"] for top in first["top_logprobs"]] == pytest.approx(log_p.topk(3).values.tolist(), rel=1e-4)


@pytest.mark.slow
def test_the_digest_tells_weights_adapters_and_precision_apart(local, base, adapters):
    digests = {
        local.digest,
        *(local.with_adapter(folder, "x").digest for folder in adapters),
        LocalModel(base, name="x", dtype="bfloat16").digest,
    }
    assert len(digests) == 4
    assert local.with_adapter(None, "y").digest == local.digest
    assert isinstance(local, Model)


@pytest.mark.slow
def test_a_new_adapter_in_the_same_folder_is_another_adapter(local, base, tmp_path):
    first = local.with_adapter(tiny.adapter(base, tmp_path, 7), "v1")
    before = first.answer(prompts(), GREEDY)
    second = local.with_adapter(tiny.adapter(base, tmp_path, 8), "v2")
    assert [a.text for a in second.answer(prompts(), GREEDY)] != [a.text for a in before]
    assert [a.text for a in first.answer(prompts(), GREEDY)] == [a.text for a in before]


@pytest.mark.slow
def test_prompts_that_fill_the_context_are_refused(local):
    with pytest.raises(UsageError, match="tokens"):
        local.answer([Prompt(messages=(Message(role="user", content="no " * 400),))], GREEDY)
    long = local.answer([Prompt(messages=(Message(role="user", content="1 2 " * 55),))], Sampling(max_tokens=1000))[0]
    assert long.prompt_tokens + long.completion_tokens <= 256


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, UsageError, "auto_map"),
        ({"_attn_implementation": "someone/kernel"}, UsageError, "_attn_implementation"),
    ],
)
def test_a_model_that_wants_code_is_refused(base, tmp_path, change, error, said):
    folder = shutil.copytree(base, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(error, match=said):
        LocalModel(folder, name="x")


@pytest.mark.slow
def test_what_is_missing_is_named(base, adapters, tmp_path):
    folder = shutil.copytree(base, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(NotFound, match="safetensors"):
        LocalModel(folder, name="x")
    with pytest.raises(NotFound, match="adapter_config"):
        LocalModel(base, tmp_path, name="x")
    other = shutil.copytree(adapters[0], tmp_path / "adapter")
    config = json.loads((other / "adapter_config.json").read_text())
    for change, said in (({"peft_type": "IA3"}, "IA3"), ({"bias": "all"}, "bias"), ({"modules_to_save": ["lm_head"]}, "modules_to_save")):
        (other / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(UsageError, match=said):
            LocalModel(base, other, name="x")
