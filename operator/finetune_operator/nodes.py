"""The GPU nodes of the cluster, as far as plans look at them: fed by a watch and by resyncs."""

import logging

from finetune_api import names
from finetune_operator.api import NODES, Api, ApiError, Body
from finetune_operator.planning import Inventory, Node

logger = logging.getLogger(__name__)


class Nodes:
    """Nodes by name; it keeps what a plan looks at and nothing else of them."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._nodes: dict[str, Node] = {}
        self.known = True
        """Whether the API server lets us look at nodes."""

    def put(self, body: Body) -> None:
        """Take note of a node."""
        node = Node.parse(body)
        if node is None:
            self.forget(body)
        else:
            self._nodes[body["metadata"]["name"]] = node

    def forget(self, body: Body) -> None:
        """Remove a node."""
        self._nodes.pop(body["metadata"]["name"], None)

    async def refresh(self) -> None:
        """Make them what a list says; without an answer they stay as they were."""
        if not self.known:
            return
        missing = set(self._nodes)
        try:
            async for bodies, _ in self._api.pages(NODES, None, names.GPU_PRODUCT_LABEL):
                for body in bodies:
                    self.put(body)
                    missing.discard(body["metadata"]["name"])
        except ApiError as error:
            if error.code == 403:
                self.known = False
                self._nodes.clear()
                logger.info(
                    "plans do without nodes until the operator starts again",
                    extra={"error": str(error)},
                )
            else:
                # Jobs do not wait for them.
                logger.warning("nodes could not be listed", extra={"error": str(error)})
            return
        for name in missing:
            self._nodes.pop(name, None)

    def inventory(self) -> Inventory:
        """Return what there is to plan with."""
        return Inventory(nodes=tuple(self._nodes.values()) if self.known else None)
