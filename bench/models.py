"""Models on devrt beside PyTorch, in one run: tokens a second, bytes of weights a second, and how far results are apart.

    python bench/models.py                    all cases
    python bench/models.py --only rwkv        cases whose name contains it (may be given several times)
    python bench/models.py --quick            fewer rounds
    python bench/models.py --write            bench/results/models.md and .json

PyTorch has two threads, like devrt. In each round every peer has one turn, so that noise hits all alike. Before it is timed,
every peer's first result is compared with a reference: where a case names no exact one, devrt's.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parent))

from report import RESULTS, THREADS, Progress, destination, environment, heading, load, record, write

# isort: split
import checkpoint
import decoder
import encoder
import numpy as np
import rwkv
from tabulate import tabulate

import devrt
from devrt import nn
from devrt.benchmark.measure import duration, interleave

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("models.py: PyTorch is not installed -> pip install torch transformers")

Row = dict[str, Any]
Call = Callable[[], Any]
EXACT = "exact"  # the peer that is no peer: it is called once and every result is compared with its own


@dataclass(frozen=True)
class Case:
    """One comparison.

    build: makes {peer: a call that does the work once and returns its result, or why the peer isn't here}. "devrt" must be
           there; EXACT may be. What calls carry from one to the next (a model's state) must be the peer's own.
    tokens, nbytes, flops: of one call; nbytes are those that must cross the memory interface (weights), 0 where that is not
           what limits a call, and `reads` has them for peers that read another number.
    within: the relative L2 distance from the reference that counts as the same result.
    """

    name: str
    build: Callable[[], Mapping[str, Call | str]]
    tokens: float
    nbytes: float = 0.0
    flops: float = 0.0
    reads: Mapping[str, float] = field(default_factory=dict)
    within: float = 1e-4


def values(result: Any) -> np.ndarray:
    """A peer's result as float64."""
    if isinstance(result, torch.Tensor):
        result = result.detach().double().numpy()
    return np.asarray(result, np.float64).reshape(-1)


def apart(result: Any, reference: np.ndarray) -> dict[str, float]:
    """Distances from the reference: L2 relative to the reference's, and the largest element's relative to its mean square's
    root."""
    difference = values(result) - reference
    size = float(np.sqrt((reference**2).mean())) or 1.0
    return {"l2": float(np.sqrt((difference**2).mean())) / size, "max": float(np.abs(difference).max()) / size}


def rows_of(case: Case, rounds: int, tick: Callable[[], object]) -> list[Row]:
    """Build, compare and measure one case: a row a peer."""
    peers = dict(case.build())
    exact = peers.pop(EXACT, None)
    calls = {who: call for who, call in peers.items() if callable(call)}
    first = {who: call() for who, call in calls.items()}
    reference = values(exact() if callable(exact) else first["devrt"])
    distance = {who: apart(result, reference) for who, result in first.items()}
    found = interleave(calls, rounds=rounds, progress=tick)
    ours = found["devrt"]
    rows = []
    for who, call in peers.items():
        row: Row = {"case": case.name, "who": who, "tokens": case.tokens, "flops": case.flops,
                    "nbytes": case.reads.get(who, case.nbytes)}
        if isinstance(call, str):
            rows.append(row | {"missing": call})
            continue
        m = found[who]
        rows.append(row | {"found": asdict(m), **distance[who], "same": distance[who]["l2"] <= case.within,
                           "devrt_is_faster": m.median / ours.median, "by_minima": m.fastest / ours.fastest})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Models


def shared(w: Mapping[str, devrt.Array]) -> dict[str, torch.Tensor]:
    """The same memory as PyTorch tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's view is read-only, which tensors can't be; nobody writes
        return {name: torch.from_numpy(a.numpy()) for name, a in w.items()}


def weight_bytes(w: Mapping[str, devrt.Array], without: str) -> float:
    return float(sum(a.nbytes for name, a in w.items() if without not in name))


TorchState = list[list[torch.Tensor]]


def rwkv_torch(c: rwkv.Config, w: Mapping[str, torch.Tensor], token: int, state: TorchState) -> tuple[torch.Tensor, TorchState]:
    """examples/rwkv.py's step in PyTorch, operation by operation."""
    def norm(x: torch.Tensor, at: str) -> torch.Tensor:
        return F.layer_norm(x, (c.dim,), w[f"rwkv.{at}.weight"], w[f"rwkv.{at}.bias"], c.eps)
    x = norm(w["rwkv.embeddings.weight"][token], "blocks.0.pre_ln")
    after = []
    for layer, (channel, time, numerator, denominator, exponent) in enumerate(state):
        at = f"rwkv.blocks.{layer}"

        def mixed(name: str, h: torch.Tensor, before: torch.Tensor, at: str = at) -> torch.Tensor:
            part, _, kind = name.partition(".")
            mix = w[f"{at}.{part}.time_mix_{kind}"].reshape(-1)
            return F.linear(torch.lerp(before, h, mix), w[f"{at}.{name}.weight"])
        time, before = norm(x, f"blocks.{layer}.ln1"), time
        r, k, v = (mixed(f"attention.{n}", time, before) for n in ("receptance", "key", "value"))
        w_, u = -torch.exp(w[f"{at}.attention.time_decay"]), w[f"{at}.attention.time_first"]
        top = torch.maximum(exponent, u + k)
        old, new = torch.exp(exponent - top), torch.exp(u + k - top)
        mean = (old * numerator + new * v) / (old * denominator + new)
        top = torch.maximum(exponent + w_, k)
        old, new = torch.exp(exponent + w_ - top), torch.exp(k - top)
        sums = [old * numerator + new * v, old * denominator + new, top]
        x = x + F.linear(torch.sigmoid(r) * mean, w[f"{at}.attention.output.weight"])
        channel, before = norm(x, f"blocks.{layer}.ln2"), channel
        r, k = (mixed(f"feed_forward.{n}", channel, before) for n in ("receptance", "key"))
        x = x + torch.sigmoid(r) * F.linear(torch.square(torch.relu(k)), w[f"{at}.feed_forward.value.weight"])
        after.append([channel, time, *sums])
    return F.linear(norm(x, "ln_out"), w["head.weight"]), after


def rwkv_step(c: rwkv.Config) -> Case:
    """One token at a time, the state carried on."""
    w = rwkv.random_weights(c)
    token = 17

    def build() -> dict[str, Call | str]:
        step = devrt.capture(lambda token, state: rwkv.step(c, w, token, state))
        kept, at = [rwkv.empty_state(c)], devrt.asarray(np.array(token))
        t = shared(w)

        def ours() -> devrt.Array:
            logits, kept[0] = step(at, kept[0])
            return logits.wait()

        def stepping(step: Callable[[TorchState], tuple[torch.Tensor, TorchState]]) -> Call:
            state = [[torch.from_numpy(a.numpy().copy()) for a in layer] for layer in rwkv.empty_state(c)]

            def run() -> torch.Tensor:
                logits, state[:] = step(state)
                return logits
            return run

        def by_hand(state: TorchState) -> tuple[torch.Tensor, TorchState]:
            return rwkv_torch(c, t, token, state)
        return {"devrt": ours, "torch, by hand": stepping(by_hand), "torch.compile": compiled(by_hand, stepping),
                "transformers": rwkv_hugging(c, t, [token])}
    return Case(f"RWKV-4 {c.layers} x {c.dim}, one token", build, tokens=1, nbytes=weight_bytes(w, "embeddings"))


def compiled(function: Callable[..., Any], calling: Callable[[Callable[..., Any]], Call]) -> Call | str:
    """The function as torch.compile makes it, tried once: it needs a C++ compiler."""
    fast = torch.compile(function, dynamic=False)
    try:
        calling(fast)()
    except Exception as e:  # whatever its compiler says is the answer
        return f"{type(e).__name__}: {str(e).splitlines()[0]}"
    return calling(fast)


def rwkv_prompt(c: rwkv.Config, count: int) -> Case:
    """`count` tokens read in chunks, the state carried on."""
    w = rwkv.random_weights(c)
    tokens = [(7 * n + 1) % c.vocab for n in range(count)]

    def build() -> dict[str, Call | str]:
        read = devrt.capture(lambda tokens, state: rwkv.forward(c, w, tokens, state))
        kept = [rwkv.empty_state(c)]
        pieces = [devrt.asarray(np.array(tokens[at:at + rwkv.CHUNK])) for at in range(0, count, rwkv.CHUNK)]

        def ours() -> devrt.Array:
            for piece in pieces:
                logits, kept[0] = read(piece, kept[0])
            return logits.wait()
        return {"devrt": ours, "transformers": rwkv_hugging(c, shared(w), tokens)}
    return Case(f"RWKV-4 {c.layers} x {c.dim}, prompt of {count} tokens", build, tokens=count)


def rwkv_hugging(c: rwkv.Config, t: Mapping[str, torch.Tensor], text: list[int]) -> Call | str:
    """Logits after the last of the tokens, the state carried from call to call."""
    try:
        import transformers
    except ImportError:
        return "transformers is not installed"
    config = transformers.RwkvConfig(vocab_size=c.vocab, hidden_size=c.dim, num_hidden_layers=c.layers, rescale_every=0,
                                     intermediate_size=c.hidden, layer_norm_epsilon=c.eps)
    with torch.device("meta"):  # no weights of its own
        model = transformers.RwkvForCausalLM(config)
    model.load_state_dict(dict(t), assign=True)
    model.eval()
    tokens = torch.tensor([text])
    kept: list[Any] = [None]

    def run() -> torch.Tensor:
        said = model(tokens, state=kept[0], use_cache=True, logits_to_keep=1)
        kept[0] = said.state
        return said.logits[0, -1]
    return run


PROMPT, TEXT = 64, 192  # decoding goes on from one to the other, and starts again


def llama_hugging(c: checkpoint.Config, w: Mapping[str, devrt.Array]) -> Any:
    """transformers' own model over the same memory, or why it isn't here."""
    try:
        import transformers
    except ImportError:
        return "transformers is not installed"
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**c.to_json()))
    model.load_state_dict(shared(w), assign=True, strict=False)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its tables have no values on the meta device
    return model.eval().requires_grad_(False)


