package com.example.outbox;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.PreconditionFailure;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.Callable;

/**
 * The decoded google.rpc.Status of a rejected call.
 *
 * @param info branch on its reason
 * @param fields the invalid fields, sorted
 * @param preconditions the types of the failed preconditions
 */
record Rejection(
    Status.Code code, ErrorInfo info, List<String> fields, List<String> preconditions, Duration retryDelay) {

  static Rejection of(StatusRuntimeException rejected) throws InvalidProtocolBufferException {
    ErrorInfo info = ErrorInfo.getDefaultInstance();
    List<String> fields = List.of();
    List<String> preconditions = List.of();
    Duration retryDelay = Duration.ZERO;
    for (Any detail : StatusProto.fromThrowable(rejected).getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        info = detail.unpack(ErrorInfo.class);
      } else if (detail.is(BadRequest.class)) {
        fields = detail.unpack(BadRequest.class).getFieldViolationsList().stream()
            .map(BadRequest.FieldViolation::getField)
            .sorted()
            .toList();
      } else if (detail.is(PreconditionFailure.class)) {
        preconditions = detail.unpack(PreconditionFailure.class).getViolationsList().stream()
            .map(PreconditionFailure.Violation::getType)
            .toList();
      } else if (detail.is(RetryInfo.class)) {
        com.google.protobuf.Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
        retryDelay = Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
      }
    }
    return new Rejection(rejected.getStatus().getCode(), info, fields, preconditions, retryDelay);
  }

  /** Checks that a call is rejected with this code and reason. */
  static Rejection want(Status.Code code, String reason, Callable<?> call) throws Exception {
    Object response;
    try {
      response = call.call();
    } catch (StatusRuntimeException rejected) {
      Rejection rejection = of(rejected);
      if (rejection.code() != code || !rejection.info().getReason().equals(reason)) {
        throw new IllegalStateException("want " + code + " " + reason + ", got " + rejection, rejected);
      }
      return rejection;
    }
    throw new IllegalStateException("accepted, want " + code + " " + reason + ": " + response);
  }
}
