"""The `pcssl` command: `pcssl train config.yaml`, `pcssl extract ...`.

A command is a module under pcssl.commands with `configure(parser)` and `run(args) -> int`.
It is imported only when it is called, so that `pcssl --help` needs no torch.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import select
import sys
from collections.abc import Sequence

from pcssl.errors import UserError
from pcssl.registry import did_you_mean
from pcssl.version import pcssl_version

# name -> module, one line of help
COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("pcssl.commands.prepare", "convert a dataset to the layout that training reads"),
    "train": ("pcssl.commands.train", "learn features without labels, from a config file"),
    "probe": ("pcssl.commands.probe", "measure how good the features of a checkpoint are"),
    "health": ("pcssl.commands.health", "look at a checkpoint's features without labels: collapsed, constant, geometric?"),
    "experiments": ("pcssl.commands.experiments", "train and probe many configs that differ in a line, and tabulate"),
    "compare": ("pcssl.commands.compare", "put the scores of two probes side by side"),
    "benchmark": ("pcssl.commands.benchmark", "time the operators beside a matrix product and other engines"),
    "profile": ("pcssl.commands.profile", "say where a training step's time goes, and what it needs"),
    "extract": ("pcssl.commands.extract", "write the features of scenes to files"),
    "export": ("pcssl.commands.export", "write a model as one file that describes itself, or show its card"),
    "visualize": ("pcssl.commands.visualize", "show features, similarities, labels: pictures, a window, a browser"),
    "doctor": ("pcssl.commands.doctor", "say what is installed here, what runs, and how to get more"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 failed, 2 bad input, 130 stopped."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # The options before the command take no value, so the first plain word is the command.
    cut = next((i for i, word in enumerate(argv) if not word.startswith("-")), len(argv))
    parser = _parser()
    try:
        options = parser.parse_args(argv[:cut])
        if cut == len(argv):
            parser.print_help(sys.stderr)
            return 2
        name = argv[cut]
        if name not in COMMANDS:
            parser.error(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}; known: {', '.join(COMMANDS)}")
        return _run(name, argv[cut + 1 :], options.debug)
    except SystemExit as stop:  # how argparse ends after --help and on bad arguments
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="pcssl",
        usage="pcssl [--debug] COMMAND ...",
        description="Self-supervised learning on 3D point clouds.",
        epilog=f"commands:\n{commands}\n\n`pcssl COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"pcssl {pcssl_version()}")
    return parser


def _run(name: str, argv: list[str], debug: bool) -> int:
    module, summary = COMMANDS[name]
    try:
        command = importlib.import_module(module)
        parser = argparse.ArgumentParser(prog=f"pcssl {name}", description=summary, allow_abbrev=False)
        command.configure(parser)
        status = command.run(_parse(parser, argv))
        sys.stdout.flush()  # here, where a closed pipe is still ours to handle
        return status
    except (Exception, KeyboardInterrupt) as error:
        message, status = _verdict(error)
        if debug or status is None:
            raise
        if message:
            print(f"pcssl {name}: {message}", file=sys.stderr)
        return status


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """As `parse_args`, but key=value may stand anywhere: argparse takes them from one place only."""
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") or "=" not in word for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _verdict(error: BaseException) -> tuple[str, int | None]:
    """The line to print and the exit status; status None: a bug, show the traceback."""
    if isinstance(error, UserError):
        return f"error: {error}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 130
    if isinstance(error, MemoryError):
        return f"error: out of memory{f': {error}' if str(error) else ''}", 1
    if isinstance(error, BrokenPipeError) and _stdout_is_closed():
        return "", 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return f"error: no space left on the disk{where}; free some and run again", 1
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        where = f" {error.filename}" if error.filename else ""
        return f"error: the file{where} is larger than this system or `ulimit -f` allows", 1
    return "", None


def _stdout_is_closed() -> bool:
    """Whether the reader of our output went away (`pcssl ... | head`), rather than some other pipe.

    If so, stdout becomes a sink: Python flushes it once more at exit.
    """
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by something without a file
        return False
    poll = select.poll()  # a failed write is not repeated by flush(), so ask the pipe
    poll.register(stdout, 0)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return closed
