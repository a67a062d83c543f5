package com.example.outbox;

import static com.example.outbox.Amounts.euros;
import static io.grpc.Status.Code.FAILED_PRECONDITION;
import static io.grpc.Status.Code.INVALID_ARGUMENT;
import static java.util.concurrent.TimeUnit.SECONDS;

import io.grpc.Context;
import java.math.BigDecimal;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.Iterator;
import java.util.List;
import java.util.Set;
import java.util.UUID;
import money.v1.MoneyOuterClass.Money;
import order.v1.OrderOuterClass.CancelOrderRequest;
import order.v1.OrderOuterClass.CancelReason;
import order.v1.OrderOuterClass.CreateOrderRequest;
import order.v1.OrderOuterClass.CreateOrderResponse;
import order.v1.OrderOuterClass.ListOrdersRequest;
import order.v1.OrderOuterClass.ListOrdersResponse;
import order.v1.OrderOuterClass.Order;
import order.v1.OrderOuterClass.OrderState;
import order.v1.OrderOuterClass.WatchOrdersRequest;
import order.v1.OrderOuterClass.WatchOrdersResponse;
import user.v1.UserOuterClass.CreateUserResponse;

/** The steps about orders. */
final class OrderSteps extends Steps {
  OrderSteps(Services services) {
    super(services);
  }

  /** Lists pages of two orders until there is no next page. */
  String page() throws Exception {
    CreateUserResponse user = services.users.createUser(newUser());
    Set<String> placed = new HashSet<>();
    for (int i = 0; i < 5; i++) {
      placed.add(placeOrder(user).getOrderId());
    }
    ListOrdersRequest.Builder request =
        ListOrdersRequest.newBuilder().setUserId(user.getUser().getUserId()).setPageSize(2);
    List<String> listed = new ArrayList<>();
    int pages = 0;
    String token = "";
    while (true) {
      ListOrdersResponse page = services.orders.listOrders(request.build());
      pages++;
      page.getOrdersList().forEach(order -> listed.add(order.getOrderId()));
      if (page.getNextPageToken().isEmpty()) {
        break;
      }
      token = page.getNextPageToken();
      request.setPageToken(token);
    }
    check(listed.size() == 5 && placed.equals(Set.copyOf(listed)), "listed", listed);
    ListOrdersRequest changed = request.setPageToken(changeOne(token)).build();
    Rejection.want(INVALID_ARGUMENT, "PAGE_TOKEN_INVALID", () -> services.orders.listOrders(changed));
    ListOrdersRequest foreign =
        request.setPageToken(token).setUserId(UUID.randomUUID().toString()).build();
    Rejection.want(INVALID_ARGUMENT, "PAGE_TOKEN_INVALID", () -> services.orders.listOrders(foreign));
    return listed.size() + " orders on " + pages + " pages";
  }

  /** An order is cancelled once. */
  String cancel() throws Exception {
    Order placed = placeOrder(services.users.createUser(newUser()));
    Order cancelled = cancelOrder(placed);
    check(cancelled.getState() == OrderState.ORDER_STATE_CANCELLED && cancelled.getVersion() == 2, "order", cancelled);
    check(cancelled.getCancelReason() == CancelReason.CANCEL_REASON_REQUESTED, "order", cancelled);
    Rejection.want(FAILED_PRECONDITION, "ORDER_CANCELLED", () -> cancelOrder(placed));
    return "order " + cancelled.getOrderId();
  }

  private Order cancelOrder(Order order) {
    CancelOrderRequest request = CancelOrderRequest.newBuilder()
        .setOrderId(order.getOrderId())
        .setRequestId(newRequestId())
        .build();
    return services.orders.cancelOrder(request).getOrder();
  }

  /** A request that is sent twice is executed once. */
  String repeat() throws Exception {
    CreateUserResponse user = services.users.createUser(newUser());
    CreateOrderRequest request = newOrder(user, euros("19.90"));
    CreateOrderResponse first = services.orders.createOrder(request);
    CreateOrderResponse second = services.orders.createOrder(request);
    check(first.equals(second), "another response", second);
    CreateOrderRequest other = request.toBuilder().setAmount(euros("19.91")).build();
    Rejection.want(INVALID_ARGUMENT, "REQUEST_ID_REUSED", () -> services.orders.createOrder(other));
    return "order " + first.getOrder().getOrderId();
  }

  /** Amounts are exact to the last digit or rejected. */
  String money() throws Exception {
    Amounts.Vectors vectors = Amounts.Vectors.read();
    CreateUserResponse user = services.users.createUser(newUser());
    for (Amounts.Vector vector : vectors.valid()) {
      CreateOrderRequest request = newOrder(user, vector.money());
      Money amount = services.orders.createOrder(request).getOrder().getAmount();
      check(amount.equals(vector.money()), "amount of " + vector, amount);
      check(Amounts.toDecimal(amount).toString().equals(vector.decimal()), "decimal of", vector);
      Money read = Amounts.fromDecimal(vector.currencyCode(), new BigDecimal(vector.decimal()));
      check(amount.equals(read), "read from " + vector, read);
    }
    for (Amounts.Vector vector : vectors.invalid()) {
      CreateOrderRequest request = newOrder(user, vector.money());
      Rejection rejection =
          Rejection.want(INVALID_ARGUMENT, "VALIDATION_FAILED", () -> services.orders.createOrder(request));
      check(rejection.fields().equals(vector.fields().stream().sorted().toList()), "fields of " + vector, rejection);
    }
    return vectors.valid().size() + " exact, " + vectors.invalid().size() + " rejected";
  }

  /** A new stream resumes where the previous one ended. */
  String watch() {
    CreateUserResponse user = services.users.createUser(newUser());
    Set<String> placed = Set.of(placeOrder(user).getOrderId(), placeOrder(user).getOrderId());
    WatchOrdersRequest request =
        WatchOrdersRequest.newBuilder().setUserId(user.getUser().getUserId()).build();
    List<WatchOrdersResponse> seen = watchSome(request, 2);
    check(placed.equals(Set.copyOf(orderIds(seen))), "seen", seen);
    String third = placeOrder(user).getOrderId();
    String resumeToken = seen.get(1).getResumeToken();
    seen = watchSome(request.toBuilder().setResumeToken(resumeToken).build(), 1);
    check(orderIds(seen).equals(List.of(third)), "seen after resuming", seen);
    return "two orders, then the third after resuming";
  }

  /** Reads this number of messages and ends the stream. */
  private List<WatchOrdersResponse> watchSome(WatchOrdersRequest request, int count) {
    List<WatchOrdersResponse> seen = new ArrayList<>();
    // Closing the context ends the stream. Without a deadline it lasts as long as the server allows.
    try (Context.CancellableContext ending = Context.current().withCancellation()) {
      ending.run(() -> {
        Iterator<WatchOrdersResponse> stream =
            services.orders.withDeadlineAfter(WAIT_TIMEOUT.toSeconds(), SECONDS).watchOrders(request);
        while (seen.size() < count) {
          seen.add(stream.next());
        }
      });
    }
    return seen;
  }

  private static List<String> orderIds(List<WatchOrdersResponse> seen) {
    return seen.stream().map(message -> message.getOrder().getOrderId()).toList();
  }

  /** Replaces the character in the middle. */
  private static String changeOne(String token) {
    int middle = token.length() / 2;
    char other = token.charAt(middle) == 'A' ? 'B' : 'A';
    return token.substring(0, middle) + other + token.substring(middle + 1);
  }
}
