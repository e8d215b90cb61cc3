"""Models written out for other programs, each loaded by the program that it is for: peft, transformers, llama.cpp."""

from __future__ import annotations

import json
import shlex
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

import tiny
from tunesmith.api.serve import temporary
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.chat import Renderer
from tunesmith.core.errors import GateRefused
from tunesmith.core.progress import Silent
from tunesmith.core.seal import check_folder
from tunesmith.deploy.export.k_quants import kind_of, packed
from tunesmith.deploy.parity import END, SideRow, TokenPlace, agreement
from tunesmith.flow.evaluation.run import bench
from tunesmith.flow.parity import ParityAsk, parity
from tunesmith.flow.parity_gate import gate

IDS = [[1, 40, 41, 90, 7, 200, 13, 2, 1, 55, 60]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base in bfloat16 with an adapter; one in float32, of tied matrices, with an adapter that changes the output layer and one that does
    not; rows to answer."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("exports")
    stored_in(tiny.model(folder / "base"), "bfloat16")
    tiny.adapter(folder / "base", folder / "adapter")
    tied = tiny.model(folder / "tied", seed=3)
    settings = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    save_file({name: value for name, value in tensors(tied).items() if "lm_head" not in name}, tied / "model.safetensors", {"format": "pt"})
    tiny.adapter(tied, folder / "head", target_modules=["q_proj", "lm_head"])
    tiny.adapter(tied, folder / "low")
    rows = [
        {"messages": [{"role": "user", "content": f"Who signed {word}?"}, {"role": "assistant", "content": "Nobody did."}]}
        for word in ("it", "in Ohio", "York")
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def stored_in(folder: Path, dtype: str) -> None:
    """Save a model's weights again in the type, but for one norm that stays in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, p in model.named_parameters():
        p.data = p.data.to(torch.float32 if "layers.0.input_layernorm" in name else getattr(torch, dtype))
    for path in folder.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder)


@pytest.fixture
def call(place, capsys, monkeypatch):
    monkeypatch.chdir(place)

    def run(*words: str) -> tuple[int, dict, str]:
        code = guarded(app, [*words, "--json"])
        printed = capsys.readouterr()
        return code, json.loads(printed.out.splitlines()[-1]), printed.err

    return run


def logits(folder: Path, adapter: Path | None = None):
    """What transformers (and peft) compute from folders, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(IDS)).logits[0]


def tensors(folder: Path) -> dict:
    from safetensors.torch import load_file

    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@pytest.mark.slow
def test_an_adapter_is_what_peft_loads(place, call):
    import torch

    code, written, err = call("export", "base+adapter", "--to", "adapter", "--out", "out/adapter")
    assert code == 0, err
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {*written["files"]}
    assert torch.equal(logits(place / "base", place / "out/adapter"), logits(place / "base", place / "adapter"))
    assert json.loads((place / "out/adapter/adapter_config.json").read_text())["base_model_name_or_path"] == str(place / "base")
    check_folder(place / "out/adapter")


@pytest.mark.slow
def test_a_merged_model_is_base_plus_adapter_cast_once(place, call):
    import torch

    code, _, err = call("export", "base+adapter", "--to", "merged", "--out", "out/merged")
    assert code == 0, err
    base, merged, adapter = (tensors(place / name) for name in ("base", "out/merged", "adapter"))
    assert {name: value.dtype for name, value in merged.items()} == {name: value.dtype for name, value in base.items()}
    changed = 0
    for name, value in base.items():
        low = "base_model.model." + name.removesuffix(".weight") + ".lora_{}.weight"
        if low.format("A") not in adapter:
            assert torch.equal(merged[name], value), name
            continue
        exact = value.double() + 16 / 4 * adapter[low.format("B")].double() @ adapter[low.format("A")].double()
        assert ((merged[name].double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-6).all(), name
        changed += 1
    assert changed == 14, "every linear layer but the last"
    config = json.loads((place / "out/merged/config.json").read_text())
    assert (config["dtype"], config["rope_theta"]) == ("bfloat16", config["rope_parameters"]["rope_theta"])
    wide = logits(place / "base", place / "adapter")
    assert (logits(place / "out/merged") - wide).abs().max() < 0.05 * wide.abs().max()
    check_folder(place / "out/merged")


@pytest.mark.slow
def test_an_output_layer_that_the_adapter_changes_is_untied(place, call):
    import torch

    code, _, err = call("export", "tied+head", "--to", "merged", "--out", "out/untied")
    assert code == 0, err
    written, embedding = tensors(place / "out/untied"), tensors(place / "tied")["model.embed_tokens.weight"]
    assert torch.equal(written["model.embed_tokens.weight"], embedding)
    assert not torch.equal(written["lm_head.weight"], embedding)
    torch.testing.assert_close(logits(place / "out/untied"), logits(place / "tied", place / "head"), rtol=1e-4, atol=1e-4)


def test_whole_weights_are_copied(place, call):
    code, _, err = call("export", "base", "--to", "merged", "--out", "out/whole")
    assert code == 0, err
    assert (place / "out/whole/model.safetensors").read_bytes() == (place / "base/model.safetensors").read_bytes()


@pytest.mark.slow
def test_what_cannot_be_exported_is_one_clear_error(place, call):
    (place / "there").mkdir(exist_ok=True)
    for words, expected in {
        ("base", "--to", "mergde", "--out", "new"): "did you mean 'merged'?",
        ("base", "--to", "merged", "--out", "there"): "'there' is already there",
        ("base", "--to", "adapter", "--out", "new"): "has no adapter",
        ("echo", "--to", "merged", "--out", "new"): "has no weights here",
        ("http://127.0.0.1:1/v1#m", "--to", "merged", "--out", "new"): "has no weights here",
        ("nobody", "--to", "merged", "--out", "new"): "no model 'nobody'",
    }.items():
        code, _, err = call("export", *words)
        assert (code, expected in err) == (2, True), f"{words}: {err}"
    assert not (place / "new").exists()
    assert not list(place.glob(".*.part"))


@pytest.mark.slow
def test_an_adapter_without_all_of_its_tensors_leaves_nothing(place, call):
    from safetensors.torch import save_file

    shutil.copytree(place / "adapter", place / "partial")
    held = tensors(place / "adapter")
    save_file(
        {name: value for name, value in held.items() if "layers.1.mlp.up_proj" not in name}, place / "partial/adapter_model.safetensors"
    )
    code, _, err = call("export", "base+partial", "--to", "merged", "--out", "new")
    assert (code, "does not fit the base: 2 of its tensors" in err) == (2, True), err
    assert not (place / "new").exists()
    assert not list(place.glob(".*.part"))


@pytest.mark.slow
def test_every_way_to_compute_a_model_agrees(place, call):
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is not installed")
    code, shown, err = call("parity", "tied+low", "--data", "rows.jsonl", "--max-tokens", "12", "--gguf", "f16,q4_K_M")
    assert code == 0, (shown, err)
    *ours, half, four = shown["lines"]
    assert [line["side"] for line in ours] == ["training", "merged", "served over HTTP"], shown["left_out"]
    assert (half["side"], half["same_prompts"], half["passed"], half.get("judged", True)) == ("gguf f16", 3, True, True), half
    assert (four["side"], four["same_prompts"], four["judged"]) == ("gguf q4_K_M", 3, False)
    assert 0 < half["largest"] < four["largest"], "fewer bits, further away"
    for line in ours:
        assert (line["same_prompts"], line["same_answers"] + line.get("ties", 0), line["passed"]) == (3, 3, True), line
        assert 0 < line["largest"] < 1e-4, "computed apart"


@pytest.mark.slow
def test_a_server_with_another_adapter_is_found_with_both_log_probabilities(place, monkeypatch):
    monkeypatch.chdir(place)
    tiny.adapter(place / "tied", place / "other", seed=9)

    @contextmanager
    def wrong(models, log):
        with temporary({name: model.with_adapter(place / "other", name) for name, model in models.items()}, log) as url:
            yield url

    with bench(Path("tunesmith.yaml"), Silent()) as at:
        outcome = parity("tied+low", ParityAsk(data="rows.jsonl", limit=2, max_tokens=8), at, wrong)
        with pytest.raises(GateRefused, match="'tied\\+low' is not deployed"):
            gate("tied+low", at, wrong, data="rows.jsonl")
    training, merged, served = outcome.lines
    assert (training.passed, merged.passed, served.passed, outcome.passed) == (True, True, False, False)
    assert served.first.tie is False
    assert f"{served.first.reference[0]:.5f}" in outcome.text()
    assert served.first.side[1] > (served.first.side[0] or -99), "it prefers its own token"


def row(*places: TokenPlace, prompt=(1, 2)) -> SideRow:
    return SideRow(row="r", prompt=prompt, places=places)


def test_a_tie_is_no_difference_and_another_prompt_is_one():
    wanted = row(TokenPlace(chosen="a", best=-0.7, expected=-0.7, others={"b": -0.7001}), TokenPlace(chosen=END, best=-0.1, expected=-0.1))
    swapped = row(TokenPlace(chosen="b", best=-0.7, expected=-0.7001))
    line = agreement("x", "float32", [wanted], [swapped])
    assert (line.ties, line.same_answers, line.passed) == (1, 0, True)
    assert not agreement("x", "float32", [wanted], [row(TokenPlace(chosen="b", best=-0.5, expected=-0.9))]).passed, "it is sure of another"
    assert not agreement("x", "float32", [wanted], [row(TokenPlace(chosen="c", best=-0.7, expected=-0.7))]).passed, "nobody else says c"
    assert not agreement("x", "float32", [wanted], [row(*wanted.places, prompt=(1, 3))]).passed
    assert agreement("x", "float32", [wanted], [row(*wanted.places, prompt=2)]).passed
    assert not agreement("x", "float32", [wanted], [row(TokenPlace(chosen="a", best=-0.6, expected=-0.6))]).passed, (
        "the same answer, another model"
    )
    early = row(TokenPlace(chosen=END, best=None, expected=None))
    assert not agreement("x", "float32", [wanted], [early]).passed, "it ends at once"
    assert agreement("x", "float32", [wanted], [row(*wanted.places)], judged=False).passed


TEXTS = [
    f"<|start|>user\nWho signed it? 1 2 é 🙂<|end|><|start|>assistant\n{begin}"
    for begin in ("", "The", "Nobody did", "yes or", "in New", "June", "1 2", "Who", "as far as")
]


@pytest.mark.slow
def test_the_card_has_what_was_measured_of_exactly_these_weights(place, call):
    code, kept, err = call("eval", "tied+low", "--data", "rows.jsonl", "--max_tokens", "4")
    assert code == 0, err
    for word, out in (("tied+low", "out/measured"), ("tied+head", "out/unmeasured")):
        code, _, err = call("export", word, "--to", "adapter", "--out", out)
        assert code == 0, err
    interval = kept["evaluations"][0]["intervals"]["exact_match"]
    line = f"| 3 | exact_match | 0 | {interval['low']:.4g} to {interval['high']:.4g} (95%) |"
    assert line in (place / "out/measured/README.md").read_text()
    assert "No evaluation of these weights is kept" in (place / "out/unmeasured/README.md").read_text()


def nearest(file: Path, text: str) -> tuple[int, dict[int, float]]:
    """How many tokens llama.cpp reads the text as, and the log-probabilities of the next token."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is not installed")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = str(file), 128, 1, False, 0
    params.cpuparams.n_threads = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    answer = xllamacpp.Server(params).handle_completions({"prompt": text, "n_predict": 1, "temperature": 0, "n_probs": 8})
    answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
    assert answer["choices"][0]["logprobs"], (file, text, answer["choices"])
    (token,) = answer["choices"][0]["logprobs"]["content"]
    return answer["usage"]["prompt_tokens"], {entry["id"]: entry["logprob"] for entry in token["top_logprobs"]}


def scaled(base: Path, folder: Path, rope: dict) -> None:
    """The model with other rotary positions."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": {**config["rope_parameters"], **rope}}))


