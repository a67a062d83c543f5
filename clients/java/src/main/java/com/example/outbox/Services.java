package com.example.outbox;

import com.google.gson.Gson;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.gson.reflect.TypeToken;
import io.grpc.ClientInterceptor;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import java.io.IOException;
import java.io.Reader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import order.v1.OrderServiceGrpc;
import order.v1.OrderServiceGrpc.OrderServiceBlockingStub;
import user.v1.UserServiceGrpc;
import user.v1.UserServiceGrpc.UserServiceBlockingStub;

/** The stubs of both services, on channels with the same options. */
final class Services implements AutoCloseable {
  /** The path is relative to the folder of this client, in which the program runs. */
  private static final Path SERVICE_CONFIG = Path.of("..", "service_config.json");

  final UserServiceBlockingStub users;
  final OrderServiceBlockingStub orders;
  private final ManagedChannel usersChannel;
  private final ManagedChannel ordersChannel;

  private Services(ManagedChannel usersChannel, ManagedChannel ordersChannel) {
    this.usersChannel = usersChannel;
    this.ordersChannel = ordersChannel;
    users = UserServiceGrpc.newBlockingStub(usersChannel);
    orders = OrderServiceGrpc.newBlockingStub(ordersChannel);
  }

  static Services connect(ClientInterceptor... interceptors) throws IOException {
    Map<String, ?> config = readServiceConfig();
    return new Services(
        channel("USER_SERVICE_ADDR", config, interceptors), channel("ORDER_SERVICE_ADDR", config, interceptors));
  }

  /** Timeouts, retries and waiting for a server that is down come from the service config. */
  private static ManagedChannel channel(String variable, Map<String, ?> config, ClientInterceptor... interceptors) {
    String address = System.getenv(variable);
    if (address == null) {
      throw new IllegalStateException(variable + " is not set");
    }
    return Grpc.newChannelBuilder(address, InsecureChannelCredentials.create())
        .defaultServiceConfig(config)
        .intercept(interceptors)
        .build();
  }

  /**
   * Reads the shared config and makes UNKNOWN retryable too: grpc-java reports it for a call on a connection that has
   * just broken (grpc/grpc-java#10120). The services return it only for requests that are not gRPC calls.
   */
  private static Map<String, ?> readServiceConfig() throws IOException {
    try (Reader reader = Files.newBufferedReader(SERVICE_CONFIG)) {
      JsonObject config = JsonParser.parseReader(reader).getAsJsonObject();
      for (JsonElement method : config.getAsJsonArray("methodConfig")) {
        JsonObject retryPolicy = method.getAsJsonObject().getAsJsonObject("retryPolicy");
        retryPolicy.getAsJsonArray("retryableStatusCodes").add("UNKNOWN");
      }
      return new Gson().fromJson(config, new TypeToken<Map<String, ?>>() {});
    }
  }

  @Override
  public void close() {
    usersChannel.shutdownNow();
    ordersChannel.shutdownNow();
  }
}
