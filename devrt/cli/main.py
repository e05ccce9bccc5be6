"""`devrt`: what the words on the command line mean, and what the exit code says."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import devrt
from devrt.cli.exit_codes import BUG, FAILED, INTERRUPTED, OK, USAGE
from devrt.cli.paint import paint
from devrt.device import DevrtError, OutOfMemory

EXIT_CODES = """exit codes:
  0  done, nothing is wrong
  1  doctor found an error, or compare a difference
  2  the command line is not understood
  3  devrt could not do it; the message says why and what to do
  4  a bug in devrt; DEVRT_TRACEBACK=1 shows where"""

# Command -> "module:function" taking the parsed arguments and returning an exit code. Imported when it is run.
COMMANDS = {
    "doctor": "devrt.cli.commands:run_doctor",
    "devices": "devrt.cli.commands:run_devices",
    "bench": "devrt.benchmark.main:run_bench",
    "explain": "devrt.scheduler.explain:run_explain",
    "compare": "devrt.compare:run_compare",
    "virtual": "devrt.cli.virtual:run_virtual",
}
SUMMARIES = {
    "doctor": "check this machine: drivers, permissions, links, logs; say what mends it",
    "devices": "list the devices that can be opened, and their URIs",
    "bench": "measure devrt on this machine",
    "explain": "show what an expression becomes: kernels, bytes, FLOPs, time",
    "compare": "two safetensors files tensor by tensor: where a port departs from its reference",
    "virtual": "virtual GPUs: list them, or run somebody else's program on one",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what writing to a file may meet that is nobody's mistake
EXAMPLES = (
    ("devrt doctor", "is this machine ready?"),
    ("devrt bench --quick", "how fast is it? under a minute"),
    ("devrt explain 'softmax(randn(512, 32000))'", "what does devrt make of this?"),
)


class Parser(argparse.ArgumentParser):
    """Says what it does not understand in one sentence, with a remedy."""

    def error(self, message: str) -> NoReturn:
        _complain(message, f"see `{self.prog} --help`")
        raise SystemExit(USAGE)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="devrt", description="ML kernels on any GPU with nothing of the vendor's user space.", epilog=EXIT_CODES,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"devrt {devrt.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def add(name: str) -> argparse.ArgumentParser:
        said = SUMMARIES[name]
        command = commands.add_parser(name, help=said, description=f"{said[0].upper()}{said[1:]}.", epilog=EXIT_CODES,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument("--json", action="store_true", help="print JSON for programs")
        return command

    doctor = add("doctor")
    doctor.add_argument("--device", action="append", metavar="URI", help="use this device only (may be repeated); default: all")
    doctor.add_argument("--no-devices", action="store_true", help="look, but use no device")
    doctor.add_argument("--record", metavar="FILE", help="save what is read from the system, to send with a report")
    doctor.add_argument("--replay", metavar="FILE", help="examine a machine that was recorded; uses no device")
    add("devices")
    bench = add("bench")
    bench.add_argument("filter", nargs="*", metavar="NAME", help="only benchmarks whose name contains one of these")
    bench.add_argument("--quick", action="store_true", help="fewer sizes and repeats")
    bench.add_argument("--plot", metavar="FILE", help="draw the results to this SVG file")
    bench.add_argument("--device", default="cpu", metavar="URI", help="the device to measure; default: cpu")
    explain = add("explain")
    explain.add_argument("expression", metavar="EXPRESSION", help="Python over devrt's names, e.g. 'softmax(randn(512, 32000))'")
    explain.add_argument("--graph", metavar="FILE", help="draw the graph to this SVG file")
    compare = add("compare")
    compare.add_argument("ours", metavar="OURS", help="a safetensors file")
    compare.add_argument("theirs", metavar="THEIRS", help="the reference, a safetensors file with the same names")
    compare.add_argument("--tolerance", type=float, default=-4.0, metavar="LOG_L2",
                         help="log10 of the relative L2 error that counts as agreement; default: -4")
    actions = add("virtual").add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="the kinds of machine there are").add_argument(
        "--json", action="store_true", help="print JSON for programs")
    execute = actions.add_parser("exec", help="run a program against a virtual machine; exits with the program's code")
    execute.add_argument("--trace", action="store_true", help="print what the program asks of the devices, on stderr")
    execute.add_argument("topology", metavar="TOPOLOGY", help="a machine, e.g. amd/gfx1100, amd/2xgfx1100?hang@2")
    execute.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM", help="the program and its arguments")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. No exception leaves this function except for argparse's SystemExit."""
    arguments = parser().parse_args(argv)

    def command() -> int:
        if arguments.command is None:
            print(overview())
            return OK
        module, _, function = COMMANDS[arguments.command].partition(":")
        code: int = getattr(importlib.import_module(module), function)(arguments)
        return code
    return guarded(command)


def guarded(command: Callable[[], int]) -> int:
    """Run the body of a command: whatever it raises is a sentence on stderr with a remedy, and an exit code."""
    try:
        code = command()
        if sys.stdout is not None:  # it was closed: `devrt doctor >&-`
            sys.stdout.flush()
        return code
    except DevrtError as error:
        _complain(error.what + (f" ({error.evidence})" if error.evidence else ""), error.remedy)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`devrt doctor | head`).
        _drop_output()
        return OK
    except MemoryError as error:
        _complain(f"there is not enough memory{f' ({error})' if str(error) else ''}", OutOfMemory.advice)
        return FAILED
    except OSError as error:
        if error.errno not in FULL:
            return _bug(error)
        _drop_output()
        _complain(f"the output can't be written ({error.strerror})", "make room there, or write it somewhere else")
        return FAILED
    except Exception as error:  # the last line of defence: a user gets a sentence, a developer the traceback
        return _bug(error)


def _bug(error: Exception) -> int:
    if os.environ.get("DEVRT_TRACEBACK"):
        traceback.print_exc()
    _complain(f"this is a bug in devrt: {type(error).__name__}: {error}",
              "report it with what you ran; DEVRT_TRACEBACK=1 shows where it happened")
    return BUG


def _drop_output() -> None:
    """What is left goes nowhere, or Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def overview() -> str:
    """What `devrt` says when it is asked nothing."""
    lines = [f"{paint('devrt', 'bold')} {devrt.__version__}  ML kernels on any GPU with nothing of the vendor's user space.", ""]
    lines += [f"  {paint(f'{name:8}', 'cyan')}  {SUMMARIES[name]}" for name in COMMANDS]
    width = max(len(command) for command, _ in EXAMPLES)
    lines += ["", "Try:"] + [f"  {command:{width}}  {paint(f'# {why}', 'dim')}" for command, why in EXAMPLES]
    lines += ["", "In Python:", "  import devrt", "  devrt.nn.softmax(devrt.asarray([1.0, 2.0, 3.0])).numpy()",
              "", paint("Every command takes --json and --help.", "dim")]
    return "\n".join(lines)


def _complain(what: str, remedy: str) -> None:
    print(f"{paint('devrt:', 'bold', 'red', stream=sys.stderr)} {what}", file=sys.stderr)
    print(f"  {paint('try:', 'bold', stream=sys.stderr)} {remedy}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
