"""Two hosts on one machine: network namespaces with a virtual link between them."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

HOSTS = tuple(f"pixmix-{os.getpid()}-{number}" for number in range(2))
"""Names of the network namespaces."""
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def two_hosts() -> Iterator[Sequence[str]]:
    """Yield the names of two namespaces; skip the test where they are not permitted."""

    def ip(command: str) -> None:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)

    try:
        for host in HOSTS:
            ip(f"netns add {host}")
        ip(f"link add pixmix-0 netns {HOSTS[0]} type veth peer name pixmix-1 netns {HOSTS[1]}")
        for number, (host, address) in enumerate(zip(HOSTS, ADDRESSES, strict=True)):
            ip(f"-n {host} addr add {address}/24 dev pixmix-{number}")
            ip(f"-n {host} link set pixmix-{number} up")
            ip(f"-n {host} link set lo up")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces need root, and ip of iproute2")
    else:
        yield HOSTS
    finally:
        if shutil.which("ip") is not None:
            for host in HOSTS:
                kill_host(host)
                subprocess.run(["ip", "netns", "delete", host], capture_output=True)


def kill_host(host: str) -> None:
    """Kill all processes of a namespace, like a power failure."""
    found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True)
    for process in found.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