def llama_decode(c: checkpoint.Config, kind: str) -> Case:
    """One token after another, the KV cache carried on; weights of `kind` against float32 ones."""
    w = checkpoint.random_weights(c)
    quantised = {"int8": lambda: decoder.quantise(w, 8), "int4": lambda: decoder.quantise(w, 4, 64),
                 "bfloat16": lambda: {name: a.astype(devrt.bfloat16).wait() for name, a in w.items()}}
    models = {"devrt": decoder.Decoder(c, w)}
    if kind != "float32":
        models = {"devrt": decoder.Decoder(c, quantised[kind]()), "devrt float32": models["devrt"]}
    tokens = [(7 * n + 1) % c.vocab for n in range(PROMPT)]

    def stepping(model: decoder.Decoder) -> Call:
        def traced(tokens: devrt.Array, position: devrt.Array, cache: decoder.Cache) -> tuple[devrt.Array, decoder.Cache]:
            hidden, cache = model.forward(tokens, position, cache, span=decoder.span(TEXT, TEXT))
            return model.logits(hidden), cache
        step = devrt.capture(traced, donate=("cache",))
        _, _, cache = model.prefill(tokens, model.new_cache(TEXT))
        kept, at, one = [cache], itertools.cycle(range(PROMPT, TEXT)), devrt.asarray(np.array([17]))
        positions = [devrt.asarray(np.array(n)) for n in range(TEXT)]

        def run() -> devrt.Array:
            logits, kept[0] = step(one, positions[next(at)], kept[0])
            return logits.wait()
        return run

    def build() -> dict[str, Call | str]:
        return {**{who: stepping(model) for who, model in models.items()}, "transformers": hugging()}

    def hugging() -> Call | str:
        model = llama_hugging(c, w)
        if isinstance(model, str):
            return model
        import transformers
        cache, one = transformers.DynamicCache(config=model.config), torch.tensor([[17]])
        model(torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)

        def run() -> torch.Tensor:
            if cache.get_seq_length() >= TEXT:
                cache.crop(PROMPT)
            return model(one, past_key_values=cache, use_cache=True).logits[0, -1]
        return run
    exact = 4.0 * sum(a.size for a in w.values())
    return Case(f"Llama {c.layers} x {c.dim}, one token, {kind} weights", build, tokens=1,
                nbytes=float(models["devrt"].bytes_per_token), reads={"devrt float32": exact, "transformers": exact},
                within={"float32": 1e-4, "bfloat16": 0.03, "int8": 0.1, "int4": 0.8}[kind])


