"""Runs a step for each guarantee of the API and prints a line for it: ok, failed or skipped; step; detail."""

import json
import os
import pathlib
import signal
import sys
import time
import uuid
from decimal import Decimal

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from money.v1.money_pb2 import Money
from order.v1 import order_pb2, order_pb2_grpc
from user.v1 import user_pb2, user_pb2_grpc

from client import SERVICE_CONFIG, ConsistencyTokens, Rejection, connect, rejection, to_decimal, to_money, token_of

USER_ADDR, ORDER_ADDR = os.environ["USER_SERVICE_ADDR"], os.environ["ORDER_SERVICE_ADDR"]
TEN_EUROS = to_money("EUR", Decimal("10.00"))
DELETE_TIMEOUT_S = 10
WATCH_TIMEOUT_S = 10

users = user_pb2_grpc.UserServiceStub(connect(USER_ADDR))
orders = order_pb2_grpc.OrderServiceStub(connect(ORDER_ADDR))


class Skipped(Exception):
    """Raised by a step that cannot run here."""


def request_id() -> str:
    """Returns a new id for one change. A repeated call with it gets the first response, so retries are safe."""
    return str(uuid.uuid4())


def create_user_request() -> user_pb2.CreateUserRequest:
    email = f"ada-{uuid.uuid4()}@example.com"
    return user_pb2.CreateUserRequest(email=email, name="Ada Lovelace", request_id=request_id())


def new_user() -> user_pb2.CreateUserResponse:
    return users.CreateUser(create_user_request())


def order_request(user_id: str, amount: Money = TEN_EUROS, token: str = "") -> order_pb2.CreateOrderRequest:
    return order_pb2.CreateOrderRequest(
        user_id=user_id, amount=amount, consistency_token=token, request_id=request_id()
    )


def new_order(user: user_pb2.CreateUserResponse, amount: Money = TEN_EUROS) -> order_pb2.Order:
    return orders.CreateOrder(order_request(user.user.user_id, amount, user.consistency_token)).order


def rejected(call, request, code: grpc.StatusCode, reason: str) -> Rejection:
    """Checks that a call is rejected, and returns why."""
    try:
        answer = call(request)
    except grpc.RpcError as error:
        why = rejection(error)
        assert (why.code, why.reason) == (code, reason), f"got {why.code} {why.reason} ({why.message}), want {reason}"
        return why
    raise AssertionError(f"accepted, want {reason}: {answer}")


def create() -> str:
    request = create_user_request()
    answer, call = users.CreateUser.with_call(request)
    user = answer.user
    assert user.user_id and user.etag and user.version == 1, user
    assert (user.email, user.name) == (request.email, request.name), user
    assert answer.consistency_token, "no consistency_token"
    assert token_of(call) == answer.consistency_token, "the metadata has another token"
    return user.user_id


def order() -> str:
    user = new_user()
    placed = orders.CreateOrder(order_request(user.user.user_id, token=user.consistency_token)).order
    assert placed.amount == TEN_EUROS and placed.state == order_pb2.ORDER_STATE_CREATED, placed
    return placed.order_id


def metadata() -> str:
    tokens = ConsistencyTokens()
    session_users = user_pb2_grpc.UserServiceStub(connect(USER_ADDR, tokens))
    session_orders = order_pb2_grpc.OrderServiceStub(connect(ORDER_ADDR, tokens))
    user = session_users.CreateUser(create_user_request())
    assert tokens.token == user.consistency_token, "the interceptor received no token"
    placed = session_orders.CreateOrder(order_request(user.user.user_id)).order

    tokens.token = "no token"  # A rejection proves that the service reads the token.
    request = order_request(user.user.user_id)
    bad = rejected(session_orders.CreateOrder, request, grpc.StatusCode.INVALID_ARGUMENT, "VALIDATION_FAILED")
    assert bad.fields == ["x-consistency-token"], bad
    return f"{placed.order_id}, token passed by an interceptor"


