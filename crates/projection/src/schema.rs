diesel::table! {
    dead_letters (dead_letter_id) {
        dead_letter_id -> BigInt,
        projection -> Text,
        topic -> Text,
        partition -> Integer,
        record_offset -> BigInt,
        key -> Nullable<Binary>,
        payload -> Nullable<Binary>,
        header_names -> Array<Text>,
        header_values -> Array<Nullable<Binary>>,
        error_class -> Text,
        error -> Text,
        dead_lettered_at -> Timestamptz,
        in_topic -> Bool,
        erased_at -> Nullable<Timestamptz>,
    }
}
