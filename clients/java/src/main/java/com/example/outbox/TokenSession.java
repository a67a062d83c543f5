package com.example.outbox;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.ForwardingClientCallListener.SimpleForwardingClientCallListener;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;

/**
 * Gives read-your-writes across services: it sends the last received consistency token with the next call. Keep one per
 * user session, not one per program.
 */
final class TokenSession implements ClientInterceptor {
  /** The metadata key of consistency tokens. Both services send them; order-service accepts them. */
  static final Metadata.Key<String> TOKEN =
      Metadata.Key.of("x-consistency-token", Metadata.ASCII_STRING_MARSHALLER);

  private volatile String token;

  /** Returns the last token, or null before the first response. */
  String token() {
    return token;
  }

  /** Sets a token from elsewhere, such as another process. */
  void token(String token) {
    this.token = token;
  }

  @Override
  public <Q, A> ClientCall<Q, A> interceptCall(MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
    return new SimpleForwardingClientCall<>(next.newCall(method, options)) {
      @Override
      public void start(Listener<A> listener, Metadata headers) {
        if (token != null) {
          headers.put(TOKEN, token);
        }
        super.start(new TokenListener<>(listener), headers);
      }
    };
  }

  private final class TokenListener<A> extends SimpleForwardingClientCallListener<A> {
    TokenListener(ClientCall.Listener<A> listener) {
      super(listener);
    }

    @Override
    public void onHeaders(Metadata headers) {
      if (headers.containsKey(TOKEN)) {
        token = headers.get(TOKEN);
      }
      super.onHeaders(headers);
    }
  }
}
