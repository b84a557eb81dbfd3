"""The fine-tuning methods, each thin over its TRL trainer."""

from importlib import import_module
from types import ModuleType

from finetune_api.spec import Method


def module_of(method: Method) -> ModuleType:
    """Return a method's module: CONFIGURATION is TRL's class, build(Setup) makes the trainer.

    Each loads only its own TRL trainer: their imports cost seconds.
    """
    return import_module(f"{__name__}.{method.value}")
