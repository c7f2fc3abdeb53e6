"""Requests signed as AWS wants them, and parts of killed uploads dropped for real."""

import asyncio
import urllib.request
from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from storage.address import parse
from storage.parts import Keys, drop_parts, signed
from tests.storage.kept import unfinished


def test_a_signature_is_that_of_the_published_example() -> None:
    """GET Bucket Lifecycle, in the S3 documentation of Signature Version 4."""
    keys = Keys(
        "https://examplebucket.s3.amazonaws.com",
        "us-east-1",
        "AKIAIOSFODNN7EXAMPLE",
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "",
    )
    request = signed(keys, "GET", "/", {"lifecycle": ""}, datetime(2013, 5, 24, tzinfo=UTC))
    signature = "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
    assert str(request.get_header("Authorization")).endswith(f"Signature={signature}")
    assert request.full_url == "https://examplebucket.s3.amazonaws.com/?lifecycle="


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({}, "https://s3.us-east-1.amazonaws.com"),
        ({"AWS_REGION": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com"),
        ({"AWS_ENDPOINT_URL": "http://minio:9000/"}, "http://minio:9000"),
    ],
)
def test_keys_come_from_the_environment(environment: dict[str, str], endpoint: str) -> None:
    keys = Keys.found({"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", **environment})
    assert keys is not None and keys.endpoint == endpoint
    assert Keys.found(environment) is None


async def test_only_parts_below_the_folder_are_dropped(bucket: str, s3: str) -> None:
    folder = parse(bucket)
    for key in ("mine/a b&c.bin", "mine/deep/x", "mine-too/x"):
        url = f"http://{s3}/{folder.bucket}/{folder.path}/{quote(key)}?uploads="
        request = urllib.request.Request(url, method="POST")
        (await asyncio.to_thread(urllib.request.urlopen, request)).close()
    await drop_parts(folder / "mine")
    assert [key for key in await unfinished(s3) if folder.path in key] == [f"{folder.path}/mine-too/x"]
