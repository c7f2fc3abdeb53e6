"""Parts of uploads that a killed process has left in an S3 bucket: no listing shows them, and they cost money.

obstore neither lists nor drops them, so the two requests are made here, signed (AWS Signature Version 4) with keys from
the environment. Where a host has a role instead, or its keys may not do this, the bucket's lifecycle rule does it.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from storage.address import Address
from storage.base import StoreAway
from storage.threads import in_thread

TIMEOUT = 30.0
ROUNDS = 100  #: each drops what one listing names
_READ = 4 * 1024 * 1024
_UPLOAD = re.compile(r"<Upload>.*?<Key>(.*?)</Key>.*?<UploadId>(.*?)</UploadId>.*?</Upload>", re.DOTALL)
_OTHER_ORDER = re.compile(r"<Upload>.*?<UploadId>(.*?)</UploadId>.*?<Key>(.*?)</Key>.*?</Upload>", re.DOTALL)
_NOTHING = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Keys:
    """How to sign, and where to."""

    endpoint: str
    region: str
    id: str
    secret: str
    token: str

    @classmethod
    def found(cls, environment: Mapping[str, str]) -> Keys | None:
        """From the environment, as obstore reads it; None when the keys are not in it."""
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
        endpoint = next((environment[name] for name in names if environment.get(name)), "")
        key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
        if not (key and secret):
            return None
        endpoint = endpoint.rstrip("/") or f"https://s3.{region}.amazonaws.com"
        return cls(endpoint, region, key, secret, environment.get("AWS_SESSION_TOKEN", ""))


async def drop_parts(folder: Address) -> None:
    """Drop the parts of uploads to keys below a folder that nobody goes on with. Raises StoreAway."""
    keys = Keys.found(os.environ)
    if folder.scheme == "s3" and keys is not None:
        await in_thread(_drop, keys, folder)


def _drop(keys: Keys, folder: Address) -> None:
    for _ in range(ROUNDS):
        listed = _ask(keys, "GET", f"/{folder.bucket}", {"uploads": "", "prefix": f"{folder.path}/"})
        found = _UPLOAD.findall(listed) or [(key, upload) for upload, key in _OTHER_ORDER.findall(listed)]
        for key, upload in found:
            _ask(keys, "DELETE", f"/{folder.bucket}/{html.unescape(key)}", {"uploadId": html.unescape(upload)})
        if not found:
            return


def _ask(keys: Keys, method: str, path: str, query: Mapping[str, str]) -> str:
    """The answer's text; empty when it is refused."""
    request = signed(keys, method, path, query, datetime.now(UTC))
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            text: str = answer.read(_READ).decode(errors="replace")
            return text
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 429 or error.code >= 500:
                raise StoreAway(f"{keys.endpoint}{path}: {error.code} {error.reason}") from None
            return ""
    except OSError as error:
        raise StoreAway(f"{keys.endpoint}{path}: {error}") from error


def signed(keys: Keys, method: str, path: str, query: Mapping[str, str], now: datetime) -> urllib.request.Request:
    """A request without a body, as AWS wants it."""
    moment, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    where, asked = quote(path), "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted(query.items()))
    headers = {"host": urlsplit(keys.endpoint).netloc, "x-amz-content-sha256": _NOTHING, "x-amz-date": moment}
    headers |= {"x-amz-security-token": keys.token} if keys.token else {}
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    canonical = "\n".join([method, where, asked, lines, names, _NOTHING])
    scope = f"{day}/{keys.region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{keys.secret}".encode()
    for part in (day, keys.region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    authorization = f"AWS4-HMAC-SHA256 Credential={keys.id}/{scope}, SignedHeaders={names}, Signature={signature}"
    request = urllib.request.Request(f"{keys.endpoint}{where}?{asked}", method=method)
    for name, value in {**headers, "authorization": authorization}.items():
        request.add_header(name, value)
    return request
