"""Why a channel has no connection: nobody there, or somebody who does not agree about TLS."""

from __future__ import annotations

import grpc

from kvstore.core.errors import KVStoreError, UnauthenticatedError, UnavailableError

_ANSWER_S = 0.1
_SHAKEN = ("handshake failed", "Socket closed", "before receiving SETTINGS")
"""What gRPC says where the TCP connection was made, and ended during TLS or at the first frame: so
ends TLS on one side only, and a client's certificate that is missing or not accepted."""


async def why_not_connected(channel: grpc.aio.Channel, address: str, *, tls: bool) -> KVStoreError:
    """The error for a call that waited in vain. Takes 0.1 s at most.

    gRPC tells the cause of the last attempt only to a call that does not wait for the next one.
    """
    cause = ""
    if channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
        probe = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            await probe(b"", timeout=_ANSWER_S, wait_for_ready=False)
        except grpc.RpcError as error:
            cause = error.details() or ""
    if "timed out" in cause or not any(sign in cause for sign in _SHAKEN):
        return UnavailableError(
            f"{address}: nobody answers there; check that the node runs and listens on it"
        )
    here = "on" if tls else "off"
    return UnauthenticatedError(
        f"{address}: somebody listens there, but the TLS handshake fails ({cause}); TLS is {here} "
        "here: check that it is at the other end, that `ca` signed the server's certificate, and "
        "that `cert` is there and accepted if the server asks for one"
    )
