"""The container's health check, against a real gRPC server."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

HEALTHCHECK = Path(__file__).parents[2] / "deploy" / "healthcheck.py"
Status = health_pb2.HealthCheckResponse


@pytest.fixture
def servicer() -> health.HealthServicer:
    return health.HealthServicer()


@pytest.fixture
def address(servicer: health.HealthServicer) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def check(address: str) -> int:
    return subprocess.run([sys.executable, str(HEALTHCHECK), address], capture_output=True, check=False).returncode


def test_healthy_is_a_server_that_says_it_serves(servicer: health.HealthServicer, address: str) -> None:
    servicer.set("", Status.SERVING)
    assert check(address) == 0


def test_unhealthy_is_one_that_says_it_does_not(servicer: health.HealthServicer, address: str) -> None:
    servicer.set("", Status.NOT_SERVING)
    assert check(address) == 1


def test_unhealthy_is_no_server_at_all() -> None:
    assert check("127.0.0.1:1") == 1