@pytest.mark.slow
def test_llama_cpp_computes_what_transformers_does(place, call):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for kind in ("qwen2", "qwen3"):
        tiny.model(place / kind, kind)
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    scaled(place / "tied", place / "llama3", llama3)
    for word, target, most in [
        ("tied", "gguf", 0.06), ("tied", "gguf-q8_0", 0.6), ("tied", "gguf-q4_K_M", 4.0), ("tied+low", "gguf", 0.06), ("llama3", "gguf", 0.06),
        ("qwen2", "gguf", 0.06), ("qwen3", "gguf", 0.06),
    ]:  # fmt: skip
        code, _, err = call("export", word, "--to", target, "--out", f"out/{word}-{target}")
        assert code == 0, err
        base, _, adapter = word.partition("+")
        model = AutoModelForCausalLM.from_pretrained(place / base, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, place / adapter) if adapter else model
        renderer = Renderer.load(place / base)
        for text in TEXTS:  # llama.cpp gives no log-probabilities of an end, or of half a letter: the first text that goes on with a word
            ids = renderer.encode(text)
            with torch.no_grad():
                expected = model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            if renderer.decode([int(expected.argmax())]).strip().isascii() and renderer.decode([int(expected.argmax())]).strip():
                break
        count, seen = nearest(place / f"out/{word}-{target}/model.gguf", text)
        assert count == len(ids), word
        assert int(expected.argmax()) in seen
        for number, value in seen.items():
            assert abs(value - float(expected[number])) < most, (word, target, number)


