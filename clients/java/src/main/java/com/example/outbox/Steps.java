package com.example.outbox;

import static com.example.outbox.Amounts.euros;

import java.time.Duration;
import java.util.UUID;
import money.v1.MoneyOuterClass.Money;
import order.v1.OrderOuterClass.CreateOrderRequest;
import order.v1.OrderOuterClass.Order;
import user.v1.UserOuterClass.CreateUserRequest;
import user.v1.UserOuterClass.CreateUserResponse;

/** What the steps have in common. */
abstract class Steps {
  /** How long a watch, and what another service does by itself, may take here. */
  static final Duration PATIENCE = Duration.ofSeconds(10);

  final Services services;

  Steps(Services services) {
    this.services = services;
  }

  /** Orders for a user that may be too new for order-service. */
  final Order placeOrder(CreateUserResponse user) {
    return services.orders.createOrder(newOrder(user, euros("19.90"))).getOrder();
  }

  static CreateUserRequest newUser() {
    String id = newRequestId();
    return CreateUserRequest.newBuilder()
        .setEmail("ada+" + id + "@example.com")
        .setName("Ada Lovelace")
        .setRequestId(id)
        .build();
  }

  static CreateOrderRequest newOrder(CreateUserResponse user, Money amount) {
    return newOrder(user.getUser().getUserId(), amount)
        .setConsistencyToken(user.getConsistencyToken())
        .build();
  }

  static CreateOrderRequest.Builder newOrder(String userId, Money amount) {
    return CreateOrderRequest.newBuilder().setUserId(userId).setAmount(amount).setRequestId(newRequestId());
  }

  /** Every mutation has one: with it, sending it again is safe. */
  static String newRequestId() {
    return UUID.randomUUID().toString();
  }

  static void check(boolean holds, String what, Object got) {
    if (!holds) {
      throw new IllegalStateException(what + ": " + got);
    }
  }
}
