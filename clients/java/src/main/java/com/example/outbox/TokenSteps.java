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

/** The steps about consistency tokens: with its token, a write is visible in every service. */
final class TokenSteps extends Steps {
  /** Set by the step create, used by the step order. */
  private CreateUserResponse created;

  TokenSteps(Services services) {
    super(services);
  }

  /** The response has a consistency token, which lets calls to other services wait for this write. */
  String create() {
    AtomicReference<Metadata> headers = new AtomicReference<>();
    AtomicReference<Metadata> trailers = new AtomicReference<>();
    CreateUserResponse response = services
        .users
        .withInterceptors(MetadataUtils.newCaptureMetadataInterceptor(headers, trailers))
        .createUser(newUser());
    User user = response.getUser();
    check(!user.getUserId().isEmpty() && !user.getEtag().isEmpty() && user.getVersion() == 1, "incomplete", response);
    String token = response.getConsistencyToken();
    check(!token.isEmpty(), "no token", response);
    check(token.equals(headers.get().get(TokenSession.TOKEN)), "x-consistency-token", headers);
    created = response;
    return "user " + user.getUserId();
  }

  /** With the token, order-service waits for the user's event. */
  String order() {
    check(created != null, "the step create did not create a user", created);
    return "order " + placeOrder(created).getOrderId();
  }

  /** An interceptor passes the token on; the calls do not mention it. */
  String metadata() throws Exception {
    TokenSession session = new TokenSession();
    try (Services following = Services.connect(session)) {
      CreateUserResponse user = following.users.createUser(newUser());
      check(user.getConsistencyToken().equals(session.token()), "x-consistency-token of CreateUser", session.token());
      String userId = user.getUser().getUserId();
      Order order = following.orders.createOrder(newOrder(userId, euros("19.90")).build()).getOrder();
      // A rejection proves that the service reads the token.
      session.token("no token");
      CreateOrderRequest request = newOrder(userId, euros("19.90")).build();
      Rejection invalid =
          Rejection.want(INVALID_ARGUMENT, "VALIDATION_FAILED", () -> following.orders.createOrder(request));
      check(invalid.fields().equals(List.of(TokenSession.TOKEN.name())), "fields", invalid);
      return "order " + order.getOrderId() + ", token passed by an interceptor";
    }
  }
}
