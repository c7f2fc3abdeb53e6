"""Which coordinator to talk to: what the command line says, else the environment, else what `relayctl up` wrote."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from relay.settings import read_secret

DEFAULT_COORDINATOR = "127.0.0.1:7070"


@dataclass(frozen=True, slots=True)
class Context:
    """An address, the secret that goes with it, and who said so."""

    coordinator: str
    secret: str = ""
    origin: str = ""


def context_path(environ: Mapping[str, str]) -> Path:
    """Where the default context lies."""
    home = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or Path.home()) / ".config"
    return Path(home) / "relay" / "context.json"


def resolve(given: str | None, environ: Mapping[str, str] = os.environ) -> Context:
    """The context in force; ValueError when the context file cannot be read or what was given is no address."""
    secret = read_secret(environ) or ""
    if given:
        return Context(checked(given, "--coordinator: "), secret, "--coordinator")
    if address := environ.get("RELAY_COORDINATOR"):
        return Context(checked(address, "RELAY_COORDINATOR: "), secret, "RELAY_COORDINATOR")
    path = context_path(environ)
    if not path.is_file():
        return Context(DEFAULT_COORDINATOR, secret, "the default")
    return Context(_stored(path), secret, str(path))


def checked(address: str, origin: str = "") -> str:
    """The address, when it is one; ValueError otherwise."""
    host, _, port = address.rpartition(":")
    if not (host and "/" not in host and port.isdecimal() and int(port) < 2**16):
        raise ValueError(f'{origin}an address reads HOST:PORT, found "{address}"')
    return address


def _stored(path: Path) -> str:
    try:
        address = json.loads(path.read_text())["coordinator"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a context; write a new one with: relayctl config --use HOST:PORT") from error
    return str(address)


def write(address: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Makes the address the default from now on."""
    path = context_path(environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps({"coordinator": address}) + "\n")
    fresh.replace(path)
    return path


def described(context: Context) -> dict[str, str]:
    """The context for people and programs; the secret stays where it is."""
    return {**asdict(context), "secret": "set" if context.secret else "not set"}