def llama_prompt(c: checkpoint.Config, count: int) -> Case:
    """A prompt read at once into an empty cache."""
    w = checkpoint.random_weights(c)
    text = [(7 * n + 1) % c.vocab for n in range(count)]

    def build() -> dict[str, Call | str]:
        model = decoder.Decoder(c, w)

        def traced(tokens: devrt.Array, cache: decoder.Cache) -> tuple[devrt.Array, decoder.Cache]:
            hidden, cache = model.forward(tokens, devrt.asarray(np.array(0)), cache, span=count, first=True)
            return model.logits(hidden[count - 1:]), cache
        read = devrt.capture(traced, donate=("cache",))
        kept, given = [model.new_cache(count)], devrt.asarray(np.array(text))

        def ours() -> devrt.Array:
            logits, kept[0] = read(given, kept[0])
            return logits.wait()
        hugging = llama_hugging(c, w)
        theirs = torch.tensor([text])
        return {"devrt": ours, "transformers": hugging if isinstance(hugging, str) else
                lambda: hugging(theirs, use_cache=True, logits_to_keep=1).logits[0, -1]}
    matrices = sum(a.size for name, a in w.items() if a.ndim == 2 and name != checkpoint.EMBEDDING)
    attention = 2 * 2 * c.layers * c.heads * c.head_dim * count * (count + 1) / 2
    return Case(f"Llama {c.layers} x {c.dim}, prompt of {count} tokens", build, tokens=count,
                flops=2.0 * count * matrices + attention + 2.0 * c.vocab * c.dim)


