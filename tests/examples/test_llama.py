"""The Llama/Mistral decoder beside transformers on the same weights, its cache beside recomputing, and its command line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoint
import decoder
import numpy as np
import pytest
from checkpoint import Config, RopeScaling
from decoder import Decoder

import devrt
from devrt import compare, nn

SMALL = Config(layers=3, dim=128, heads=8, kv_heads=2, head_dim=16, hidden=256, vocab=400, context=256)
EXAMPLE = Path(checkpoint.__file__).with_name("llama.py")
CONFIGS = {
    "grouped": SMALL,
    "one head a key, not tied": dataclasses.replace(SMALL, kv_heads=8, tie_embeddings=False),
    "wide heads, gelu, biases": dataclasses.replace(SMALL, head_dim=32, act="gelu_pytorch_tanh", attention_bias=True,
                                                    mlp_bias=True),
    "linear RoPE": dataclasses.replace(SMALL, rope_theta=5e5, rope_scaling=RopeScaling("linear", 4.0)),
    "llama3 RoPE": dataclasses.replace(SMALL, rope_theta=5e5, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32)),
    "window": dataclasses.replace(SMALL, window=20),
}


def tokens(count: int, c: Config = SMALL, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, c.vocab, count)]


def array(values: Any) -> devrt.Array:
    return devrt.asarray(np.array(values))


def layers(model: Decoder, given: list[int], pieces: list[int]) -> dict[str, devrt.Array]:
    """What every layer computes for `given`, cut in `pieces`, with the logits last."""
    cache, at = model.new_cache(256), 0
    parts: dict[str, list[devrt.Array]] = {}
    for size in pieces:
        hidden, cache = model.forward(array(given[at:at + size]), array(at), cache, span=decoder.span(at + size, 256),
                                      first=at == 0, tap=lambda name, x: parts.setdefault(name, []).append(x))
        parts.setdefault("logits", []).append(model.logits(hidden))
        at += size
    return {name: devrt.concat(p, axis=0) for name, p in parts.items()}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers, the witness of this test, is not installed")


def theirs(transformers: Any, folder: Path, given: list[int]) -> dict[str, Any]:
    """The same of transformers' own implementation."""
    import torch
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    found: dict[str, Any] = {}

    def keep(n: int, out: Any) -> None:
        found[f"model.layers.{n}"] = (out[0] if isinstance(out, tuple) else out).reshape(len(given), -1)
    for n, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda _, __, out, n=n: keep(n, out))
    with torch.inference_mode():
        logits = model(torch.tensor([given])).logits[0]
    return {**found, "logits": logits}


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_and_logits_are_those_of_transformers(name: str, transformers: Any, tmp_path: Path) -> None:
    c = CONFIGS[name]
    checkpoint.save(tmp_path, c, checkpoint.random_weights(c, seed=1))
    config, weights = checkpoint.load(tmp_path)
    assert config == c
    given = tokens(75)
    for pieces in ([75], [64, 8, 2, 1]):
        report = compare.report(layers(Decoder(config, weights), given, pieces), theirs(transformers, tmp_path, given))
        assert report.passed(log_l2=-5), str(report)


def test_a_wrong_layer_is_named(transformers: Any, tmp_path: Path) -> None:
    weights = checkpoint.random_weights(SMALL, seed=1)
    checkpoint.save(tmp_path, SMALL, weights)
    broken = weights | {"model.layers.1.mlp.up_proj.weight": weights["model.layers.1.mlp.up_proj.weight"] * 1.001}
    given = tokens(40)
    report = compare.report(layers(Decoder(SMALL, broken), given, [40]), theirs(transformers, tmp_path, given))
    assert not report.passed(log_l2=-5) and report.first_divergence is not None
    assert report.first_divergence.name == "model.layers.1"


