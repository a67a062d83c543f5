package com.example.outbox;

import static com.example.outbox.Amounts.euros;

import java.time.Duration;
import java.util.UUID;
import money.v1.MoneyOuterClass.Money;
import order.v1.OrderOuterClass.CreateOrderRequest;
import order.v1.OrderOuterClass.Order;
import user.v1.UserOuterClass.CreateUserRequest;
import user.v1.UserOuterClass.CreateUserResponse;

/** Helpers that all steps share. */
abstract class Steps {
  /** Limits a watch, and the wait for what another service does asynchronously. */
  static final Duration WAIT_TIMEOUT = Duration.ofSeconds(10);

  final Services services;

  Steps(Services services) {
    this.services = services;
  }

  /** Places an order for a user that order-service may not know yet. */
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

  /** Returns the id that makes repeating a change safe. Every change has one. */
  static String newRequestId() {
    return UUID.randomUUID().toString();
  }

  static void check(boolean holds, String what, Object got) {
    if (!holds) {
      throw new IllegalStateException(what + ": " + got);
    }
  }
}
