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
 * Lets a call see what was written just before it, whichever service wrote it: it remembers the last consistency token
 * that it was given and sends it along. Keep one for each user of your program, not one for all.
 */
final class TokenSession implements ClientInterceptor {
  /** The metadata in which both services give, and order-service takes, a token. */
  static final Metadata.Key<String> TOKEN =
      Metadata.Key.of("x-consistency-token", Metadata.ASCII_STRING_MARSHALLER);

  private volatile String token;

  /** The last token; null before the first. */
  String token() {
    return token;
  }

  /** Goes on with a token from elsewhere: of another process, say. */
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
        super.start(new Remembering<>(listener), headers);
      }
    };
  }

  private final class Remembering<A> extends SimpleForwardingClientCallListener<A> {
    Remembering(ClientCall.Listener<A> listener) {
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