def page() -> str:
    user = new_user()
    placed = [new_order(user).order_id for _ in range(5)]
    listed, token, pages = [], "", 0
    while pages == 0 or token:
        request = order_pb2.ListOrdersRequest(user_id=user.user.user_id, page_size=2, page_token=token)
        answer = orders.ListOrders(request)
        listed += [order.order_id for order in answer.orders]
        last_token, token, pages = token, answer.next_page_token, pages + 1
    assert listed == placed, f"{listed}, not {placed}"

    middle = len(last_token) // 2
    changed = last_token[:middle] + ("A" if last_token[middle] != "A" else "B") + last_token[middle + 1 :]
    for user_id, token in (user.user.user_id, changed), (new_user().user.user_id, last_token):
        request = order_pb2.ListOrdersRequest(user_id=user_id, page_size=2, page_token=token)
        rejected(orders.ListOrders, request, grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    return f"{len(listed)} orders on {pages} pages"


def etag() -> str:
    created = new_user().user

    def rename(name):
        change = user_pb2.User(user_id=created.user_id, name=name, etag=created.etag)
        mask = FieldMask(paths=["name"])
        return user_pb2.UpdateUserRequest(user=change, update_mask=mask, request_id=request_id())

    updated = users.UpdateUser(rename("Ada King")).user
    assert (updated.name, updated.email, updated.version) == ("Ada King", created.email, 2), updated
    rejected(users.UpdateUser, rename("Ada Byron"), grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    return f"{created.etag} became {updated.etag}"


def cancel() -> str:
    placed = new_order(new_user())

    def request():
        return order_pb2.CancelOrderRequest(order_id=placed.order_id, request_id=request_id())

    cancelled = orders.CancelOrder(request()).order
    assert cancelled.state == order_pb2.ORDER_STATE_CANCELLED, cancelled
    assert cancelled.cancel_reason == order_pb2.CANCEL_REASON_REQUESTED and cancelled.version == 2, cancelled
    rejected(orders.CancelOrder, request(), grpc.StatusCode.FAILED_PRECONDITION, "ORDER_CANCELLED")
    return placed.order_id


def error() -> str:
    request = user_pb2.CreateUserRequest(email="no e-mail", name="", request_id=request_id())
    bad = rejected(users.CreateUser, request, grpc.StatusCode.INVALID_ARGUMENT, "VALIDATION_FAILED")
    assert (bad.domain, sorted(bad.fields)) == ("user-service", ["email", "name"]), bad
    request = order_request(str(uuid.uuid4()))
    unknown = rejected(orders.CreateOrder, request, grpc.StatusCode.FAILED_PRECONDITION, "USER_UNKNOWN")
    assert unknown.retry_delay and unknown.retry_delay > 0 and unknown.preconditions, unknown
    return f"{len(bad.fields)} invalid fields; retry after {unknown.retry_delay} s"


def repeat() -> str:
    request = order_request(new_user().user.user_id)
    first, second = orders.CreateOrder(request), orders.CreateOrder(request)
    assert first == second, f"{second}, not {first}"
    request.amount.units += 1
    rejected(orders.CreateOrder, request, grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    return first.order.order_id


def money() -> str:
    vectors = json.loads(SERVICE_CONFIG.with_name("money_vectors.json").read_text())
    user = new_user()

    def of(vector):
        return Money(currency_code=vector["currency_code"], units=int(vector["units"]), nanos=vector["nanos"])

    for vector in vectors["valid"]:
        amount, decimal = of(vector), Decimal(vector["decimal"])
        assert to_decimal(amount) == decimal and to_money(amount.currency_code, decimal) == amount, vector
        returned = new_order(user, amount).amount
        assert returned == amount, f"{returned}, not {vector}"
    for vector in vectors["invalid"]:
        request = order_request(user.user.user_id, of(vector))
        bad = rejected(orders.CreateOrder, request, grpc.StatusCode.INVALID_ARGUMENT, "VALIDATION_FAILED")
        assert sorted(bad.fields) == sorted(vector["fields"]), f"{bad.fields} for {vector}"
    return f"{len(vectors['valid'])} amounts are exact, {len(vectors['invalid'])} are rejected"


def watch() -> str:
    user = new_user()
    placed = [new_order(user).order_id for _ in range(2)]

    def follow(count, resume_token=""):
        request = order_pb2.WatchOrdersRequest(user_id=user.user.user_id, resume_token=resume_token)
        stream = orders.WatchOrders(request, timeout=WATCH_TIMEOUT_S)
        messages = [next(stream) for _ in range(count)]
        stream.cancel()
        return messages

    messages = follow(2)
    seen = [message.order.order_id for message in messages]
    assert sorted(seen) == sorted(placed), f"{seen}, not {placed}"
    third = new_order(user)
    (resumed,) = follow(1, messages[-1].resume_token)
    assert resumed.order == third, f"{resumed.order}, not {third}"
    return "two orders, then the third after resuming"


def delete() -> str:
    user = new_user()
    user_id, placed = user.user.user_id, new_order(user)
    request = user_pb2.DeleteUserRequest(user_id=user_id, etag=user.user.etag, request_id=request_id())
    answer = users.DeleteUser(request)
    deleted = answer.user
    assert deleted.HasField("delete_time") and not deleted.email and not deleted.name, deleted
    request = order_request(user_id, token=answer.consistency_token)
    rejected(orders.CreateOrder, request, grpc.StatusCode.FAILED_PRECONDITION, "USER_DELETED")

    deadline = time.monotonic() + DELETE_TIMEOUT_S
    while (current := orders.GetOrder(order_pb2.GetOrderRequest(order_id=placed.order_id)).order) == placed:
        assert time.monotonic() < deadline, f"still open after {DELETE_TIMEOUT_S} s: {current}"
        time.sleep(0.05)
    assert current.state == order_pb2.ORDER_STATE_CANCELLED, current
    assert current.cancel_reason == order_pb2.CANCEL_REASON_USER_DELETED, current
    return f"{user_id}, its open order was cancelled"


def retry() -> str:
    pid = user_service_pid()
    if not pid:
        raise Skipped("USER_SERVICE_PID is not set")
    new_user()  # Opens the connection that the kill breaks.
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    new_user()
    return f"answered {time.monotonic() - started:.1f} s after the server was killed"


def user_service_pid() -> int | None:
    """Prefers ENDPOINTS_FILE, which is updated after a restart of the service."""
    endpoints = pathlib.Path(os.environ.get("ENDPOINTS_FILE", "/dev/null"))
    lines = dict(line.split("=", 1) for line in endpoints.read_text().splitlines()) if endpoints.exists() else {}
    pid = lines.get("USER_SERVICE_PID") or os.environ.get("USER_SERVICE_PID")
    return int(pid) if pid else None


STEPS = [create, order, metadata, page, etag, cancel, error, repeat, money, watch, delete, retry]


def run(step) -> str:
    try:
        result, detail = "ok", step()
    except Skipped as why:
        result, detail = "skipped", str(why)
    except grpc.RpcError as err:
        why = rejection(err)
        result, detail = "failed", f"{why.code.name} {why.reason}: {why.message}"
    except Exception as err:
        result, detail = "failed", f"{type(err).__name__}: {err}"
    print(result, step.__name__, " ".join(detail.split()), sep="\t", flush=True)
    return result


if __name__ == "__main__":
    results = [run(step) for step in STEPS]
    sys.exit("failed" in results)
