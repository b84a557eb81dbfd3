"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler: keys and command lines."""

from __future__ import annotations

from pathlib import Path

from devcluster.certificates import Authority, write_service_account_keys
from devcluster.layout import Layout
from devcluster.network import KUBERNETES_SERVICE_ADDRESS, SERVICE_NETWORK
from devcluster.settings import LOOPBACK, Settings

NODE_NAME = "node1"
ADMINISTRATOR = "admin"
BENCH_USER = "bench"
_IDENTITIES = {
    ADMINISTRATOR: ("admin", "system:masters"),
    # Not system:masters, which is exempt from priority and fairness: what is measured must queue.
    BENCH_USER: ("bench", None),
    "controller-manager": ("system:kube-controller-manager", None),
    "scheduler": ("system:kube-scheduler", None),
    "devcluster": ("devcluster", "system:masters"),
}


def write_keys(layout: Layout, settings: Settings) -> None:
    """The certificate authority, every identity's certificate, and their kubeconfigs."""
    authority = Authority(layout.keys)
    service = "kubernetes.default.svc"
    authority.issue(
        "apiserver",
        "kube-apiserver",
        hosts=[
            LOOPBACK,
            settings.address,
            KUBERNETES_SERVICE_ADDRESS,
            *("localhost", "kubernetes", "kubernetes.default"),
            *(service, f"{service}.cluster.local"),
        ],
    )
    authority.issue("kubelet-client", "kubelet-client", organization="system:masters")
    for name, (common_name, organization) in _IDENTITIES.items():
        authority.issue(name, common_name, organization=organization)
        write_kubeconfig(authority, layout, settings, name)
    if settings.mode == "node":
        hosts = [NODE_NAME, settings.address]
        user = f"system:node:{NODE_NAME}"
        authority.issue(NODE_NAME, user, organization="system:nodes", hosts=hosts)
        write_kubeconfig(authority, layout, settings, NODE_NAME)
    write_service_account_keys(layout.keys)


def write_kubeconfig(authority: Authority, layout: Layout, settings: Settings, name: str) -> None:
    authority.write_kubeconfig(layout.kubeconfig(name), server=settings.server, file_name=name)


def etcd_arguments(layout: Layout, settings: Settings) -> list[str]:
    peer = f"http://{LOOPBACK}:{settings.etcd_peer_port}"
    return [
        f"--data-dir={layout.state / 'etcd'}",
        f"--listen-client-urls={settings.etcd}",
        f"--advertise-client-urls={settings.etcd}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        # Survives kill -9 of any process; only a power cut may lose writes, with the cluster.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver_arguments(layout: Layout, settings: Settings) -> list[str]:
    keys = layout.keys
    return [
        f"--etcd-servers={settings.etcd}",
        f"--secure-port={settings.port}",
        f"--advertise-address={settings.address}",
        f"--tls-cert-file={keys / 'apiserver.crt'}",
        f"--tls-private-key-file={keys / 'apiserver.key'}",
        f"--client-ca-file={keys / 'ca.crt'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={keys / 'sa.pub'}",
        f"--service-account-signing-key-file={keys / 'sa.key'}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        f"--kubelet-client-certificate={keys / 'kubelet-client.crt'}",
        f"--kubelet-client-key={keys / 'kubelet-client.key'}",
        f"--kubelet-certificate-authority={keys / 'ca.crt'}",
        "--allow-privileged=true",
        "--profiling=false",
        "--v=1",
        *(_node_arguments() if settings.mode == "node" else _loopback_arguments(settings)),
    ]


def _node_arguments() -> list[str]:
    return [
        "--bind-address=0.0.0.0",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        # Else logs and exec look the node's name up in DNS.
        "--kubelet-preferred-address-types=InternalIP",
    ]


def _loopback_arguments(settings: Settings) -> list[str]:
    arguments = [
        f"--bind-address={LOOPBACK}",
        "--authorization-mode=RBAC",
        # A loopback address is not allowed in the Endpoints of the Service `kubernetes`.
        "--endpoint-reconciler-type=none",
    ]
    if not settings.controllers:
        # Without kube-controller-manager no namespace gets the account that pods would need.
        arguments.append("--disable-admission-plugins=ServiceAccount")
    return arguments


def controller_manager_arguments(layout: Layout, port: int) -> list[str]:
    keys = layout.keys
    return [
        *_controller_arguments(layout.kubeconfig("controller-manager"), port),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={keys / 'sa.key'}",
        f"--root-ca-file={keys / 'ca.crt'}",
        f"--cluster-signing-cert-file={keys / 'ca.crt'}",
        f"--cluster-signing-key-file={keys / 'ca.key'}",
    ]


def scheduler_arguments(layout: Layout, port: int) -> list[str]:
    return _controller_arguments(layout.kubeconfig("scheduler"), port)


def _controller_arguments(kubeconfig: Path, port: int) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={port}",
        "--leader-elect=false",
    ]
