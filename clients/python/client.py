"""A client for both services with retries, consistency tokens, decoded errors and exact money.

Copy this file and the stubs.
"""

import pathlib
from collections import namedtuple
from dataclasses import dataclass
from decimal import Decimal

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from money.v1.money_pb2 import Money

TOKEN_KEY = "x-consistency-token"
SERVICE_CONFIG = pathlib.Path(__file__).parent.with_name("service_config.json")


def connect(address: str, *interceptors) -> grpc.Channel:
    """Returns a channel that retries as the service config says. Requests with a request_id are safe to repeat."""
    options = [("grpc.service_config", SERVICE_CONFIG.read_text())]
    return grpc.intercept_channel(grpc.insecure_channel(address, options), *interceptors)


class _Details(
    namedtuple("_Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")),
    grpc.ClientCallDetails,
):
    pass


class ConsistencyTokens(grpc.UnaryUnaryClientInterceptor):
    """Gives read-your-writes across services: sends the token of the last response with the next call.

    Create one per user session and share it between that session's channels.
    """

    def __init__(self, token: str | None = None):
        self.token = token

    def intercept_unary_unary(self, continuation, call_details, request):
        details = _Details(*(getattr(call_details, field, None) for field in _Details._fields))
        if self.token:
            details = details._replace(metadata=[*(details.metadata or ()), (TOKEN_KEY, self.token)])
        call = continuation(details, request)
        call.add_done_callback(self._remember)
        return call

    def _remember(self, call):
        self.token = token_of(call) or self.token


def token_of(call: grpc.Call) -> str | None:
    """Returns the consistency token in the metadata of a response. Rejections have none."""
    return dict(call.initial_metadata() or ()).get(TOKEN_KEY)


@dataclass
class Rejection:
    """Why a call was rejected. Branch on `reason`; show `message` to people."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    fields: list[str]
    """All invalid fields of the request."""
    preconditions: list[str]
    retry_delay: float | None
    """Seconds to wait before a retry. It is None when a retry does not help."""


def rejection(error: grpc.RpcError) -> Rejection:
    """Decodes the google.rpc.Status of an error."""
    status = rpc_status.from_call(error)

    def detail(kind):
        message = kind()
        packed = status.details if status else ()
        return message if any(any_.Unpack(message) for any_ in packed) else None

    info = detail(error_details_pb2.ErrorInfo) or error_details_pb2.ErrorInfo()
    bad = detail(error_details_pb2.BadRequest)
    preconditions = detail(error_details_pb2.PreconditionFailure)
    retry = detail(error_details_pb2.RetryInfo)
    return Rejection(
        code=error.code(),
        message=error.details(),
        reason=info.reason,
        domain=info.domain,
        fields=[violation.field for violation in bad.field_violations] if bad else [],
        preconditions=[violation.type for violation in preconditions.violations] if preconditions else [],
        retry_delay=retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
    )


def to_decimal(money: Money) -> Decimal:
    """Returns 19.9 for 19 units and 900,000,000 nanos. Exact: no float is involved."""
    return Decimal(money.units) + Decimal(money.nanos).scaleb(-9)


def to_money(currency_code: str, amount: Decimal) -> Money:
    """The inverse of `to_decimal`. Raises ValueError for more than nine decimal places instead of rounding."""
    units = int(amount)
    nanos = int((amount - units).scaleb(9))
    money = Money(currency_code=currency_code, units=units, nanos=nanos)
    if to_decimal(money) != amount:
        raise ValueError(f"{amount} has more than nine decimal places")
    return money
