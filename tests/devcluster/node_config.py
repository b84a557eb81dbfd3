"""Configuration files of a node's daemons, rendered from where its files lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from devcluster.host import CONTROL_GROUP
from devcluster.layout import NODE_RUN, Layout
from devcluster.network import NODE_ADDRESS, POD_NETWORK

REGISTRY = f"{NODE_ADDRESS}:5000"
PAUSE_IMAGE = "registry.local/pause:1"
CONTAINERD_SOCKET = NODE_RUN / "containerd.sock"


def containerd_toml(layout: Layout, cni_folder: Path) -> str:
    """Images stay in the cache; everything of running containers lies in NODE_RUN."""
    return f"""\
version = 2
root = "{layout.cache / "containerd"}"
state = "{NODE_RUN / "containerd"}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
path = "{layout.state / "opt"}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
disable_tcp_service = true
# Root without CAP_SYS_RESOURCE may not lower the score, and runc then cannot start anything.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
# The unpacked layers are enough; the packed ones are in the registry.
discard_unpacked_layers = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
Root = "{NODE_RUN / "runc"}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_folder}"
conf_dir = "{layout.state / "cni"}"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."{REGISTRY}"]
endpoint = ["http://{REGISTRY}"]
"""


def cni_conflist(layout: Layout) -> str:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": POD_NETWORK}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(layout.state / "addresses"),
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": addresses,
    }
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]})


def kubelet_yaml(layout: Layout, node_name: str) -> str:
    keys = layout.keys
    return _yaml(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_ADDRESS,
            "port": 10250,
            "healthzBindAddress": "127.0.0.1",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(keys / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(keys / f"{node_name}.crt"),
            "tlsPrivateKeyFile": str(keys / f"{node_name}.key"),
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{CONTROL_GROUP}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "resolvConf": "",
            "clusterDNS": [NODE_ADDRESS],
            "clusterDomain": "cluster.local",
            "podLogsDir": str(layout.state / "pod-logs"),
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "nodefs.inodesFree": "1%",
                "imagefs.available": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageMinimumGCAge": "24h",
            "nodeStatusUpdateFrequency": "5s",
        }
    )


def kube_proxy_yaml(kubeconfig: Path) -> str:
    return _yaml(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "clusterCIDR": POD_NETWORK,
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            # Pods share one bridge: an answer that does not pass through the node again would
            # keep the pod's address instead of the Service's.
            "iptables": {"masqueradeAll": True},
            # Zero leaves the kernel's own limits, which are the host's, alone.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
    )


def registry_yaml(layout: Layout) -> str:
    return _yaml(
        {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(layout.cache / "registry")},
                "delete": {"enabled": True},
            },
            "http": {"addr": REGISTRY},
        }
    )


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False)
