package com.example.outbox;

import static com.example.outbox.Amounts.euros;
import static io.grpc.Status.Code.ABORTED;
import static io.grpc.Status.Code.FAILED_PRECONDITION;
import static io.grpc.Status.Code.INVALID_ARGUMENT;

import com.google.protobuf.FieldMask;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.UUID;
import order.v1.OrderOuterClass.CancelReason;
import order.v1.OrderOuterClass.CreateOrderRequest;
import order.v1.OrderOuterClass.GetOrderRequest;
import order.v1.OrderOuterClass.Order;
import order.v1.OrderOuterClass.OrderState;
import user.v1.UserOuterClass.CreateUserRequest;
import user.v1.UserOuterClass.CreateUserResponse;
import user.v1.UserOuterClass.DeleteUserRequest;
import user.v1.UserOuterClass.DeleteUserResponse;
import user.v1.UserOuterClass.UpdateUserRequest;
import user.v1.UserOuterClass.User;

/** The steps about users. */
final class UserSteps extends Steps {
  private static final long POLL_INTERVAL_MS = 50;

  UserSteps(Services services) {
    super(services);
  }

  /** An update applies to the version that was read, or is rejected. */
  String etag() throws Exception {
    User read = services.users.createUser(newUser()).getUser();
    User updated = rename(read, "Ada King");
    check(updated.getName().equals("Ada King") && updated.getEmail().equals(read.getEmail()), "updated", updated);
    check(updated.getVersion() == 2, "updated", updated);
    Rejection.want(ABORTED, "ETAG_MISMATCH", () -> rename(read, "Ada Byron"));
    return "etag " + read.getEtag() + " became " + updated.getEtag();
  }

  private User rename(User read, String name) {
    UpdateUserRequest request = UpdateUserRequest.newBuilder()
        .setUser(User.newBuilder().setUserId(read.getUserId()).setEtag(read.getEtag()).setName(name))
        .setUpdateMask(FieldMask.newBuilder().addPaths("name"))
        .setRequestId(newRequestId())
        .build();
    return services.users.updateUser(request).getUser();
  }

  /** An error lists every invalid field and says when to retry. */
  String error() throws Exception {
    CreateUserRequest bad = newUser().toBuilder().setEmail("nobody").setName("").build();
    Rejection invalid = Rejection.want(INVALID_ARGUMENT, "VALIDATION_FAILED", () -> services.users.createUser(bad));
    check(invalid.info().getDomain().equals("user-service"), "domain", invalid);
    check(invalid.fields().equals(List.of("email", "name")), "fields", invalid);
    CreateOrderRequest early = newOrder(UUID.randomUUID().toString(), euros("1")).build();
    Rejection unknown = Rejection.want(FAILED_PRECONDITION, "USER_UNKNOWN", () -> services.orders.createOrder(early));
    check(unknown.retryDelay().compareTo(Duration.ZERO) > 0, "retry delay", unknown);
    check(!unknown.preconditions().isEmpty(), "preconditions", unknown);
    return "invalid fields %s; %s, retry after %d ms"
        .formatted(invalid.fields(), unknown.preconditions(), unknown.retryDelay().toMillis());
  }

  /** The user is deleted at once, and order-service then cancels its orders. */
  String delete() throws Exception {
    CreateUserResponse user = services.users.createUser(newUser());
    Order order = placeOrder(user);
    DeleteUserRequest request = DeleteUserRequest.newBuilder()
        .setUserId(user.getUser().getUserId())
        .setRequestId(newRequestId())
        .build();
    DeleteUserResponse response = services.users.deleteUser(request);
    User deleted = response.getUser();
    check(deleted.hasDeleteTime() && deleted.getEmail().isEmpty() && deleted.getName().isEmpty(), "deleted", deleted);
    CreateOrderRequest late = newOrder(deleted.getUserId(), euros("1"))
        .setConsistencyToken(response.getConsistencyToken())
        .build();
    Rejection.want(FAILED_PRECONDITION, "USER_DELETED", () -> services.orders.createOrder(late));
    Instant end = Instant.now().plus(WAIT_TIMEOUT);
    while (order.getState() != OrderState.ORDER_STATE_CANCELLED) {
      check(Instant.now().isBefore(end), "still open", order);
      Thread.sleep(POLL_INTERVAL_MS);
      order = services.orders
          .getOrder(GetOrderRequest.newBuilder().setOrderId(order.getOrderId()).build())
          .getOrder();
    }
    check(order.getCancelReason() == CancelReason.CANCEL_REASON_USER_DELETED, "cancelled", order);
    return "user " + deleted.getUserId() + ", its open order was cancelled";
  }

  /**
   * A call succeeds although the server is killed. The service config retries it, and the request id makes that safe.
   */
  String retry() throws IOException {
    long pid = userServicePid();
    ProcessHandle process = ProcessHandle.of(pid).orElseThrow(() -> new IllegalStateException("no process " + pid));
    check(process.destroyForcibly(), "failed to kill", process);
    Instant started = Instant.now();
    User user = services.users.createUser(newUser()).getUser();
    return "user %s, %d ms after the kill"
        .formatted(user.getUserId(), Duration.between(started, Instant.now()).toMillis());
  }

  /** Prefers ENDPOINTS_FILE, which is updated after a restart of the service. */
  private static long userServicePid() throws IOException {
    String prefix = "USER_SERVICE_PID=";
    String value = System.getenv("USER_SERVICE_PID");
    String file = System.getenv("ENDPOINTS_FILE");
    if (file != null && Files.isReadable(Path.of(file))) {
      for (String line : Files.readAllLines(Path.of(file))) {
        value = line.startsWith(prefix) ? line.substring(prefix.length()) : value;
      }
    }
    if (value == null || value.isEmpty()) {
      throw new Scenario.Skipped("USER_SERVICE_PID is not set");
    }
    return Long.parseLong(value);
  }
}
