"""KEY=VALUE: changes to a job's spec from the command line."""

import copy
import re
from typing import Any, Final

import yaml

from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.gpus import label_of
from finetune_operator.plugin.kubectl_yaml import load
from finetune_operator.plugin.manifests import Manifest

_SHORT: Final = {
    "adapter": "adapter.type",
    "batch": "training.batchSize",
    "count": "resources.gpu.count",
    "length": "training.maxLength",
    "memory": "resources.gpu.memory",
    "method": "method",
    "nodes": "resources.nodes",
    "strategy": "resources.strategy",
}
"""Short names of what is asked most often; everything else goes by its place in the spec."""


def overridden(manifest: Manifest, assignments: str) -> Manifest:
    """Return a job with assignments such as gpu=L4,count=2 or training.maxLength=8192 made."""
    changed = copy.deepcopy(manifest)
    # Not at commas within a value, such as those of a list.
    for assignment in re.split(r",(?=[\w. ]+=)", assignments):
        key, separator, text = (part.strip() for part in assignment.partition("="))
        if not separator or not key or not text:
            raise PluginError(
                f"{assignment!r} is no change: expected KEY=VALUE with gpu, {', '.join(_SHORT)} or"
                " a field of the spec such as training.maxLength."
            )
        for path, value in _changes(key, text).items():
            _put(changed, f"spec.{path}", value)
    return changed


def _changes(key: str, text: str) -> dict[str, Any]:
    """Return values by their place in the spec."""
    if key == "gpu":
        # The planner knows the memory of each product.
        return {"resources.gpu.product": label_of(text), "resources.gpu.memory": "auto"}
    try:
        value = load(text)
    except yaml.YAMLError as error:
        raise PluginError(f"{key}={text} is no YAML: correct the value.") from error
    return {_SHORT.get(key, key.removeprefix("spec.")): value}


def _put(object_: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        below = object_.setdefault(name, {})
        if not isinstance(below, dict):
            raise PluginError(f"{path} cannot be set: {name} is {below!r} and holds no fields.")
        object_ = below
    object_[last] = value
