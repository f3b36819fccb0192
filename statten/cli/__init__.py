"""The command line: thin, every command is a function of the package that a notebook can call."""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

# In the order of --help: each registers its commands.
from statten.cli import settings, train, supernet, resume, evaluate, predict, show, data, machine  # isort: skip
from statten.cli.jobs import jobs_app
from statten.cli.options import app
from statten.cli.stopping import Stopped, stoppable
from statten.errors import Failed, UserError
from statten.files import FULL

__all__ = ["app", "data", "evaluate", "machine", "main", "predict", "resume", "settings", "show", "supernet", "train"]

app.add_typer(evaluate.energy_app, name="energy")
app.add_typer(data.data_app, name="data")
app.add_typer(jobs_app)
REFUSED = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM)
"""What the system says of a place where nothing can be written: no mistake of the program."""
USAGE_ERROR: Any = typer.BadParameter.__base__  # typer does not export it: unknown options, missing arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exit code 0: done; 2: the input is wrong, said in one sentence each; 1: anything else.

    A command that Ctrl-C or another signal stops ends with 128 + the signal's number.

    Args:
        arguments: the words after `statten`; None means those that this process was started with.
    """
    try:
        with stoppable():
            words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
            code = app(words, prog_name="statten", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        _fail(error.problems, 2)
    except USAGE_ERROR as error:
        _fail([error.format_message().rstrip(".")], 2)
    except Stopped as error:
        _fail([str(error)], error.code)
    except (KeyboardInterrupt, typer.Abort) as error:
        stopped = Stopped(error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt())
        _fail([str(stopped)], stopped.code)
    except Failed as error:
        _fail([str(error)], 1)
    except OSError as error:
        if not error.filename or error.errno not in REFUSED:
            raise
        _fail([f"{error.filename}: {os.strerror(error.errno)}"], 1)


def _fail(problems: list[str], code: int) -> None:
    for problem in problems:
        print(f"statten: {problem}", file=sys.stderr)
    sys.stderr.flush()
    sys.exit(code)
