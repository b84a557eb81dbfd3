"""The command line's boundary: one process, one sentence for what is wrong, one exit code."""

import gc
import os
import sys
from collections.abc import Sequence

from finetune_operator.plugin.arguments import parse
from finetune_operator.plugin.errors import PluginError


def main() -> None:
    """Run the command line; errors are one sentence and exit code 2."""
    # What is imported stays until the end: looking for garbage among it takes a tenth of the time.
    gc.set_threshold(1_000_000)
    # Looking for plugins of pydantic reads the metadata of every package that is installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        sys.exit(_exit_code(sys.argv[1:]))
    finally:
        # Python looks once more when it ends.
        gc.freeze()


def _exit_code(arguments: Sequence[str]) -> int:
    try:
        options = parse(arguments)
        code: int = options.run(options)
        sys.stdout.flush()
    except PluginError as error:
        sys.stderr.write(f"error: {error}\n")
    except BrokenPipeError:
        # Whoever read the output, such as head, has seen enough; Python would complain at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {place}{error.strerror or error}.\n")
    except (KeyboardInterrupt, EOFError):
        # The question stays open on its line.
        sys.stderr.write("\n")
        return 130
    except Exception as error:  # noqa: BLE001 - the boundary of the process
        sys.stderr.write(f"error: {_fault(error)}\n")
    else:
        return code
    return 2


def _fault(error: Exception) -> str:
    import traceback

    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__} in line {place.lineno} of {place.filename}: {error}: this is a"
        " fault of the plugin, please report it."
    )
