"""The nodes of a cluster: who they are, what is in use, and whether their stacks are alike."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from prismrec.cluster import stack
from prismrec.cluster.network import addresses, pick_interface
from prismrec.config import UserError

ANSWER_S = 60.0
"""Seconds in which a node has to say what it has installed."""


@dataclass(frozen=True, slots=True)
class Member:
    """One node of a cluster.

    Args:
        address: its IP address.
        hostname: its name.
        is_head: whether the cluster's head runs on it.
        interface: what gloo and NCCL of workers there talk over.
        cores, gpus: how many Ray may give to workers.
        cores_used, gpus_used: how many of these are given away.
        memory, memory_used: bytes of the machine.
        versions: its stack, by name.
    """

    address: str
    hostname: str
    is_head: bool
    interface: str
    cores: float
    cores_used: float
    gpus: float
    gpus_used: float
    memory: int
    memory_used: int
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The node in the document of `prismrec cluster status --json`."""
        return {name: getattr(self, name) for name in self.__slots__}


def members() -> list[Member]:
    """Every living node of the cluster that this process is connected to, the head first.

    Raises:
        UserError: a node does not answer.
    """
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    free = _free()
    reports = _ask([node["NodeID"] for node in alive])
    found = []
    for node in alive:
        report, total, left = reports[node["NodeID"]], node["Resources"], free[node["NodeID"]]
        cores, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
        found.append(
            Member(
                address=node["NodeManagerAddress"],
                hostname=report["hostname"],
                is_head="node:__internal_head__" in total,
                interface=report["interface"],
                cores=cores,
                cores_used=cores - left.get("CPU", 0.0),
                gpus=gpus,
                gpus_used=gpus - left.get("GPU", 0.0),
                memory=report["memory"],
                memory_used=report["memory_used"],
                versions=report["versions"],
            )
        )
    return sorted(found, key=lambda each: (not each.is_head, each.address, each.hostname))


def check_members(here: dict[str, str] | None = None, whose: str = "this machine") -> None:
    """Refuse a cluster with a node whose stack differs.

    Args:
        here: the versions that count; those of this process if not given.
        whose: what they are called.

    Raises:
        UserError: the node, what differs and both lists.
    """
    expected = here or stack.stack_versions()
    for member in members():
        stack.check_stack(expected, member.versions, member.address, whose)


def report() -> dict[str, Any]:
    """What the machine says of itself; runs on every node."""
    import os

    import psutil
    import ray

    own = ray.util.get_node_ip_address()
    memory = psutil.virtual_memory()
    chosen = os.environ.get("GLOO_SOCKET_IFNAME", "")
    known = addresses()
    return {
        "hostname": socket.gethostname(),
        "interface": chosen or (pick_interface(own) if known else ""),
        "memory": memory.total,
        "memory_used": memory.total - memory.available,
        "versions": stack.stack_versions(),
    }


def _free() -> dict[str, dict[str, float]]:
    """What no worker has, by node id."""
    from ray._private.state import available_resources_per_node

    return dict(available_resources_per_node())


def _ask(nodes: list[str]) -> dict[str, dict[str, Any]]:
    """Run `report` on every node, at the same time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0)(report)
        asked[task.options(scheduling_strategy=there).remote()] = node
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    if silent:
        names = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        raise UserError(
            f"the nodes {', '.join(names[asked[each]] for each in silent)} did not say within "
            f"{ANSWER_S:.0f} s what they have installed; look at `prismrec doctor` there"
        )
    try:
        return {asked[each]: ray.get(each) for each in ready}
    except ray.exceptions.RayError as error:
        last = [line for line in str(error).splitlines() if line.strip()][-1].strip()
        raise UserError(
            f"a node cannot say what it has installed: {last[:300]}; every node needs prismrec "
            "and its stack (`prismrec doctor` there)"
        ) from error