@pytest.mark.slow
def test_what_gguf_cannot_hold_is_refused_by_name(place, call):
    tiny.model(place / "gemma2", "gemma2")
    tiny.model(place / "mistral", "mistral")
    scaled(place / "tied", place / "yarn", {"rope_type": "yarn", "factor": 4.0})
    scaled(place / "tied", place / "linear", {"rope_type": "linear", "factor": 4.0})
    shutil.copytree(place / "tied", place / "spaced")
    tree = json.loads((place / "spaced/tokenizer.json").read_text())
    (place / "spaced/tokenizer.json").write_text(
        json.dumps({**tree, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, tree["pre_tokenizer"]]}})
    )
    for word, expected in {
        "gemma2": "the family 'gemma2'",
        "mistral": "the window of 12 tokens",
        "linear": "rotary positions of type 'linear'",
        "yarn": "rotary positions of type 'yarn'",
        "spaced": "splits texts by WhitespaceSplit then bytes",
    }.items():
        code, _, err = call("export", word, "--to", "ollama", "--out", "new")
        assert (code, expected in err, (place / "new").exists()) == (2, True, False), err


@pytest.mark.slow
def test_the_files_of_servers_name_the_model_that_lies_beside_them(place, call):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for target in ("ollama", "vllm", "kubernetes", "kserve", "ray-serve"):
        code, _, err = call("export", "base+adapter", "--to", target, "--out", f"out/{target}")
        assert code == 0, err
        check_folder(place / "out" / target)
    words = shlex.split((place / "out/vllm/serve.sh").read_text().splitlines()[-1])
    assert words[1:3] == ["vllm", "serve"]
    assert [words[words.index(option) + 1] for option in ("--served-model-name", "--dtype", "--max-model-len")] == [
        "base+adapter",
        "bfloat16",
        "256",
    ]
    assert (place / "out/vllm/model/model.safetensors").read_bytes() == (place / "out/kubernetes/model/model.safetensors").read_bytes()
    lines = (place / "out/kubernetes/Dockerfile").read_text().splitlines()
    assert json.loads(lines[-1].removeprefix("ENTRYPOINT "))[:3] == ["vllm", "serve", "/model"]
    deployment, service = yaml.safe_load_all((place / "out/kubernetes/kubernetes.yaml").read_text())
    for manifest in (deployment, service):
        kubernetes_validate.validate(manifest, "1.36", strict=True)
        assert manifest["metadata"]["name"] == "base-adapter"
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    inference = yaml.safe_load((place / "out/kserve/kserve.yaml").read_text())
    assert (inference["kind"], inference["metadata"]["name"]) == ("InferenceService", "base-adapter")
    predictor = {key: value for key, value in inference["spec"]["predictor"].items() if not key.endswith("Replicas")}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "base-adapter"}, "spec": predictor}
    kubernetes_validate.validate(pod, "1.36", strict=True)
    (application,) = yaml.safe_load((place / "out/ray-serve/serve.yaml").read_text())["applications"]
    (model,) = application["args"]["llm_configs"]
    assert model["model_loading_config"] == {"model_id": "base+adapter", "model_source": "/model"}
    assert model["engine_kwargs"] == {"dtype": "bfloat16", "max_model_len": 256}
    assert (place / "out/ray-serve/model/model.safetensors").is_file()
    modelfile = (place / "out/ollama/Modelfile").read_text().splitlines()
    assert modelfile == ["FROM ./model.gguf", 'PARAMETER stop "<|end|>"', "PARAMETER num_ctx 256"]


def test_four_bits_are_laid_out_as_llama_cpp_lays_them_out():
    import numpy as np

    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel is not installed")
    gguf = pytest.importorskip("gguf")
    data = np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)
    for kind, most in (("Q4_K", 0.09), ("Q5_0", 0.06), ("Q6_K", 0.025), ("Q8_0", 0.006)):
        stored = packed(data, kind)
        back = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[kind])
        assert np.sqrt(np.mean((back - data) ** 2)) < most, kind
    kinds = [kind_of(f"blk.{layer}.attn_v.weight", 512, 16, tied=False) for layer in range(16)]
    assert "".join(kind[1] for kind in kinds) == "6644644644644666", "the first and last eighth, and every third between"
    assert [
        kind_of("token_embd.weight", width, 16, tied=tied) for width, tied in ((512, True), (576, True), (576, False), (40, False))
    ] == [
        "Q6_K",
        "Q8_0",
        "Q5_0",
        "F16",
    ]
