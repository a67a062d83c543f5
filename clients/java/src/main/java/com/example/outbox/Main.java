package com.example.outbox;

import io.grpc.ManagedChannel;

/**
 * Calls user-service and order-service and checks every response.
 *
 * <p>It reads USER_SERVICE_ADDR, ORDER_SERVICE_ADDR and USER_SERVICE_PID, and prints a line for each step.
 */
public final class Main {
  private Main() {}

  public static void main(String[] args) throws Exception {
    if (args.length > 0 && args[0].equals("--version")) {
      String grpc = ManagedChannel.class.getPackage().getImplementationVersion();
      System.out.println("java " + System.getProperty("java.version") + ", grpc-java " + grpc);
      return;
    }
    boolean passed;
    try (Services services = Services.connect()) {
      passed = new Scenario(services).run();
    }
    System.exit(passed ? 0 : 1);
  }
}
