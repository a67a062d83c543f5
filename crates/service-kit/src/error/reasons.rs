//! What a call of any service can be rejected for.

crate::reasons! {
    VALIDATION_FAILED: InvalidArgument, "fields of the request can't be accepted",
        "BadRequest, with every such field", "mend them";
    PAGE_TOKEN_INVALID: InvalidArgument, "`page_token` was changed, or is of another list",
        "", "begin again without a token";
    REQUEST_ID_REUSED: InvalidArgument, "`request_id` was used with another body",
        "", "make a new id for what is another request";
    MALFORMED_MESSAGE: InvalidArgument, "the message can't be decoded",
        "", "generate the client from the .proto files of this version or an older one";
    REQUEST_IN_FLIGHT: Aborted, "the same request, by its `request_id`, is being worked on",
        "RetryInfo", "repeat it for its answer";
    ETAG_MISMATCH: Aborted, "`etag` is not that of the present version: somebody else was faster",
        "", "read again, decide again";
    OVERLOADED: ResourceExhausted, "as many calls as the service can bear are under way",
        "RetryInfo, `grpc-retry-pushback-ms`", "repeat it after that time; nothing was done";
    MESSAGE_TOO_LARGE: ResourceExhausted, "the message is larger than 64 KiB",
        "`grpc-retry-pushback-ms` is -1: no retry", "send less";
    DEADLINE_EXCEEDED: DeadlineExceeded, "the call's deadline has passed, or the server's of 10 s",
        "", "repeat a write with its `request_id`: whether it took effect is unknown";
    DATABASE_UNAVAILABLE: Unavailable, "the service can't reach its database",
        "RetryInfo, `grpc-retry-pushback-ms`", "repeat it after that time, with its `request_id`";
    UNIMPLEMENTED: Unimplemented, "there is no such method, or no such compression",
        "", "look at the methods with server reflection";
    TRANSPORT: Unknown, "the call got no further than the transport, as one for the health of a name that is not known; the code is what fits best",
        "", "look at the message";
    INTERNAL: Internal, "the service has a fault",
        "RequestInfo, with a number", "report it with that number";
}
