"""A Llama or Mistral language model: loads a Hugging Face folder by mmap, or makes random weights of a model's shapes.

    python examples/llama.py                                        # 100 million random parameters
    python examples/llama.py FOLDER --prompt "Once upon a time" --temperature 0.8 --top-p 0.95
    python examples/llama.py --weights int8 --tokens 200 --json

It prints tokens/s, p50 and p99 per token, and how fast the weights came in. A text prompt needs the `tokenizers` package.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import checkpoint
import numpy as np
from checkpoint import Config
from decoder import Decoder, Weight, quantise

import devrt
from devrt import staging
from devrt.cli.exit_codes import OK
from devrt.cli.main import Parser, guarded

FLOATS = {"float32": devrt.float32, "float16": devrt.float16, "bfloat16": devrt.bfloat16}
RANDOM_PROMPT = 64
SHAPE = ("layers", "dim", "hidden", "heads", "kv_heads", "vocab")


def counted(n: int) -> str:
    """100M, 7.24B."""
    return next((f"{n / size:.3g}{letter}" for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if n >= size), str(n))


def say(text: str, quiet: bool) -> None:
    """One line of the report, unless JSON is asked for."""
    if not quiet:
        print(text, flush=True)


@contextlib.contextmanager
def progress(text: str, quiet: bool) -> Iterator[None]:
    """Says on a terminal what takes its time, and takes it away again."""
    shown = sys.stderr.isatty() and not quiet
    if shown:
        print(f"\r{text} ..", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r" + " " * (len(text) + 3) + "\r", end="", file=sys.stderr, flush=True)


def open_folder(folder: str, quiet: bool) -> tuple[Config, dict[str, Weight], dict[str, Any]]:
    """(config, weights, figures of loading): the files are mapped, then read through once."""
    begin = time.perf_counter()
    config, weights = checkpoint.load(folder)
    mapped = time.perf_counter()
    nbytes = sum(w.dtype.nbytes(w.size) for w in weights.values())
    with progress(f"reading {nbytes / 1e9:.2f} GB", quiet):
        for w in weights.values():
            if not staging.shared(w.storage.device):
                continue  # loading has copied it
            np.frombuffer(w.storage.buffer.host(), np.uint8)[:w.dtype.nbytes(w.size) // 8 * 8].view(np.uint64).sum()
    read = time.perf_counter()
    return config, dict(weights), {"bytes": nbytes, "map_s": mapped - begin, "read_s": read - mapped,
                                   "gb_per_s": nbytes / (read - begin) / 1e9}


def open_random(config: Config, dtype: devrt.DType, seed: int,
                quiet: bool) -> tuple[Config, dict[str, Weight], dict[str, Any]]:
    """The same from a folder of random weights, which is gone again when this returns."""
    with tempfile.TemporaryDirectory(prefix="devrt-llama-") as folder:
        with progress(f"making {counted(config.parameters)} random parameters", quiet):
            checkpoint.save(folder, config, checkpoint.random_weights(config, seed, dtype))
        return open_folder(folder, quiet)


def tokenizer(folder: str | None) -> Any:
    """The folder's tokenizer, or None where the folder or the package `tokenizers` has none."""
    path = os.path.join(folder or "", "tokenizer.json")
    if folder is None or not os.path.exists(path):
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    try:
        return Tokenizer.from_file(path)
    except Exception as e:  # the package raises nothing narrower
        raise devrt.InvalidArgument(f"{path} is no tokenizer", evidence=str(e)[:200], remedy="download it again") from e


