diesel::table! {
    request_ids (method, request_id) {
        method -> Text,
        request_id -> Uuid,
        fingerprint -> Binary,
        response -> Binary,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    token_keys (one) {
        one -> Bool,
        key -> Binary,
    }
}
