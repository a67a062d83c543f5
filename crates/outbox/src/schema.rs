// The columns that a writer fills. All others have defaults, and `xid`, `seq` and `bucket` must keep them.
diesel::table! {
    outbox (event_id) {
        event_id -> Uuid,
        topic -> Text,
        key -> Text,
        event_type -> Text,
        aggregate_version -> BigInt,
        payload -> Nullable<Binary>,
        headers -> Nullable<Jsonb>,
        traceparent -> Nullable<Text>,
    }
}
