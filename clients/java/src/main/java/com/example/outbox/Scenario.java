package com.example.outbox;

import java.util.LinkedHashMap;
import java.util.Map;

/** The steps, in their order. Each throws if an answer is not what the contract promises. */
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

  /** What a client does, told in a few words. */
  interface Step {
    String run() throws Exception;
  }

  /** Why a step was not run. */
  static final class Skipped extends RuntimeException {
    Skipped(String why) {
      super(why);
    }
  }

  /** Runs all of them, prints a line for each, and tells whether all held. */
  boolean run() {
    boolean held = true;
    for (Map.Entry<String, Step> step : steps.entrySet()) {
      held &= run(step.getKey(), step.getValue());
    }
    return held;
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
