diesel::table! {
    users (user_id) {
        user_id -> Uuid,
        email -> Text,
        email_key -> Text,
        name -> Text,
        version -> BigInt,
        create_time -> Timestamptz,
        update_time -> Timestamptz,
        delete_time -> Nullable<Timestamptz>,
    }
}
