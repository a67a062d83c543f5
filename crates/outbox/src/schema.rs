// The columns that a writer sets. All others have defaults, which `xid`, `seq` and `bucket` require.
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