def encoded(c: encoder.Config, batch: int, length: int) -> Case:
    """A batch of full sequences through all layers."""
    def build() -> dict[str, Call | str]:
        w = encoder.random_weights(c)
        run = devrt.capture(lambda x: encoder.forward(c, w, x))
        x = np.random.default_rng(1).standard_normal((batch, length, c.dim), dtype=np.float32)
        layer = torch.nn.TransformerEncoderLayer(c.dim, c.heads, c.hidden, activation="gelu", batch_first=True, norm_first=True,
                                                 layer_norm_eps=c.eps)
        model = torch.nn.TransformerEncoder(layer, c.layers, torch.nn.LayerNorm(c.dim, eps=c.eps), enable_nested_tensor=False)
        model.load_state_dict(shared(w), assign=True)
        # The fast path refuses weights that ask for gradients, and layers that are being trained.
        model.eval().requires_grad_(False)
        given, theirs = devrt.asarray(x), torch.from_numpy(x)
        return {"devrt": lambda: run(given).wait(), "torch": lambda: model(theirs)}
    return Case(f"encoder {c.layers} x {c.dim}, {batch} x {length} tokens", build, tokens=batch * length,
                flops=encoder.flops(c, batch, length))


# ---------------------------------------------------------------------------------------------------------------------
# Quantised products: one token through one weight

# As in a model's step, every call reads another matrix, so that none is in a cache from the call before.
STREAM_BYTES = 1 << 29


def cycled(make: Callable[[], Any], nbytes: float) -> Iterator[Any]:
    """As many copies as STREAM_BYTES hold, in turn."""
    return itertools.cycle([make() for _ in range(max(2, int(STREAM_BYTES / nbytes)))])


