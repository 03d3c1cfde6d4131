"""What a block hash commits to besides its tokens: everything that changes the KV bytes, or who may
see them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

from kvstore.core.encoding import encode_fields
from kvstore.core.layout import KVLayout


@dataclass(frozen=True)
class ModelIdentity:
    """All that two workers must share for their KV to be interchangeable.

    Every field is part of `root()`, so that a difference in any of them gives different block
    hashes.
    """

    weights: str
    """Digest of the weights (see `kvstore.client.huggingface.checkpoint`), not a name, which can be
    reused."""
    architecture: str
    """Model class and the configuration that shapes its computation, as canonical JSON (rope
    settings included)."""
    layout: KVLayout
    kv_format: str = "raw"
    """Quantisation of the KV itself, with its calibration: "raw", "fp8:<digest of scales>", ..."""
    lora: str = ""
    """Digest of the adapter's weights; empty without one."""
    multimodal: str = ""
    """Digest of images or sounds that stand in the prompt; empty for text."""
    tenant_salt: str = ""
    """Tenants with different salts never share a block. The last field: see `root`."""

    def root(self) -> bytes:
        """32 bytes that every prefix hash chain of this identity starts from."""
        values = [
            self.layout.fingerprint if isinstance(value, KVLayout) else value
            for value in (getattr(self, field.name) for field in fields(self)[:-1])
        ]
        root = hashlib.sha256(encode_fields("kvstore.root.v1", *values, "")).digest()
        return salted_root(root, self.tenant_salt)


def salted_root(root: bytes, tenant_salt: str) -> bytes:
    """The root of an identity with this salt, from `root` of the same one without: all that a
    router of requests has to know of a model. An empty salt changes nothing."""
    if not tenant_salt:
        return root
    return hashlib.sha256(encode_fields("kvstore.salt.v1", root, tenant_salt)).digest()
