"""Whom a server lets in: tokens and CURVE keys, and the caller that each stands for.

The file holds no secrets, but decides who may do what:

    [[client]]
    name = "team-a"                       # in messages and logs
    token_sha256 = "9f86d081884c7d65..."  # for gRPC; from `kvstore token`
    curve_public_key = "Yne@$w-vo<fVv..." # for ZeroMQ; from `kvstore keys`
    tenant = "team-a"                     # left out: any tenant, for peers and administrators
    roles = ["client"]                    # client, peer, admin
    expires = 2027-01-31T00:00:00Z        # left out: never
"""

from __future__ import annotations

import hashlib
import hmac
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from kvstore.core.errors import ConfigurationError, UnauthenticatedError
from kvstore.transports.security.caller import Caller, Role
from kvstore.transports.security.files import read_trusted

K = TypeVar("K", bytes, str)
Now = Callable[[], datetime]

_INDEX_BYTES = 8


class ClientEntry(BaseModel):
    """One `[[client]]` of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    token_sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    curve_public_key: Annotated[str, StringConstraints(min_length=40, max_length=40)] | None = None
    tenant: str | None = None
    roles: frozenset[Role] = Field(frozenset({Role.CLIENT}), min_length=1)
    expires: AwareDatetime | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.token_sha256 is None and self.curve_public_key is None:
            raise ValueError("give token_sha256, curve_public_key or both")
        if self.tenant is None and Role.CLIENT in self.roles:
            raise ValueError('a client needs a tenant; "" is the default one')
        return self

    @property
    def caller(self) -> Caller:
        return Caller(self.name, self.tenant, self.roles)


class Clients:
    """Table of the entries. Immutable after construction; any thread may ask. A change of the file
    counts from the next start of the server."""

    def __init__(self, entries: Sequence[ClientEntry], *, now: Now = lambda: datetime.now(UTC)):
        """Raises ConfigurationError if two entries share a token or key."""
        self._now = now
        self._tokens: dict[bytes, ClientEntry] = {}
        self._keys: dict[str, ClientEntry] = {}
        for entry in entries:
            if entry.token_sha256 is not None:
                digest = bytes.fromhex(entry.token_sha256)
                _add(self._tokens, digest[:_INDEX_BYTES], entry, "token_sha256")
            if entry.curve_public_key is not None:
                _add(self._keys, entry.curve_public_key, entry, "curve_public_key")

    @classmethod
    def load(cls, setting: str, path: Path) -> Self:
        """Raises ConfigurationError, one line that names what cannot be used."""
        try:
            document = tomllib.loads(read_trusted(setting, path).decode())
            unknown = document.keys() - {"client"}
            if unknown:
                raise ConfigurationError(
                    f"{setting}: {path}: unknown key {min(unknown)!r}; write [[client]] tables"
                )
            return cls(_ENTRIES.validate_python(document.get("client", [])))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{setting}: {path}: not valid TOML: {error}") from error
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, problem["loc"]))
            raise ConfigurationError(
                f"{setting}: {path}: client {where}: {problem['msg']}"
            ) from error

    def caller_of_token(self, token: str) -> Caller:
        """Raises UnauthenticatedError for a token that is unknown or expired."""
        digest = token_digest(token)
        entry = self._tokens.get(digest[:_INDEX_BYTES])
        # Compared in constant time; how the table is searched tells of digests only, from which no
        # token follows.
        if entry is None or not hmac.compare_digest(digest.hex(), entry.token_sha256 or ""):
            raise UnauthenticatedError("the token is unknown here; give the right one")
        return self._unexpired(entry)

    def caller_of_key(self, curve_public_key: str) -> Caller:
        """Raises UnauthenticatedError for a CURVE key (Z85) that is unknown or expired."""
        entry = self._keys.get(curve_public_key)
        if entry is None:
            raise UnauthenticatedError("the CURVE key is unknown here; use one that is listed")
        return self._unexpired(entry)

    def knows_key(self, curve_public_key: str) -> bool:
        """Also when it has expired."""
        return curve_public_key in self._keys

    def _unexpired(self, entry: ClientEntry) -> Caller:
        if entry.expires is not None and entry.expires <= self._now():
            raise UnauthenticatedError(
                f"the credentials of {entry.name} expired at {entry.expires.isoformat()}; "
                "get new ones"
            )
        return entry.caller


def token_digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


_ENTRIES = TypeAdapter(list[ClientEntry])


def _add(table: dict[K, ClientEntry], key: K, entry: ClientEntry, field: str) -> None:
    if key in table:
        raise ConfigurationError(
            f"clients {table[key].name!r} and {entry.name!r} have the same {field}; give each "
            "its own"
        )
    table[key] = entry
