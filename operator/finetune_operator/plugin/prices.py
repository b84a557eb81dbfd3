"""Prices of a GPU-hour, as the command line gives them."""

from collections.abc import Iterable, Mapping

from finetune_api.status import Plan
from finetune_operator.plugin.errors import PluginError
from finetune_operator.plugin.gpus import label_of


def prices(given: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return prices by GPU product, that of any other under the empty name.

    PluginError where a name is unclear, or has two prices.
    """
    found: dict[str, float] = {}
    for gpu, price in given:
        product = label_of(gpu) if gpu else ""
        if product in found:
            raise PluginError(f"--price is there twice for {gpu or 'any GPU'}: keep one.")
        found[product] = price
    return found


def price_of(prices: Mapping[str, float], plan: Plan | None) -> float | None:
    """Return the price of a plan's GPUs; None where none was given."""
    product = plan.gpu_product if plan else None
    return prices.get(product or "", prices.get(""))
