"""Join a Ray cluster, or say in one line why there is none to join."""

from __future__ import annotations

import os
import socket
from typing import Any

from layercoop_fast.errors import RequestError
from layercoop_fast.files import reason

# How long an address has to answer at all.
_CONNECT_SECONDS = 5.0


def join_cluster(ray: Any, address: str | None, *, written: str, otherwise: str = "") -> None:
    """Connect this process to a cluster.

    Args:
        ray: the package.
        address: "HOST:PORT", or None for the cluster that this machine is in, or that `RAY_ADDRESS` names.
        written: how a user names a cluster, for errors: "ray:HOST:PORT".
        otherwise: what else a user can do where there is no cluster, for errors.

    Raises `RequestError` for what is no address, and where no cluster answers.
    """
    named = address or os.environ.get("RAY_ADDRESS")
    if named not in (None, "auto") and "://" not in named:
        host, colon, port = named.rpartition(":")
        if not colon or not port.isdecimal():
            raise RequestError(f"{named!r} is not the address of a Ray cluster: write {written}")
        try:
            # Ray itself would try for minutes and then end the process.
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise RequestError(
                f"no Ray cluster answers at {named} ({reason(error)}): `ray start --head` starts one and says where"
            ) from error
    try:
        ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # ConnectionError, ValueError, RuntimeError: it depends on what is wrong
        where = f"at {named}" if named else "on this machine"
        raise RequestError(
            f"no Ray cluster answers {where} ({reason(error)[:200]}): start one with `ray start --head`, or name "
            f"another as {written}{otherwise}"
        ) from error
