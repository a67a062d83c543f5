package com.example.outbox;

import java.util.LinkedHashMap;
import java.util.Map;

/** The steps in order. Each throws if a response breaks the contract. */
final class Scenario {
  private final Map<String, Step> steps = new LinkedHashMap<>();

  Scenario(Services services) {
    TokenSteps tokens = new TokenSteps(services);
    OrderSteps orders = new OrderSteps(services);
    UserSteps users = new UserSteps(services);
    steps.put("create", tokens::create);
    steps.put("order", tokens::order);
    steps.put("metadata", tokens::metadata);
    steps.put("page", orders::page);
    steps.put("etag", users::etag);
    steps.put("cancel", orders::cancel);
    steps.put("error", users::error);
    steps.put("repeat", orders::repeat);
    steps.put("money", orders::money);
    steps.put("watch", orders::watch);
    steps.put("delete", users::delete);
    steps.put("retry", users::retry);
  }

  /** A step. It returns a short detail. */
  interface Step {
    String run() throws Exception;
  }

  /** Thrown by a step that cannot run here. */
  static final class Skipped extends RuntimeException {
    Skipped(String why) {
      super(why);
    }
  }

  /** Runs all steps, prints a line for each, and returns whether all passed. */
  boolean run() {
    boolean passed = true;
    for (Map.Entry<String, Step> step : steps.entrySet()) {
      passed &= run(step.getKey(), step.getValue());
    }
    return passed;
  }

  private static boolean run(String name, Step step) {
    try {
      print("ok", name, step.run());
    } catch (Skipped why) {
      print("skipped", name, why.getMessage());
    } catch (Exception why) {
      print("failed", name, why.getMessage() == null ? why.toString() : why.getMessage());
      return false;
    }
    return true;
  }

  private static void print(String outcome, String step, String detail) {
    System.out.println(String.join("\t", outcome, step, detail.strip().replaceAll("\\s+", " ")));
  }
}