def test_greedy_text_is_that_of_transformers(transformers: Any, tmp_path: Path) -> None:
    import torch
    checkpoint.save(tmp_path, SMALL, checkpoint.random_weights(SMALL, seed=2))
    config, weights = checkpoint.load(tmp_path)
    given = tokens(37)
    ours = list(Decoder(config, weights).generate(given, 150))
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        out = model.generate(torch.tensor([given]), max_new_tokens=150, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert ours == out[0, len(given):].tolist()


@pytest.mark.parametrize("dtype", [devrt.bfloat16, devrt.float16])
def test_narrow_weights_are_widened(dtype: devrt.DType) -> None:
    narrow = checkpoint.random_weights(SMALL, dtype=dtype)
    wide = {name: w.astype(devrt.float32).wait() for name, w in narrow.items()}
    a, b = (layers(Decoder(SMALL, w), tokens(20), [16, 4])["logits"].numpy() for w in (narrow, wide))
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("bits", "group", "within"), [(8, None, 0.05), (8, 32, 0.03), (4, 16, 0.5)])
def test_quantised_weights_are_their_codes_times_scales(bits: Any, group: int | None, within: float) -> None:
    weights = checkpoint.random_weights(SMALL)
    quantised = decoder.quantise(weights, bits, group)
    spread = {}
    for name, w in quantised.items():
        if isinstance(w, decoder.Quantised):
            codes = w.codes.numpy().astype(np.float32)
            n, k = codes.shape
            groups = codes.reshape(n, w.scales.shape[1], -1)
            spread[name] = devrt.asarray((groups * w.scales.numpy()[..., None]).reshape(n, k))
        else:
            spread[name] = w
    given = tokens(24)
    a, b, exact = (layers(Decoder(SMALL, w), given, [16, 8])["logits"].numpy() for w in (quantised, spread, weights))
    assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)
    assert np.linalg.norm(a - exact) < within * np.linalg.norm(exact)


def test_a_chunked_prompt_gives_the_same_text() -> None:
    model = Decoder(SMALL, checkpoint.random_weights(SMALL))
    given = tokens(90)
    whole = list(model.generate(given, 30))
    for cut in (1, 64, 89):
        cache = model.new_cache(256)
        _, position, cache = model.prefill(given[:cut], cache)
        rest, out = given[cut:], []
        for n, t in enumerate(rest):  # one by one, whatever the model would have said
            token, position, cache = model.step(array([t]), position, cache, end=cut + n + 1)
        for n in range(30):
            out.append(int(token.numpy()[0]))
            token, position, cache = model.step(token, position, cache, end=len(given) + n + 1)
        assert out == whole


def test_sampling_and_stopping() -> None:
    model = Decoder(SMALL, checkpoint.random_weights(SMALL))
    drawn = [list(model.generate(tokens(5), 40, temperature=1.5, top_k=50, seed=s)) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) > 10
    stop = drawn[0][7]
    until = drawn[0][:drawn[0].index(stop) + 1]
    assert list(model.generate(tokens(5), 40, temperature=1.5, top_k=50, seed=1, stop=[stop])) == until


def test_few_shapes_are_captured() -> None:
    model = Decoder(SMALL, checkpoint.random_weights(SMALL))
    list(model.generate(tokens(100), 100))
    assert model.shapes <= 5
    assert decoder.chunks(1000) == [512, 256, 128, 64, 32, 8] and sum(decoder.chunks(1523)) == 1523
    assert [decoder.span(n, 1000) for n in (1, 128, 129, 600, 1000)] == [128, 128, 256, 1000, 1000]


def test_what_is_refused() -> None:
    model = Decoder(SMALL, checkpoint.random_weights(SMALL))
    for prompt, more in (([], {}), ([400], {}), ([-1], {}), ([1] * 100, {"context": 120})):
        with pytest.raises(devrt.InvalidArgument):
            list(model.generate(prompt, 50, **more))


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def call(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(EXAMPLE), *args], capture_output=True, text=True, timeout=300)


TINY = ("--layers", "2", "--dim", "64", "--heads", "4", "--kv-heads", "2", "--hidden", "128", "--vocab", "300")


def test_the_command_prints_its_figures() -> None:
    done = call(*TINY, "--tokens", "20")
    assert done.returncode == 0 and not done.stderr
    assert "tokens/s" in done.stdout and "p50" in done.stdout and "p99" in done.stdout and "GB/s" in done.stdout
    figures = json.loads(call(*TINY, "--tokens", "20", "--weights", "int8", "--json").stdout)
    assert len(figures["tokens"]) <= 20 and figures["tokens_per_s"] > 0 and figures["weights"] == "int8 by rows"


def test_the_command_loads_a_folder(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, SMALL, checkpoint.random_weights(SMALL))
    expected = list(Decoder(SMALL, checkpoint.random_weights(SMALL)).generate([1, 2, 3], 10))
    done = call(str(tmp_path), "--prompt", "1 2 3", "--tokens", "10", "--ignore-eos", "--json")
    assert json.loads(done.stdout)["tokens"] == expected


