"""What a manifest may say, for the kinds and fields that ours use.

Written by hand after the types of Kubernetes and of KubeRay 1.6 (ray.io/v1). Every object is closed: a field
that is misspelt, or that these lists do not know, is an error.
"""

from __future__ import annotations

from typing import Any

QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
"""Amounts; as text, so that YAML does not make a number of them."""
NAME = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63}
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
FLAG = {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": sorted(required),
        "additionalProperties": False,
    }


def several(item: dict[str, Any]) -> dict[str, Any]:
    """A list with at least one of these."""
    return {"type": "array", "items": item, "minItems": 1}


def constant(*values: Any) -> dict[str, Any]:
    """One of these values."""
    return {"enum": list(values)}


def document(version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A whole manifest."""
    metadata = closed({"name": NAME}, {"labels": TEXTS})
    return closed(
        {
            "apiVersion": constant(version),
            "kind": constant(kind),
            "metadata": metadata,
            "spec": spec,
        }
    )


AMOUNTS = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = closed({"requests": AMOUNTS}, {"limits": AMOUNTS})
SELECTOR = closed({}, {"matchLabels": TEXTS})

CONTAINER = closed(
    {"name": NAME, "image": TEXT, "resources": RESOURCES},
    {
        "command": several(TEXT),
        "args": several(TEXT),
        "envFrom": several(closed({"secretRef": closed({"name": NAME}, {"optional": FLAG})})),
        "ports": several(closed({"name": NAME, "containerPort": PORT})),
        "readinessProbe": closed({"tcpSocket": closed({"port": PORT})}),
        "volumeMounts": several(closed({"name": NAME, "mountPath": TEXT})),
    },
)
VOLUME = {
    "oneOf": [
        closed({"name": NAME, "persistentVolumeClaim": closed({"claimName": NAME})}),
        closed(
            {
                "name": NAME,
                "emptyDir": closed({"medium": constant("Memory"), "sizeLimit": QUANTITY}),
            }
        ),
    ]
}
TOLERATION = closed(
    {"key": TEXT, "operator": constant("Exists", "Equal"), "effect": constant("NoSchedule")}
)
POD = closed(
    {
        "metadata": closed({"labels": TEXTS}),
        "spec": closed(
            {
                "automountServiceAccountToken": FLAG,
                "securityContext": closed(
                    {"runAsNonRoot": constant(True), "runAsUser": COUNT, "fsGroup": COUNT}
                ),
                "containers": several(CONTAINER),
            },
            {"volumes": several(VOLUME), "tolerations": several(TOLERATION)},
        ),
    }
)
CLUSTER = closed(
    {
        "rayVersion": TEXT,
        "authOptions": closed({"mode": constant("token"), "secretName": NAME}),
        "headGroupSpec": closed(
            {"rayStartParams": TEXTS, "template": POD}, {"serviceType": constant("ClusterIP")}
        ),
        "workerGroupSpecs": several(
            closed(
                {"groupName": NAME, "rayStartParams": TEXTS, "template": POD},
                {"replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT},
            )
        ),
    },
    {
        "enableInTreeAutoscaling": FLAG,
        "autoscalerOptions": closed(
            {"version": constant("v2")}, {"idleTimeoutSeconds": COUNT, "resources": RESOURCES}
        ),
    },
)
JOB = closed(
    {"entrypoint": TEXT, "rayClusterSpec": CLUSTER},
    {
        "submissionMode": constant("K8sJobMode", "HTTPMode"),
        "runtimeEnvYAML": TEXT,
        "shutdownAfterJobFinishes": FLAG,
        "ttlSecondsAfterFinished": COUNT,
    },
)
CLAIM = closed(
    {
        "accessModes": several(constant("ReadWriteOnce", "ReadWriteMany")),
        "resources": closed({"requests": closed({"storage": QUANTITY})}),
    }
)
DEPLOYMENT = closed(
    {"selector": SELECTOR, "template": POD},
    {"replicas": COUNT, "strategy": closed({"type": constant("Recreate", "RollingUpdate")})},
)
SERVICE = closed(
    {
        "selector": TEXTS,
        "ports": several(closed({"port": PORT}, {"name": NAME, "targetPort": PORT})),
    }
)
PEER = closed({}, {"podSelector": SELECTOR, "namespaceSelector": SELECTOR})
POLICY = closed(
    {
        "podSelector": SELECTOR,
        "policyTypes": several(constant("Ingress", "Egress")),
        "ingress": several(
            closed(
                {"from": several(PEER)},
                {"ports": several(closed({"protocol": constant("TCP"), "port": PORT}))},
            )
        ),
    }
)

SCHEMAS = {
    "RayCluster": document("ray.io/v1", "RayCluster", CLUSTER),
    "RayJob": document("ray.io/v1", "RayJob", JOB),
    "PersistentVolumeClaim": document("v1", "PersistentVolumeClaim", CLAIM),
    "Deployment": document("apps/v1", "Deployment", DEPLOYMENT),
    "Service": document("v1", "Service", SERVICE),
    "NetworkPolicy": document("networking.k8s.io/v1", "NetworkPolicy", POLICY),
}
"""JSON schemas by kind."""
