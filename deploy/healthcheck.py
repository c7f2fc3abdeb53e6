"""Exits 0 when the coordinator at the address says that it is serving: `python healthcheck.py 127.0.0.1:7070`."""

import sys

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

TIMEOUT = 4.0  # seconds


def main() -> None:
    with grpc.insecure_channel(sys.argv[1]) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        try:
            status = check(HealthCheckRequest(), timeout=TIMEOUT).status
        except grpc.RpcError as error:
            sys.exit(f"no answer: {error}")
    if status != HealthCheckResponse.SERVING:
        sys.exit(f"not serving: {HealthCheckResponse.ServingStatus.Name(status)}")


if __name__ == "__main__":
    main()