def prompt_tokens(args: argparse.Namespace, config: Config, text: Any) -> list[int]:
    """The prompt in tokens: --prompt through the tokenizer, or as numbers, or --prompt-tokens arbitrary ones."""
    if args.prompt is None:
        return [(7 * n + 1) % config.vocab for n in range(args.prompt_tokens)]
    if text is not None:
        return [int(i) for i in text.encode(args.prompt).ids]
    try:
        return [int(word) for word in args.prompt.split()]
    except ValueError:
        raise devrt.InvalidArgument("this prompt is text, and there is no tokenizer for it",
                                    evidence="no tokenizer.json in the folder" if args.folder is None or not os.path.exists(
                                        os.path.join(args.folder, "tokenizer.json")) else "the package `tokenizers` is missing",
                                    remedy="pip install tokenizers, or give token numbers: --prompt '1 15043'") from None


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Load, generate, and print; returns the figures."""
    quiet = args.json
    if args.folder is not None:
        config, weights, load = open_folder(args.folder, quiet)
    else:
        shape = {name: value for name in SHAPE
                 if (value := getattr(args, name)) is not None}
        width = shape.get("dim", Config.dim)
        config = Config(**(shape | {"head_dim": width // shape.get("heads", Config.heads)}))
        config, weights, load = open_random(config, FLOATS.get(args.weights, devrt.float32), args.seed, quiet)
    for warning in config.warnings:
        print(f"note: {warning}", file=sys.stderr)
    text = tokenizer(args.folder)
    prompt = prompt_tokens(args, config, text)
    if len(prompt) + args.tokens > config.context:
        print(f"note: {len(prompt)} + {args.tokens} tokens are more than the {config.context} positions the model was made for",
              file=sys.stderr)
    stored = next(iter(weights.values()))
    assert isinstance(stored, devrt.Array)
    kind = stored.dtype.name
    if args.weights in ("int8", "int4"):
        with progress(f"quantising to {args.weights}", quiet):
            weights = quantise(weights, 8 if args.weights == "int8" else 4, args.group)  # type: ignore[arg-type]
        kind = args.weights + (f" in groups of {args.group}" if args.group else " by rows")
    elif args.weights is not None and FLOATS[args.weights] is not stored.dtype:
        with progress(f"converting to {args.weights}", quiet):
            weights = {name: w.astype(FLOATS[args.weights]).wait() for name, w in weights.items() if isinstance(w, devrt.Array)}
        kind = args.weights
    model = Decoder(config, weights)
    say(f"model    {counted(config.parameters)} parameters in {kind}, {config.layers} layers, "
        f"{'random' if args.folder is None else args.folder}, exact tier, {stored.device}", quiet)
    say(f"load     {load['bytes'] / 1e9:.2f} GB mapped in {load['map_s'] * 1e3:.1f} ms and read once in "
        f"{load['read_s'] * 1e3:.0f} ms: {load['gb_per_s']:.1f} GB/s", quiet)
    figures = generate(model, prompt, args, text)
    return {"parameters": config.parameters, "weights": kind, "load": load, "prompt": len(prompt), **figures}


def generate(model: Decoder, prompt: list[int], args: argparse.Namespace, text: Any) -> dict[str, Any]:
    """Generate and measure. Tokens during which a kernel was compiled are left out of the times."""
    sampling = {name: value for name in ("temperature", "top_k", "top_p", "min_p") if (value := getattr(args, name)) is not None}
    if sampling.get("temperature"):
        sampling["seed"] = args.seed
    stop = () if args.ignore_eos else model.config.eos
    tokens: list[int] = []
    times: list[float] = []
    begin = last = time.perf_counter()
    first = compiling = 0.0
    known = 0
    generated = model.generate(prompt, args.tokens, stop=stop, **sampling)
    with progress(f"compiling, and reading a prompt of {len(prompt)} tokens", args.json):
        start = next(generated)
    for token in itertools.chain([start], generated):
        now, shapes = time.perf_counter(), model.shapes
        if not tokens:
            first = now - begin
        elif shapes != known:
            compiling += now - last
        else:
            times.append(now - last)
        known, last = shapes, now
        tokens.append(token)
        if text is not None and not args.json:
            print(text.decode(tokens[-8:])[len(text.decode(tokens[-8:-1])):], end="", flush=True)
    if text is not None and not args.json:
        print()
    figures: dict[str, Any] = {"tokens": tokens, "first_token_s": first, "compiling_s": compiling}
    say(f"prefill  {len(prompt)} tokens, the first answer after {first:.2f} s, compiling included", args.json)
    if not args.json and text is None:
        print("tokens   " + " ".join(map(str, tokens[:16])) + (" .." if len(tokens) > 16 else ""))
    if times:
        rate = len(times) / sum(times)
        p50, p99 = np.percentile(times, [50, 99]) * 1e3
        figures |= {"tokens_per_s": rate, "p50_ms": p50, "p99_ms": p99, "weights_gb_per_s": rate * model.bytes_per_token / 1e9}
        left_out = f" ({len(tokens) - 1 - len(times)} with compilation left out)" if compiling else ""
        say(f"decode   {rate:.1f} tokens/s over {len(times)} tokens{left_out}: p50 {p50:.2f} ms, p99 {p99:.2f} ms a token, "
            f"weights read at {figures['weights_gb_per_s']:.1f} GB/s", args.json)
    return figures


def positive(text: str) -> int:
    """A positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer; give 1 or more")
    return int(text)


def seed(text: str) -> int:
    """An integer from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; give an integer from 0 on")
    return int(text)


def main() -> int:
    parser = Parser(description=__doc__.splitlines()[0], epilog="Without FOLDER the weights are random.")
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="config.json, *.safetensors and perhaps tokenizer.json")
    parser.add_argument("--prompt", help="text, or token numbers where there is no tokenizer")
    parser.add_argument("--prompt-tokens", type=positive, default=RANDOM_PROMPT, metavar="N", help="length of a made-up prompt")
    parser.add_argument("--tokens", type=positive, default=64, metavar="N", help="how many to generate")
    parser.add_argument("--weights", choices=[*FLOATS, "int8", "int4"], help="convert or quantise the weights to this type")
    parser.add_argument("--group", type=positive, help="scales of int8 and int4 for so many columns, not for whole rows")
    parser.add_argument("--temperature", type=float, help="above 0 draws from the distribution")
    parser.add_argument("--top-k", type=positive, metavar="N", help="draw from the N most probable tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the fewest tokens that hold this probability")
    parser.add_argument("--min-p", type=float, metavar="P", help="draw from tokens this probable relative to the best")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of random weights and draws; 0 by default")
    parser.add_argument("--ignore-eos", action="store_true", help="go on after the end of the text")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    for name in SHAPE:
        parser.add_argument(f"--{name.replace('_', '-')}", type=positive, metavar="N", help="shape of the random model")
    args = parser.parse_args()
    if args.folder is not None and any(getattr(args, name) is not None for name in SHAPE):
        parser.error("a FOLDER has its own shape: --layers, --dim and the like are for random weights")
    if args.group is not None and args.weights not in ("int8", "int4"):
        parser.error("--group is for --weights int8 or int4")

    def command() -> int:
        figures = run(args)
        if args.json:
            print(json.dumps(figures))
        return OK
    return guarded(command)


if __name__ == "__main__":
    sys.exit(main())
