"""The pods' DNS: A records of Services and of pods behind headless Services, from two watches.

Names outside the cluster do not exist: its pods have no way out.
"""

from __future__ import annotations

import argparse
import functools
import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from dnslib import QTYPE, RCODE, RR, A
from dnslib.server import BaseResolver, DNSLogger, DNSServer
from kubernetes import client

from devcluster.watching import connect, follow, run_together

DOMAIN = "cluster.local"
_TTL_SECONDS = 5
Zone = dict[str, list[str]]
"""IPv4 addresses by full name, without the final dot."""


def zone_of(services: Iterable[Any], slices: Iterable[Any]) -> Zone:
    """The records of Services (V1Service) and their EndpointSlices (V1EndpointSlice)."""
    zone: dict[str, list[str]] = defaultdict(list)
    headless = set()
    for service in services:
        name = f"{service.metadata.name}.{service.metadata.namespace}.svc.{DOMAIN}"
        if service.spec.cluster_ip == "None":
            headless.add(name)
            zone[name] = []  # The name exists, even while no pod is ready.
        elif service.spec.cluster_ip:
            zone[name].append(service.spec.cluster_ip)
    for each in slices:
        owner = (each.metadata.labels or {}).get("kubernetes.io/service-name")
        name = f"{owner}.{each.metadata.namespace}.svc.{DOMAIN}"
        if name in headless and each.address_type == "IPv4":
            for endpoint in each.endpoints or ():
                _add_endpoint(zone, name, endpoint)
    return dict(zone)


def _add_endpoint(zone: dict[str, list[str]], name: str, endpoint: Any) -> None:
    if endpoint.conditions.ready is False:
        return
    zone[name].extend(endpoint.addresses)
    if endpoint.hostname:
        zone[f"{endpoint.hostname}.{name}"].extend(endpoint.addresses)


class ClusterZone:
    """The zone as it is now; written by two watching threads, read by every query."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, dict[str, Any]] = {"services": {}, "slices": {}}
        self.zone: Zone = {}

    def follow(self, kind: str, listing: Any) -> None:
        objects = self._objects[kind]

        def apply(change: str, item: Any) -> None:
            with self._lock:
                if change == "DELETED":
                    objects.pop(item.metadata.uid, None)
                else:
                    objects[item.metadata.uid] = item
                self.zone = zone_of(
                    self._objects["services"].values(), self._objects["slices"].values()
                )

        follow(listing, objects.clear, apply)


class Resolver(BaseResolver):  # type: ignore[misc]
    """Answers from the zone; an unknown name is NXDOMAIN, another record type is empty."""

    def __init__(self, cluster: ClusterZone) -> None:
        self._cluster = cluster

    def resolve(self, request: Any, _handler: object) -> Any:
        reply = request.reply()
        name = str(request.q.qname).rstrip(".").lower()
        addresses = self._cluster.zone.get(name)
        if addresses is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype in {QTYPE.A, QTYPE.ANY}:
            for address in addresses:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=_TTL_SECONDS))
        return reply


def main() -> None:
    parser = argparse.ArgumentParser(prog="devcluster.dns", description=__doc__)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--address", required=True)
    arguments = parser.parse_args()
    api = connect(arguments.kubeconfig)
    cluster = ClusterZone()
    services = client.CoreV1Api(api).list_service_for_all_namespaces
    slices = client.DiscoveryV1Api(api).list_endpoint_slice_for_all_namespaces
    logger = DNSLogger("-request,-reply,-truncated,-data")
    for tcp in (False, True):
        server = DNSServer(
            Resolver(cluster), address=arguments.address, port=53, tcp=tcp, logger=logger
        )
        server.start_thread()
    run_together(
        functools.partial(cluster.follow, "services", services),
        functools.partial(cluster.follow, "slices", slices),
    )


if __name__ == "__main__":
    main()
