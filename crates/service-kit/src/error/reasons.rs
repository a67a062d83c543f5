//! The reasons that calls of every service share.

crate::reasons! {
    VALIDATION_FAILED: InvalidArgument, "request fields are invalid",
        "BadRequest, listing every invalid field", "correct the listed fields";
    PAGE_TOKEN_INVALID: InvalidArgument, "`page_token` was altered or belongs to another list",
        "", "start over without a token";
    REQUEST_ID_REUSED: InvalidArgument, "`request_id` was used with a different body",
        "", "use a new id for a different request";
    MALFORMED_MESSAGE: InvalidArgument, "the message can't be decoded",
        "", "generate the client from the .proto files of this version or an older one";
    REQUEST_IN_FLIGHT: Aborted, "a request with the same `request_id` is in progress",
        "RetryInfo", "retry to get its response";
    ETAG_MISMATCH: Aborted, "`etag` is not the current version: another caller changed the resource",
        "", "read the resource again and reapply the change";
    OVERLOADED: ResourceExhausted, "the limit on concurrent calls is reached",
        "RetryInfo, `grpc-retry-pushback-ms`", "retry after the given delay; nothing was changed";
    MESSAGE_TOO_LARGE: ResourceExhausted, "the message is larger than 64 KiB",
        "`grpc-retry-pushback-ms` is -1: no retry", "send a smaller message";
    DEADLINE_EXCEEDED: DeadlineExceeded, "the call's deadline or the server's (10 s by default) has passed",
        "", "retry a write with the same `request_id`: it may have taken effect";
    DATABASE_UNAVAILABLE: Unavailable, "the service can't reach its database",
        "RetryInfo, `grpc-retry-pushback-ms`", "retry after the given delay with the same `request_id`";
    UNIMPLEMENTED: Unimplemented, "the method or the compression encoding is unknown",
        "", "list the methods with server reflection";
    TRANSPORT: Unknown,
        "failed outside the service's methods, such as a health check of an unknown name; the code varies",
        "", "read the message";
    INTERNAL: Internal, "the service has a bug",
        "RequestInfo, with an id", "report the id; the service logs the error under it";
}
