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

/** What becomes of users. */
final class UserSteps extends Steps {
  private static final long POLL_INTERVAL_MS = 50;

  UserSteps(Services services) {
    super(services);
  }

  /** An update holds for the version that was read, or not at all. */
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

  /** A rejection says what is wrong, all at once, and when to try again. */
  String error() throws Exception {
    CreateUserRequest bad = newUser().toBuilder().setEmail("nobody").setName("").build();
    Rejection invalid = Rejection.want(INVALID_ARGUMENT, "VALIDATION_FAILED", () -> services.users.createUser(bad));
    check(invalid.info().getDomain().equals("user-service"), "domain", invalid);
    check(invalid.fields().equals(List.of("email", "name")), "fields", invalid);
    CreateOrderRequest early = newOrder(UUID.randomUUID().toString(), euros("1")).build();
    Rejection unknown = Rejection.want(FAILED_PRECONDITION, "USER_UNKNOWN", () -> services.orders.createOrder(early));
    check(unknown.retryDelay().compareTo(Duration.ZERO) > 0, "retry delay", unknown);
    check(!unknown.preconditions().isEmpty(), "preconditions", unknown);
    return "bad fields %s; %s, again in %d ms"
        .formatted(invalid.fields(), unknown.preconditions(), unknown.retryDelay().toMillis());
  }

  /** The user is gone at once, and order-service follows. */
  String delete() throws Exception {
    CreateUserResponse user = services.users.createUser(newUser());
    Order order = placeOrder(user);
    DeleteUserRequest request = DeleteUserRequest.newBuilder()
        .setUserId(user.getUser().getUserId())
        .setRequestId(newRequestId())
        .build();
    DeleteUserResponse answer = services.users.deleteUser(request);
    User deleted = answer.getUser();
    check(deleted.hasDeleteTime() && deleted.getEmail().isEmpty() && deleted.getName().isEmpty(), "deleted", deleted);
    CreateOrderRequest late = newOrder(deleted.getUserId(), euros("1"))
        .setConsistencyToken(answer.getConsistencyToken())
        .build();
    Rejection.want(FAILED_PRECONDITION, "USER_DELETED", () -> services.orders.createOrder(late));
    Instant end = Instant.now().plus(PATIENCE);
    while (order.getState() != OrderState.ORDER_STATE_CANCELLED) {
      check(Instant.now().isBefore(end), "still open", order);
      Thread.sleep(POLL_INTERVAL_MS);
      order = services.orders
          .getOrder(GetOrderRequest.newBuilder().setOrderId(order.getOrderId()).build())
          .getOrder();
    }
    check(order.getCancelReason() == CancelReason.CANCEL_REASON_USER_DELETED, "cancelled", order);
    return "user " + deleted.getUserId() + ", and its order is cancelled";
  }

  /**
   * A server that dies costs time. There is no code for that here: the service config retries, and the request id makes
   * it safe.
   */
  String retry() throws IOException {
    long pid = userServicePid();
    ProcessHandle process = ProcessHandle.of(pid).orElseThrow(() -> new IllegalStateException("no process " + pid));
    check(process.destroyForcibly(), "can't kill", process);
    Instant began = Instant.now();
    User user = services.users.createUser(newUser()).getUser();
    return "user %s, %d ms after the kill"
        .formatted(user.getUserId(), Duration.between(began, Instant.now()).toMillis());
  }

  /** The file is preferred, which tells of restarts; the environment is as old as this process. */
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