def quantised(n: int, k: int, bits: int, group: int | None) -> Case:
    """x [1, k] through [n, k] in 8 or 4 bits, against float32 and against PyTorch's kernels for the same codes."""
    nbytes = n * k * bits / 8 + 4 * n * (k // group if group else 1)
    reads = {"devrt float32": 4.0 * n * k, "torch float32": 4.0 * n * k}

    def build() -> dict[str, Call | str]:
        rng = np.random.default_rng(2)
        weight = rng.standard_normal((n, k), dtype=np.float32) / np.float32(np.sqrt(k))
        x = rng.standard_normal((1, k), dtype=np.float32)
        codes, scales = nn.quantise(devrt.asarray(weight), bits, group=group)
        devrt.realize(codes, scales)
        given, theirs = devrt.asarray(x), torch.from_numpy(x)

        quantised_product = devrt.capture(nn.quantised_linear)
        pairs = cycled(lambda: (devrt.asarray(codes, copy=True).wait(), scales), nbytes)
        product = devrt.capture(nn.linear)
        copies = [weight.copy() for _ in range(max(2, int(STREAM_BYTES / weight.nbytes)))]
        arrays, tensors = itertools.cycle(map(devrt.asarray, copies)), itertools.cycle(map(torch.from_numpy, copies))
        return {"devrt": lambda: quantised_product(given, *next(pairs)).wait(),
                "devrt float32": lambda: product(given, next(arrays)).wait(),
                "torch float32": lambda: F.linear(theirs, next(tensors)),
                f"torch int{bits}": torch_quantised(theirs, codes, scales, bits, nbytes),
                EXACT: lambda: x.astype(np.float64) @ weight.astype(np.float64).T}
    name = f"linear {n} x {k}, int{bits}, {f'groups of {group}' if group else 'rows'}"
    return Case(name, build, tokens=1, nbytes=nbytes, flops=2.0 * n * k, reads=reads, within=0.02 if bits == 8 else 0.2)


def torch_quantised(x: torch.Tensor, codes: devrt.Array, scales: devrt.Array, bits: int, nbytes: float) -> Call | str:
    """PyTorch's weight-only kernel for the same codes and scales. It has bfloat16 activations: for float32 ones it is not
    vectorised."""
    q, s = torch.from_numpy(codes.numpy().copy()), torch.from_numpy(scales.numpy().copy())
    groups = s.shape[1]
    half = x.bfloat16()
    if bits == 8:
        if groups > 1:
            return "its int8 kernel has no groups"
        rows = s[:, 0].bfloat16()
        weights = cycled(q.clone, nbytes)
        return lambda: torch._weight_int8pack_mm(half, next(weights), rows)
    size = q.shape[1] // groups
    if size not in (32, 64, 128, 256):
        return "its int4 kernel has no rows, only groups of 32 to 256"
    packed = torch._convert_weight_to_int4pack_for_cpu(q.int() + 8, 1)
    scales_and_zeros = torch.stack([s.T, torch.zeros_like(s.T)], dim=-1).bfloat16().contiguous()
    weights = cycled(packed.clone, nbytes)
    return lambda: torch._weight_int4pack_mm_for_cpu(half, next(weights), size, scales_and_zeros)


# ---------------------------------------------------------------------------------------------------------------------
# Cases and report


CASES: dict[str, Callable[[], Case]] = {
    "llama decode float32": lambda: llama_decode(checkpoint.Config(), "float32"),
    "llama decode bfloat16": lambda: llama_decode(checkpoint.Config(), "bfloat16"),
    "llama decode int8": lambda: llama_decode(checkpoint.Config(), "int8"),
    "llama decode int4": lambda: llama_decode(checkpoint.Config(), "int4"),
    "llama prompt": lambda: llama_prompt(checkpoint.Config(), 512),
    "rwkv step": lambda: rwkv_step(rwkv.Config()),
    "rwkv prompt": lambda: rwkv_prompt(rwkv.Config(), 64),
    "encoder 1x128": lambda: encoded(encoder.Config(), 1, 128),
    "encoder 1x512": lambda: encoded(encoder.Config(), 1, 512),
    "encoder 8x128": lambda: encoded(encoder.Config(), 8, 128),
    "linear int8 rows": lambda: quantised(4096, 4096, 8, None),
    "linear int8 groups": lambda: quantised(4096, 4096, 8, 64),
    "linear int4 rows": lambda: quantised(4096, 4096, 4, None),
    "linear int4 groups": lambda: quantised(4096, 4096, 4, 64),
}


def table(rows: list[Row], memory: float, style: str) -> str:
    """Medians, minima in brackets; `memory` is the limit in bytes a second."""
    body = []
    for before, row in zip([None, *rows], rows, strict=False):
        name = "" if before and before["case"] == row["case"] else row["case"]
        if "missing" in row:
            body.append([name, row["who"], "n/a"])
            continue
        m = row["found"]
        ratio = "" if row["who"] == "devrt" else f"{row['devrt_is_faster']:.2f} ({row['by_minima']:.2f})"
        reference = row["l2"] == 0 and row["who"] == "devrt"
        rate = row["nbytes"] / m["median"]
        body.append([name, row["who"], f"{duration(m['median'])} ({duration(m['fastest'])}){'*' if m['disturbed'] else ''}",
                     f"{row['tokens'] / m['median']:.3g}", f"{rate / 1e9:.1f} ({rate / memory:.0%})" if row["nbytes"] else "",
                     f"{row['flops'] / m['median'] / 1e9:.0f}" if row["flops"] else "", ratio,
                     "reference" if reference else f"{row['l2']:.1e}", "" if reference else f"{row['max']:.1e}",
                     "" if row["same"] else "DIFFERS"])
    headers = ["", "", "a call", "tokens/s", "GB/s", "GFLOP/s", "devrt is faster x", "L2 apart", "max apart", ""]
    return tabulate(body, headers, tablefmt=style, disable_numparse=True)


def notes(rows: list[Row]) -> list[str]:
    out = ["Medians, minima in brackets; * marks medians that include samples during which the process was preempted.",
           "GB/s: weights read, and their share of what devrt reads from memory at best, measured in this run. GFLOP/s: of the "
           "products. L2 and max apart: from the exact product in float64 (linear), else "
           "from devrt's result; relative to its norm, and to the root of its mean square.",
           f"linear: every call reads another copy of the weight, {STREAM_BYTES >> 20} MiB in turn."]
    out += dict.fromkeys(f"{r['case']}: measured {r['measured']}." for r in rows if "measured" in r)
    return out + [f"{case}, {who} n/a: {why}" for case, who, why in
                  dict.fromkeys((r["case"], r["who"], r["missing"]) for r in rows if "missing" in r)]


def earlier(rows: list[Row]) -> list[Row]:
    """The rows of other cases that were written before, each with the day and commit it was measured at."""
    try:
        old = json.loads((RESULTS / "models.json").read_text())
    except (OSError, ValueError):
        return []
    measured = {r["case"] for r in rows}
    return [{"measured": f"{old['environment']['date']}, {old['environment']['commit']}", **r} for r in old["rows"]
            if r["case"] not in measured]


def markdown(env: dict[str, Any], rows: list[Row]) -> str:
    return (heading("Models on devrt beside PyTorch on the CPU", env, "python bench/models.py --write", "models.json")
            + f"{table(rows, env['memory GB/s'] * 1e9, 'pipe')}\n\n" + "\n".join(f"- {n}" for n in notes(rows)) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=destination, metavar="FILE")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    wanted = [n for n in CASES if not args.only or any(o in n for o in args.only)]
    if not wanted:
        parser.error(f"no case's name contains {' or '.join(args.only)}; there are {', '.join(CASES)}")
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"{args.rounds} rounds measure nothing; give 1 or more")
    torch.set_num_threads(THREADS)
    env = environment(("numpy", "torch", "transformers", "llvmlite"))
    rounds = args.rounds or (5 if args.quick else 15)
    rows: list[Row] = []
    progress = Progress(len(wanted))
    limit = devrt.open().calibrate(fresh=True).memory_bytes_per_s
    with torch.inference_mode():
        for name in wanted:
            progress.begin(name)
            rows += rows_of(CASES[name](), rounds, progress.tick)
            progress.end()
            torch._dynamo.reset()
            gc.collect()  # weights of the case before
    progress.clear()
    env["load at the end"] = load()
    env["memory GB/s"] = round(max(limit, devrt.open().calibrate(fresh=True).memory_bytes_per_s) / 1e9, 1)
    print(", ".join(f"{k} {v}" for k, v in env.items()))
    print(table(rows, env["memory GB/s"] * 1e9, "simple"))
    print("\n".join(notes(rows)))
    raw = record(env, rows)
    if args.json:
        args.json.write_text(raw)
    if args.write:
        merged = [*rows, *(earlier(rows) if args.only else [])]
        write("models", markdown(env, merged), record(env, merged))
    return 0 if all(r.get("same", True) for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
