"""Checkpoints of Llama and Mistral decoders as Hugging Face lays them out: config.json and safetensors, both checked.

    config, weights = checkpoint.load("folder")                     # names and shapes as in the files
    weights = checkpoint.random_weights(config, seed=0)             # the same names and shapes
    checkpoint.save("folder", config, weights)                      # transformers.LlamaForCausalLM.from_pretrained reads it

Weights stay in the type they are stored in, and on the host they are the files' own pages.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import devrt
from devrt import safetensors
from devrt.device import InvalidArgument, PermissionDenied, Unsupported

Weights = dict[str, devrt.Array]
Shapes = dict[str, tuple[int, ...]]

MODEL_TYPES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_pytorch_tanh"}
DTYPES = (devrt.float32, devrt.float16, devrt.bfloat16)
EMBEDDING, HEAD, LAST_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
IGNORED = (".rotary_emb.inv_freq",)  # buffers that older files carry; RoPE's tables are computed
MAX_LAYERS = 10_000
TAKEN_AGAIN = "download the checkpoint again, all files of one revision"


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE's frequencies are stretched. `linear`: all divided by `factor`. `llama3`: those whose wave is longer than
    original_context / low_freq_factor tokens are divided by it, those shorter than original_context / high_freq_factor stay,
    and what lies between is interpolated."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class Config:
    """Shapes and constants of a decoder; the default has 100 million parameters.

    hidden: width of the MLP; window: how many positions back attention sees (Mistral), None for all; context: positions the
    model was made for; act: the MLP's activation as transformers calls it; eos: the tokens that end a text.
    """

    vocab: int = 32000
    dim: int = 768
    layers: int = 12
    heads: int = 12
    kv_heads: int = 4
    head_dim: int = 64
    hidden: int = 2048
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = True
    context: int = 2048
    window: int | None = None
    bos: int | None = 1
    eos: tuple[int, ...] = (2,)
    pad: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    act: str = "silu"

    def __post_init__(self) -> None:
        problems = [f"{name} is {getattr(self, name)}, not positive" for name in _POSITIVE
                    if (value := getattr(self, name)) is not None and not value > 0]
        if self.kv_heads > 0 and self.heads % self.kv_heads:
            problems.append(f"{self.heads} heads do not divide among {self.kv_heads} KV heads")
        if self.head_dim % 2:
            problems.append(f"head_dim is {self.head_dim}: RoPE turns pairs, so it must be even")
        marked = [("bos", self.bos), ("pad", self.pad), *(("eos", token) for token in self.eos)]
        problems += [f"the {name} token {token} is outside the vocabulary of {self.vocab}" for name, token in marked
                     if token is not None and not 0 <= token < self.vocab]
        if self.layers > MAX_LAYERS:
            problems.append(f"layers is {self.layers}, above {MAX_LAYERS}")
        if self.act not in ACTIVATIONS.values():
            problems.append(f"the activation {self.act!r} is none of {', '.join(ACTIVATIONS)}")
        if problems:
            raise InvalidArgument("this is no decoder's configuration", evidence=listed(problems), remedy="correct these fields")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed, but seldom meant."""
        if self.pad is not None and self.pad in self.eos:
            return (f"the pad token {self.pad} is an eos token too: padding ends a sequence, so mask it by length",)
        return ()

    @property
    def parameters(self) -> int:
        """How many numbers the weights hold; tied embeddings count once."""
        return sum(math.prod(shape) for shape in shapes(self).values())

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Config:
        """The Config of a Hugging Face config.json for LlamaForCausalLM or MistralForCausalLM.

        Raises InvalidArgument (missing or ill-typed fields, all at once; what does not fit together), PermissionDenied,
        Unsupported (another architecture, activation, RoPE type; quantised weights).
        """
        given = _read_json(Path(path))
        _check_supported(str(path), given)
        fields = _Fields(given)
        mistral = given["model_type"] == "mistral"
        dim, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
        head_dim = fields.optional("head_dim", fields.count)
        if head_dim is None and heads and dim % heads:
            fields.problems.append(f"hidden_size {dim} is not divisible by num_attention_heads {heads}")
        made: dict[str, Any] = {
            "vocab": fields.count("vocab_size"), "dim": dim, "layers": fields.count("num_hidden_layers"), "heads": heads,
            "kv_heads": fields.count("num_key_value_heads") if mistral
            else fields.optional("num_key_value_heads", fields.count) or heads,
            "head_dim": head_dim if head_dim is not None else dim // max(heads, 1),
            "hidden": fields.count("intermediate_size"), "norm_eps": fields.number("rms_norm_eps"),
            "tie_embeddings": fields.flag("tie_word_embeddings"), "context": fields.count("max_position_embeddings"),
            # transformers writes null for no window, and reads 4096 where the field is absent
            "window": fields.optional("sliding_window", fields.count, 4096) if mistral else None,
            "bos": fields.optional("bos_token_id", fields.token, 1), "eos": fields.tokens("eos_token_id", (2,)),
            "pad": fields.optional("pad_token_id", fields.token), "act": ACTIVATIONS[given.get("hidden_act", "silu")],
            "attention_bias": not mistral and fields.flag("attention_bias"), "mlp_bias": not mistral and fields.flag("mlp_bias"),
        }
        made["rope_theta"], made["rope_scaling"] = _rope(fields)
        fields.check(str(path))
        try:
            return cls(**made)
        except InvalidArgument as e:
            raise InvalidArgument(f"{path} describes no decoder", evidence=e.evidence, remedy=TAKEN_AGAIN) from e

    def to_json(self, dtype: devrt.DType = devrt.float32) -> dict[str, Any]:
        """The fields of a config.json that transformers reads. Raises Unsupported for a window together with biases."""
        kind = "llama" if self.window is None else "mistral"
        if self.window is not None and (self.attention_bias or self.mlp_bias):
            raise Unsupported("Mistral has no biases", remedy="use window=None, or no biases")
        fields: dict[str, Any] = {
            "architectures": [MODEL_TYPES[kind]], "model_type": kind, "vocab_size": self.vocab, "hidden_size": self.dim,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim, "intermediate_size": self.hidden, "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta, "rope_scaling": None, "tie_word_embeddings": self.tie_embeddings,
            "max_position_embeddings": self.context, "hidden_act": self.act, "bos_token_id": self.bos,
            "eos_token_id": self.eos[0] if len(self.eos) == 1 else list(self.eos) or None, "pad_token_id": self.pad,
            "torch_dtype": dtype.name}
        if kind == "mistral":
            fields["sliding_window"] = self.window
        else:
            fields |= {"attention_bias": self.attention_bias, "mlp_bias": self.mlp_bias}
        if (scaling := self.rope_scaling) is not None:
            fields["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
            if scaling.kind == "llama3":
                fields["rope_scaling"] |= {
                    "low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor,
                    "original_max_position_embeddings": scaling.original_context}
        return fields


_POSITIVE = ("vocab", "dim", "layers", "heads", "kv_heads", "head_dim", "hidden", "norm_eps", "rope_theta", "context", "window")


# ---------------------------------------------------------------------------------------------------------------------
# config.json


class _Fields:
    """Reads the fields of a JSON object and gathers what is wrong with them; a wrong field reads as a harmless value."""

    def __init__(self, given: Mapping[str, Any], prefix: str = "") -> None:
        self.given, self.prefix = given, prefix
        self.missing: list[str] = []
        self.problems: list[str] = []

    def check(self, path: str) -> None:
        """Raise InvalidArgument if anything was missing or wrong."""
        problems = ([f"missing: {listed(self.missing)}"] if self.missing else []) + self.problems
        if problems:
            raise InvalidArgument(f"{path} describes no decoder", evidence=listed(problems), remedy=TAKEN_AGAIN)

    def _value(self, name: str, fits: Callable[[Any], bool], wanted: str, fallback: Any) -> Any:
        if name not in self.given:
            self.missing.append(self.prefix + name)
        elif fits(self.given[name]):
            return self.given[name]
        else:
            self.problems.append(f"{self.prefix}{name} is {_short(self.given[name])}, not {wanted}")
        return fallback

    def count(self, name: str) -> int:
        return int(self._value(name, lambda v: _is_int(v) and v > 0, "a positive integer", 0))

    def token(self, name: str) -> int:
        return int(self._value(name, _is_int, "an integer", 0))

    def number(self, name: str) -> float:
        def fits(value: Any) -> bool:
            return (_is_int(value) or isinstance(value, float)) and 0 < value < 1e300
        return float(self._value(name, fits, "a positive number", 1.0))

    def flag(self, name: str) -> bool:
        """False where it is absent, as transformers has it for Llama and Mistral."""
        return name in self.given and bool(self._value(name, lambda v: isinstance(v, bool), "true or false", False))

    def tokens(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """One token, a list of them, or null for none."""
        if name not in self.given:
            return default
        value = self.given[name]
        listing = [] if value is None else value if isinstance(value, list) else [value]
        if not all(_is_int(v) for v in listing):
            self.problems.append(f"{self.prefix}{name} is {_short(value)}, not an integer or a list of integers")
            return ()
        return tuple(listing)

    def optional(self, name: str, read: Callable[[str], int], default: int | None = None) -> int | None:
        """`default` where the field is absent, None where it is null."""
        if name not in self.given:
            return default
        return None if self.given[name] is None else read(name)


def _check_supported(path: str, given: Mapping[str, Any]) -> None:
    """Raise Unsupported for what is a model, but not one of these."""
    kind, architectures = given.get("model_type"), given.get("architectures")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise Unsupported(f"{path}: model_type {_short(kind)} is not supported", evidence=f"supported: {', '.join(MODEL_TYPES)}",
                          remedy="use a Llama or a Mistral checkpoint")
    if architectures is not None and architectures != [MODEL_TYPES[kind]]:
        raise Unsupported(f"{path}: the architecture {_short(architectures)} is not supported",
                          evidence=f"supported for {kind}: {MODEL_TYPES[kind]}", remedy="use a language model's checkpoint")
    if given.get("quantization_config") is not None:
        raise Unsupported(f"{path}: the weights are quantised", evidence=_short(given["quantization_config"]),
                          remedy="use the checkpoint in bfloat16, float16 or float32; nn.quantise() makes int8 and int4 of it")
    act = given.get("hidden_act", "silu")
    if not isinstance(act, str) or act not in ACTIVATIONS:
        raise Unsupported(f"{path}: the activation {_short(act)} is not supported", remedy="use another checkpoint",
                          evidence=f"supported: {', '.join(ACTIVATIONS)}")


def _rope(fields: _Fields) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling` (before)."""
    given = fields.given
    key = "rope_parameters" if given.get("rope_parameters") is not None else "rope_scaling"
    entry = given.get(key)
    if entry is not None and not isinstance(entry, dict):
        fields.problems.append(f"{key} is {_short(entry)}, not an object")
        entry = None
    scaling = _Fields(entry or {}, f"{key}.")
    source = scaling if "rope_theta" in scaling.given else fields
    theta = source.number("rope_theta") if "rope_theta" in source.given else 10000.0
    made = _scaling(scaling, key)
    fields.missing += scaling.missing
    fields.problems += scaling.problems
    return theta, made


def _scaling(fields: _Fields, key: str) -> RopeScaling | None:
    kind = fields.given.get("rope_type", fields.given.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise Unsupported(f"RoPE of the type {_short(kind)} is not supported", remedy="use another checkpoint",
                          evidence=f"{key}; supported: default, linear, llama3")
    if fields.given.get("partial_rotary_factor", 1) != 1:
        raise Unsupported("RoPE on a part of each head is not supported", remedy="use another checkpoint",
                          evidence=f"partial_rotary_factor {_short(fields.given['partial_rotary_factor'])}")
    if kind == "default":
        return None
    factor = fields.number("factor")
    if kind == "linear":
        return RopeScaling("linear", factor)
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if not fields.missing and not fields.problems and low >= high:
        fields.problems.append(f"{key}: low_freq_factor {low} is not below high_freq_factor {high}")
    return RopeScaling("llama3", factor, low, high, fields.count("original_max_position_embeddings"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError as e:
        raise PermissionDenied(f"{path} can't be read", evidence=str(e.strerror), remedy="ask its owner") from e
    except OSError as e:
        raise InvalidArgument(f"{path} can't be read", evidence=str(e.strerror or e), remedy="check the path") from e
    except (ValueError, RecursionError) as e:
        raise InvalidArgument(f"{path} is no valid JSON in UTF-8", evidence=_short(str(e)), remedy=TAKEN_AGAIN) from e
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path} holds no JSON object", evidence=_short(found), remedy=TAKEN_AGAIN)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def shapes(c: Config) -> Shapes:
    """Every weight's name and shape, as Hugging Face has them: matrices are [out, in]. Tied embeddings have no head."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    matrices = {"self_attn.q_proj": (q, c.dim), "self_attn.k_proj": (kv, c.dim), "self_attn.v_proj": (kv, c.dim),
                "self_attn.o_proj": (c.dim, q), "mlp.gate_proj": (c.hidden, c.dim), "mlp.up_proj": (c.hidden, c.dim),
                "mlp.down_proj": (c.dim, c.hidden)}
    found: Shapes = {EMBEDDING: (c.vocab, c.dim)}
    for n in range(c.layers):
        at = f"model.layers.{n}"
        found[f"{at}.input_layernorm.weight"] = found[f"{at}.post_attention_layernorm.weight"] = (c.dim,)
        for name, shape in matrices.items():
            found[f"{at}.{name}.weight"] = shape
            if c.attention_bias if name.startswith("self_attn") else c.mlp_bias:
                found[f"{at}.{name}.bias"] = shape[:1]
    found[LAST_NORM] = (c.dim,)
    return found if c.tie_embeddings else found | {HEAD: (c.vocab, c.dim)}


def load(folder: str | os.PathLike[str]) -> tuple[Config, Weights]:
    """The checkpoint in a folder: config.json, and model.safetensors or its shards.

    Raises InvalidArgument, PermissionDenied and Unsupported as Config.from_file, safetensors.load_checkpoint and `check` do.
    """
    config = Config.from_file(Path(folder) / "config.json")
    return config, check(config, safetensors.load_checkpoint(folder), str(folder))


def check(config: Config, weights: Mapping[str, devrt.Array], where: str) -> Weights:
    """`weights` in the order of `shapes`, without what is not used. Raises InvalidArgument that names what is missing,
    unexpected, of another shape, or of no floating-point type."""
    wanted = shapes(config)
    given = {name: w for name, w in weights.items() if not name.endswith(IGNORED)}
    if config.tie_embeddings:
        given.pop(HEAD, None)  # some files hold the tied matrix twice
    problems = []
    if missing := [name for name in wanted if name not in given]:
        problems.append(f"missing: {listed(missing)}")
    if unexpected := [name for name in given if name not in wanted]:
        problems.append(f"unexpected: {listed(unexpected)}")
    both = [name for name in wanted if name in given]
    if wrong := [f"{name} is {list(given[name].shape)}, config.json says {list(wanted[name])}" for name in both
                 if given[name].shape != wanted[name]]:
        problems.append(f"wrong shape: {listed(wrong)}")
    if odd := [f"{name} is {given[name].dtype}" for name in both if given[name].dtype not in DTYPES]:
        problems.append(f"not {', '.join(d.name for d in DTYPES)}: {listed(odd)}")
    if problems:
        raise InvalidArgument(f"the weights in {where} do not fit its config.json", evidence="; ".join(problems),
                              remedy=TAKEN_AGAIN)
    return {name: given[name] for name in wanted}


def random_weights(config: Config, seed: int = 0, dtype: devrt.DType = devrt.float32) -> Weights:
    """Weights of the shapes of `config`: matrices and embeddings of variance 1/fan_in, so that activations stay of order
    1; norms near 1. The same on every device."""
    rng = np.random.default_rng(seed)
    made: Weights = {}
    for name, shape in shapes(config).items():
        x = rng.standard_normal(shape, dtype=np.float32)
        x *= np.float32(0.1 if "norm" in name else shape[-1] ** -0.5)
        x += np.float32("norm" in name)
        made[name] = devrt.asarray(x).astype(dtype).wait()
    return made


def save(folder: str | os.PathLike[str], config: Config, weights: Mapping[str, devrt.Array]) -> None:
    """Write config.json and model.safetensors; the folder is made. Raises what `check` and safetensors.save raise."""
    checked = check(config, weights, "memory")
    at = Path(folder)
    text = json.dumps(config.to_json(checked[EMBEDDING].dtype), indent=2) + "\n"
    try:
        at.mkdir(parents=True, exist_ok=True)
        safetensors.save(at / "model.safetensors", checked, {"format": "pt"})
        (at / "config.json").write_text(text)
    except PermissionError as e:
        raise PermissionDenied(f"{at} can't be written", evidence=str(e.strerror), remedy="name a folder you may write to") from e
    except OSError as e:
        raise InvalidArgument(f"{at} can't be written", evidence=str(e.strerror or e), remedy="name another folder") from e


def listed(items: list[str]) -> str:
    """At most five, and how many more there are."""
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
