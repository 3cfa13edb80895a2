"""The `mudit` command: finds the command's file, runs it, and turns whatever happens into one exit
code and a short message.

    0 ok                           1 failed           2 usage or input
    3 the machine lacks something  4 a gate failed    130 interrupted

    mudit doctor --json
    run(["doctor", "--json"])       # the same in-process; returns the exit code

A command is listed when mudit_engine/cli/<name>.py exists; only the one asked for is imported.
MUDIT_DEBUG=1 adds the traceback to an error.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from mudit_engine import __version__
from mudit_engine.cli._console import Invocation, emit_error
from mudit_engine.errors import MuditError

# the order of `mudit --help`: from the first thing a newcomer runs to the last
COMMANDS = (
    "doctor",
    "generate",
    "lyrics",
    "data",
    "finetune",
    "align",
    "train",
    "plan",
    "export",
    "bench",
    "profile",
    "eval",
    "serve",
)
INTERRUPTED = 128 + signal.SIGINT
DEBUG = "MUDIT_DEBUG"

OS_ERRORS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
}


class LazyGroup(click.Group):
    """A group whose commands are files beside this one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        here = Path(__file__).parent
        return [name for name in COMMANDS if (here / f"{name}.py").is_file()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"mudit_engine.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], known, n=1)
            ctx.fail(
                f"no command '{args[0]}': "
                + (f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}")
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="mudit")
@click.option("-v", "--verbose", is_flag=True, help="Log what is being done, to stderr.")
def cli(verbose: bool) -> None:
    """Descriptions and lyrics to whole songs."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("mudit_engine").setLevel(logging.INFO if verbose else logging.WARNING)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (default: this process's) and returns its exit code. Raises nothing."""
    invocation = Invocation(tuple(sys.argv[1:] if arguments is None else arguments))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # lyrics on a terminal that cannot show them must not end the command
            stream.reconfigure(errors="backslashreplace")
    try:
        # click returns the code of --help and of ctx.exit(), and what a command returns otherwise
        result = cli.main(
            list(invocation.arguments), prog_name="mudit", standalone_mode=False, obj=invocation
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, click.Abort) as error:
        return _failed(invocation, error, INTERRUPTED, "interrupted")
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        hint = (
            f"\n{error.ctx.get_usage()}"
            if isinstance(error, click.UsageError) and error.ctx
            else ""
        )
        return _failed(invocation, error, error.exit_code, error.format_message(), hint=hint)
    except MuditError as error:
        return _failed(invocation, error, error.exit_code, str(error))
    # a command's own, or click's answer to a reader of stdout that has gone (`mudit ... | head`)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:
        _discard_stdout()
        return 1
    except OSError as error:
        return _failed(invocation, error, 1, _explain_os_error(error))
    except Exception as error:
        if _out_of_memory(error):
            return _failed(
                invocation,
                error,
                1,
                f"out of memory: ask for fewer songs at once or for shorter ones ({error})",
            )
        where = "" if os.environ.get(DEBUG) else f" (a bug: {DEBUG}=1 shows the traceback)"
        return _failed(invocation, error, 1, f"{type(error).__name__}: {error}", hint=where)


def main() -> NoReturn:
    """Entry point of `mudit`."""
    code = run()
    ranks = sys.modules.get("mudit_engine.training.ranks")
    if ranks is not None and ranks.launched_world() > 1:
        ranks.leave(code)
    sys.exit(code)


def _failed(
    invocation: Invocation, error: BaseException, code: int, message: str, *, hint: str = ""
) -> int:
    """The message on stderr, and as a document on stdout for --json."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    try:
        click.echo(f"mudit: {message}{hint}", err=True)
        if invocation.wants_json:
            emit_error(invocation, error, code, message)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    return code


def _explain_os_error(error: OSError) -> str:
    reason = OS_ERRORS.get(error.errno or 0, error.strerror or str(error))
    return f"{reason}: '{error.filename}'" if error.filename is not None else reason


def _out_of_memory(error: Exception) -> bool:
    """torch reports a lack of memory as its own RuntimeError on a GPU, and as a plain one from the
    CPU allocator.
    """
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    )


def _discard_stdout() -> None:
    """Whoever read stdout has gone: points it at nowhere, so that the interpreter's own last flush
    says nothing.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
