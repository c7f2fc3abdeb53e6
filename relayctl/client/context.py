"""The coordinator to talk to: that of the command line, else of the environment, else of the context file."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from relay.settings import read_secret

DEFAULT_COORDINATOR = "127.0.0.1:7070"


@dataclass(frozen=True, slots=True)
class ClientContext:
    """A coordinator's address, the secret to send to it, and where the address comes from."""

    coordinator: str
    secret: str = ""
    origin: str = ""


def locate_context_file(environ: Mapping[str, str]) -> Path:
    """Return the path of the context file, which `relayctl up` and `relayctl config --use` write."""
    home = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or Path.home()) / ".config"
    return Path(home) / "relay" / "context.json"


def resolve(given: str | None, environ: Mapping[str, str] = os.environ) -> ClientContext:
    """Return the context in force; raises ValueError for what is no address and a context file that is damaged."""
    secret = read_secret(environ) or ""
    if given:
        return ClientContext(check_address(given, "--coordinator: "), secret, "--coordinator")
    if address := environ.get("RELAY_COORDINATOR"):
        return ClientContext(check_address(address, "RELAY_COORDINATOR: "), secret, "RELAY_COORDINATOR")
    path = locate_context_file(environ)
    if not path.is_file():
        return ClientContext(DEFAULT_COORDINATOR, secret, "the default")
    return ClientContext(_read_address(path), secret, str(path))


def check_address(address: str, origin: str = "") -> str:
    """Return the address if it reads HOST:PORT; raises ValueError, whose message begins with `origin`."""
    host, _, port = address.rpartition(":")
    if not (host and "/" not in host and port.isdecimal() and int(port) < 2**16):
        raise ValueError(f'{origin}an address reads HOST:PORT, found "{address}"')
    return address


def _read_address(path: Path) -> str:
    try:
        address = json.loads(path.read_text())["coordinator"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a context; write a new one with: relayctl config --use HOST:PORT") from error
    return str(address)


def write_context(address: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Write the context file, which makes this address the default, and return the file's path."""
    path = locate_context_file(environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps({"coordinator": address}) + "\n")
    fresh.replace(path)
    return path


def describe(context: ClientContext) -> dict[str, str]:
    """Return the context as texts to print, without the secret itself."""
    return {**asdict(context), "secret": "set" if context.secret else "not set"}
