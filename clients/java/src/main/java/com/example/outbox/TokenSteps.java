package com.example.outbox;

import static com.example.outbox.Amounts.euros;
import static io.grpc.Status.Code.INVALID_ARGUMENT;

import io.grpc.Metadata;
import io.grpc.stub.MetadataUtils;
import java.util.List;
import java.util.concurrent.atomic.AtomicReference;
import order.v1.OrderOuterClass.CreateOrderRequest;
import order.v1.OrderOuterClass.Order;
import user.v1.UserOuterClass.CreateUserResponse;
import user.v1.UserOuterClass.User;

/** Who was told of a write sees it everywhere, by its consistency token. */
final class TokenSteps extends Steps {
  /** By the first step, for the second. */
  private CreateUserResponse created;

  TokenSteps(Services services) {
    super(services);
  }

  /** The answer names its version, for calls to other services to wait for. */
  String create() {
    AtomicReference<Metadata> headers = new AtomicReference<>();
    AtomicReference<Metadata> trailers = new AtomicReference<>();
    CreateUserResponse answer = services
        .users
        .withInterceptors(MetadataUtils.newCaptureMetadataInterceptor(headers, trailers))
        .createUser(newUser());
    User user = answer.getUser();
    check(!user.getUserId().isEmpty() && !user.getEtag().isEmpty() && user.getVersion() == 1, "incomplete", answer);
    String token = answer.getConsistencyToken();
    check(!token.isEmpty(), "no token", answer);
    check(token.equals(headers.get().get(TokenSession.TOKEN)), "x-consistency-token", headers);
    created = answer;
    return "user " + user.getUserId();
  }

  /** With the token, order-service waits until it knows the user. */
  String order() {
    check(created != null, "needs the user of create", created);
    return "order " + placeOrder(created).getOrderId();
  }

  /** The same, and no code sees the token but an interceptor. */
  String metadata() throws Exception {
    TokenSession session = new TokenSession();
    try (Services following = Services.connect(session)) {
      CreateUserResponse user = following.users.createUser(newUser());
      check(user.getConsistencyToken().equals(session.token()), "x-consistency-token of CreateUser", session.token());
      String userId = user.getUser().getUserId();
      Order order = following.orders.createOrder(newOrder(userId, euros("19.90")).build()).getOrder();
      // Only a token that was read can be rejected.
      session.token("no token");
      CreateOrderRequest request = newOrder(userId, euros("19.90")).build();
      Rejection invalid =
          Rejection.want(INVALID_ARGUMENT, "VALIDATION_FAILED", () -> following.orders.createOrder(request));
      check(invalid.fields().equals(List.of(TokenSession.TOKEN.name())), "fields", invalid);
      return "order " + order.getOrderId() + ", the token carried by an interceptor";
    }
  }
}
