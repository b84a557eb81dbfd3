"""Every name that more than one process has to agree on."""

from typing import Final

GROUP: Final = "finetune.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "FineTuneJob"
PLURAL: Final = "finetunejobs"
SINGULAR: Final = "finetunejob"
SHORT_NAME: Final = "ftj"

JOB_NAME_LENGTH: Final = 40
"""Longest name of a job: `<job>-trainer-<attempt>-<node rank>` must be a host name (63 characters),
and so must be what a Deployment appends to `<job>-rollout-<attempt>`."""

MANAGER: Final = "finetune-operator"
"""Field manager of server-side apply and value of app.kubernetes.io/managed-by on every child."""

MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
JOB_LABEL: Final = f"{GROUP}/job"
JOB_UID_LABEL: Final = f"{GROUP}/job-uid"
ROLE_LABEL: Final = f"{GROUP}/role"
ATTEMPT_LABEL: Final = f"{GROUP}/attempt"
RANK_LABEL: Final = f"{GROUP}/node-rank"

HASH_ANNOTATION: Final = f"{GROUP}/desired-hash"
CONFIG_ANNOTATION: Final = f"{GROUP}/config"
"""The trainer's job.json, mounted into the pod by the downward API: no ConfigMap to clean up."""

PREPARE_ROLE: Final = "prepare"
TRAINER_ROLE: Final = "trainer"
CONTAINER: Final = "trainer"
"""The one container of prepare and trainer pods."""

GPU_RESOURCE: Final = "nvidia.com/gpu"
GPU_PRODUCT_LABEL: Final = "nvidia.com/gpu.product"

CONFIG_DIR: Final = "/etc/finetune"
CONFIG_FILE: Final = f"{CONFIG_DIR}/job.json"
WORKSPACE_DIR: Final = "/workspace"
OUTPUT_DIR: Final = "/output"
SOURCES_DIR: Final = "/sources"
"""pvc://CLAIM is mounted at /sources/pvc/CLAIM, configmap://NAME at /sources/configmap/NAME."""

TERMINATION_MESSAGE_FILE: Final = "/dev/termination-log"
TERMINATION_MESSAGE_BYTES: Final = 4096
"""The kubelet cuts termination messages at this size."""

METRICS_PORT: Final = 9400
RENDEZVOUS_PORT: Final = 29500

DEVICE_ENV: Final = "FINETUNE_DEVICE"
"""`cpu` lets a trainer that was given GPUs run without CUDA: stand-in GPUs of a test cluster."""