def damage(folder: Path, how: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    if how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "corrupt header":
        weights.write_bytes(b"\x10" + weights.read_bytes()[1:])
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        (folder / "config.json").unlink()
        return
    elif how == "no JSON":
        (folder / "config.json").write_text("{")
        return
    elif how == "missing field":
        del config["hidden_size"]
    elif how == "another vocabulary":
        config["vocab_size"] = 500
    elif how == "heads":
        config["num_key_value_heads"] = 3
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("how", ["truncated weights", "corrupt header", "no weights", "no config", "no JSON", "missing field",
                                 "another vocabulary", "heads"])
def test_a_damaged_folder_is_one_sentence(how: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, SMALL, checkpoint.random_weights(SMALL))
    damage(tmp_path, how)
    done = call(str(tmp_path), "--tokens", "2")
    assert done.returncode == 3 and "Traceback" not in done.stderr and str(tmp_path) in done.stderr
    assert done.stderr.startswith("devrt: ") and "try: " in done.stderr


def test_eos_that_is_pad_is_noted(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, dataclasses.replace(SMALL, pad=2), checkpoint.random_weights(SMALL))
    done = call(str(tmp_path), "--tokens", "2")
    assert done.returncode == 0 and "pad token 2" in done.stderr


@pytest.mark.parametrize("args", [("--tokens", "0"), ("--prompt", "hello"), ("--prompt", "1 900"), ("--temperature", "-1"),
                                  ("--heads", "7"), ("--top-p", "2", "--temperature", "1"),
                                  ("--weights", "int4", "--group", "7"), ("--group", "4"), ("--seed", "-1"),
                                  ("--temperature", "1", "--top-k", "1000"), ("--temperature", "nan"), ("--prompt", "-1")])
def test_bad_arguments_are_one_sentence(args: tuple[str, ...]) -> None:
    done = call(*TINY, "--tokens", "3", *args)
    first, second = done.stderr.splitlines()
    assert done.returncode in (2, 3) and first.startswith("devrt: ") and second.startswith("  try: ")


def test_nn_has_what_the_decoder_needs() -> None:
    cos, sin = nn.rope_tables(devrt.arange(3), 4, frequencies=devrt.asarray(np.array([1.0, 0.5], np.float32)))
    assert np.allclose(cos.numpy(), np.cos(np.outer(np.arange(3), [1.0, 0.5])), atol=1e-6)
    with pytest.raises(devrt.InvalidArgument):
        nn.rope_tables(devrt.arange(3), 4, frequencies=devrt.ones(3))
    assert sin.shape == (3, 2)


def test_more_tokens_than_the_model_was_made_for_are_noted(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, SMALL, checkpoint.random_weights(SMALL))
    done = call(str(tmp_path), "--prompt", "1 2", "--tokens", str(SMALL.context), "--json")
    assert done.returncode == 0 and f"the {SMALL.context} positions" in done.stderr
    json.loads(done.stdout)


def test_the_shape_of_a_folder_is_not_an_option(tmp_path: Path) -> None:
    done = call(str(tmp_path), "--layers", "2")
    assert done.returncode == 2 and "a FOLDER has its own shape" in done.stderr


@pytest.mark.parametrize("uri", ["virtual:amd/gfx1100", "virtual:amd/gfx942", "virtual:nvidia/sm_90"])
def test_a_virtual_gpu_gives_the_cpus_text_and_bits(uri: str, tmp_path: Path) -> None:
    c = dataclasses.replace(SMALL, layers=2, dim=64, heads=4, hidden=128)
    checkpoint.save(tmp_path, c, checkpoint.random_weights(c))
    config, weights = checkpoint.load(tmp_path)
    there = devrt.safetensors.load(tmp_path / "model.safetensors", device=uri)
    given = tokens(20)
    models = Decoder(config, weights), Decoder(config, there)
    assert models[1].device == uri
    cpu, gpu = (list(m.generate(given, 12)) for m in models)
    assert cpu == gpu
    hidden = [m.forward(m.array(given), m.array(0), m.new_cache(64), span=64, first=True)[0] for m in models]
    assert hidden[0].numpy().tobytes() == hidden[1].numpy().tobytes()
