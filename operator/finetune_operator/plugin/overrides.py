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
    "gpu": "resources.gpu.product",
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
    for path, value in _changes(assignments).items():
        _put(changed, f"spec.{path}", value)
    return changed


def _changes(assignments: str) -> dict[str, Any]:
    """Return values by their place in the spec."""
    implied, asked = {}, {}
    # Not at commas within a value, such as those of a list.
    for assignment in re.split(r",(?=[\w./ -]+=)", assignments):
        key, separator, text = (part.strip() for part in assignment.partition("="))
        if not separator or not key or not text:
            raise PluginError(
                f"{assignment!r} is no change: expected KEY=VALUE with {', '.join(_SHORT)} or"
                " a field of the spec such as training.maxLength."
            )
        path = _SHORT.get(key, key.removeprefix("spec."))
        if path in asked:
            raise PluginError(f"{key} is there twice in {assignments}: keep one.")
        asked[path] = label_of(text) if key == "gpu" else _value(key, text)
        if key == "gpu":
            # The planner knows the memory of each product.
            implied["resources.gpu.memory"] = "auto"
    return implied | asked


def _value(key: str, text: str) -> Any:
    try:
        return load(text)
    except yaml.YAMLError as error:
        raise PluginError(f"{key}={text} is no YAML: correct the value.") from error


def _put(object_: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        below = object_.setdefault(name, {})
        if not isinstance(below, dict):
            raise PluginError(f"{path} cannot be set: {name} is {below!r} and holds no fields.")
        object_ = below
    object_[last] = value
