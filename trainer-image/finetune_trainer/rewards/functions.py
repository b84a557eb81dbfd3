"""Reward functions that the user brings, in a ConfigMap or in the image."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from finetune_api.failures import Reason
from finetune_trainer.rewards.checked import Function, RewardError, describe
from finetune_trainer.sources.fetch import fetch
from finetune_trainer.sources.uri import Source
from finetune_trainer.sources.wanted import Wanted

_IN_IMAGE = "python://"


def fetch_function(reference: str, field: str, target: Path, mounts: Path) -> None:
    """Copy the file of a function in a ConfigMap into target. Raises JobFailure."""
    if reference.startswith(_IN_IMAGE):
        return
    wanted = Wanted(field, Reason.CONFIG_INVALID, list)
    fetch(Source.parse(reference.rpartition(":")[0], field), target, wanted, mounts)


def load_function(reference: str, folder: Path) -> Function:
    """Return a function, from the file in folder or from the image. Raises RewardError."""
    place, _, name = reference.rpartition(":")
    try:
        module = _load_module(place, folder)
    # Importing runs the user's code, which may raise anything.
    except Exception as error:
        raise RewardError(
            f"names {reference}, which cannot be imported: {describe(error)}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise RewardError(
            f"names {reference}, but there is no function {name}: found "
            f"{', '.join(there) or 'none'}"
        )
    _check_signature(function, reference)
    return function  # type: ignore[no-any-return]


def _load_module(place: str, folder: Path) -> ModuleType:
    if place.startswith(_IN_IMAGE):
        return importlib.import_module(place.removeprefix(_IN_IMAGE))
    file = folder / place.rpartition("/")[2]
    name = f"finetune_reward_{folder.name.replace('-', '_')}"
    module_spec = importlib.util.spec_from_file_location(name, file)
    if module_spec is None or module_spec.loader is None:
        raise RewardError(f"is in {file.name}, expected a file whose name ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and pickle look their module up.
    sys.modules[name] = module
    module_spec.loader.exec_module(module)
    return module


def _check_signature(function: Function, reference: str) -> None:
    parameters = inspect.signature(function).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    takes_completions = "completions" in {parameter.name for parameter in parameters}
    if not takes_any or not takes_completions or inspect.iscoroutinefunction(function):
        name = reference.rpartition(":")[2]
        found = f"{'async ' if inspect.iscoroutinefunction(function) else ''}def {name}"
        raise RewardError(
            f"names {found}{inspect.signature(function)}, expected def {name}(completions, "
            "**kwargs): prompts, completion_ids and each column of the rows come by name"
        )
