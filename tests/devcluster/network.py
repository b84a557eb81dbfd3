"""The node's network: a namespace of its own, joined to the host by one pair of links.

Nothing else of the host's network is touched: firewall rules, forwarding and bridges live in the
namespace, and the one route to the pods goes away with the link.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from pathlib import Path

from devcluster.layout import ClusterError
from devcluster.packages import required

NAMESPACE = "finetune-node"
NAMESPACE_FILE = Path("/run/netns") / NAMESPACE
HOST_LINK = "ftnode-host"
NODE_LINK = "ftnode"
HOST_ADDRESS = "10.99.0.254"
NODE_ADDRESS = "10.99.0.1"
NODE_NETWORK = "10.99.0.0/24"
POD_NETWORK = "10.244.0.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
KUBERNETES_SERVICE_ADDRESS = "10.96.0.1"


def create() -> None:
    """Make the namespace, the links and the route; raises if their addresses are taken."""
    _refuse_taken_addresses()
    _ip("netns", "add", NAMESPACE)
    _ip("link", "add", HOST_LINK, "type", "veth", "peer", "name", NODE_LINK)
    _ip("link", "set", NODE_LINK, "netns", NAMESPACE)
    _ip("addr", "add", f"{HOST_ADDRESS}/24", "dev", HOST_LINK)
    _ip("link", "set", HOST_LINK, "up")
    inside = ("-n", NAMESPACE)
    _ip(*inside, "addr", "add", f"{NODE_ADDRESS}/24", "dev", NODE_LINK)
    _ip(*inside, "link", "set", NODE_LINK, "up")
    _ip(*inside, "link", "set", "lo", "up")
    _ip(*inside, "route", "add", "default", "via", HOST_ADDRESS)
    _ip("route", "add", POD_NETWORK, "via", NODE_ADDRESS, "dev", HOST_LINK)
    forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
    subprocess.run(
        [required("nsenter"), f"--net={NAMESPACE_FILE}", "sh", "-c", forward], check=True
    )


def remove() -> None:
    """Idempotent; the route and the other link go with the host's link."""
    if _link_exists():
        _ip("link", "del", HOST_LINK)
    if NAMESPACE_FILE.exists():
        _ip("netns", "del", NAMESPACE)


def processes() -> list[int]:
    """Pids of everything that runs in the node's network namespace: ours by construction."""
    if not NAMESPACE_FILE.exists():
        return []
    return [int(pid) for pid in _ip("netns", "pids", NAMESPACE).split()]


def _link_exists() -> bool:
    return Path("/sys/class/net", HOST_LINK).exists()


def _refuse_taken_addresses() -> None:
    ours = [ipaddress.ip_network(network) for network in (NODE_NETWORK, POD_NETWORK)]
    for route in json.loads(_ip("-json", "-4", "route")):
        if route["dst"] == "default":
            continue
        taken = ipaddress.ip_network(route["dst"])
        for network in ours:
            if taken.overlaps(network):
                raise ClusterError(
                    f"the node needs the addresses {network}, but this machine routes {taken} to "
                    f"{route.get('dev')}: take that network down first"
                )


def _ip(*arguments: str) -> str:
    result = subprocess.run(
        [required("ip"), *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise ClusterError(f"`ip {' '.join(arguments)}` failed: {result.stderr.strip()}")
    return result.stdout
