"""What names a store, and what does not."""

import pytest

from storage.address import AddressError, parse_address


@pytest.mark.parametrize(
    ("uri", "bucket", "path"),
    [
        ("file:///mnt/share/runs", "", "/mnt/share/runs"),
        ("file:///mnt/share/runs/", "", "/mnt/share/runs"),
        ("file:///mnt/a%20share", "", "/mnt/a share"),
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("gs://my-bucket/a/b=c", "my-bucket", "a/b=c"),
        ("az://container/x", "container", "x"),
    ],
)
def test_what_is_named(uri: str, bucket: str, path: str) -> None:
    found = parse_address(uri)
    assert (found.bucket, found.path) == (bucket, path)
    assert parse_address(str(found)) == found
    assert str(found / "x") == f"{found!s}/x"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("ftp://x/y", "ftp:// is not a store"),
        ("nothing", "is not a store"),
        ("s3://key:secret@bucket/x", "hosts take those from their own environment"),
        ("s3://bucket/x?X-Amz-Signature=abc", "hosts take those from their own environment"),
        ("az://container/x#sig", "hosts take those from their own environment"),
        ("s3://", "not the name of a bucket"),
        ("s3://UPPER/x", "not the name of a bucket"),
        ("s3://bucket/a//b", "single slashes"),
        ("s3://bucket/../b", "single slashes"),
        ("s3://bucket/a b", "single slashes"),
        ("file://host/x", "absolute folder"),
        ("file:///", "absolute folder"),
        ("file:///a/../b", "absolute folder"),
        ("file:relative", "absolute folder"),
    ],
)
def test_r6_what_is_refused(uri: str, says: str) -> None:
    with pytest.raises(AddressError, match=says) as refused:
        parse_address(uri)
    assert "secret" not in str(refused.value) and "abc" not in str(refused.value)
