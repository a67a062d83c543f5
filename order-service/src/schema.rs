diesel::table! {
    users_cache (user_id) {
        user_id -> Uuid,
        email -> Nullable<Text>,
        name -> Nullable<Text>,
        version -> BigInt,
        deleted -> Bool,
    }
}

// There is also `changed_xid`, of a type that diesel does not know.
diesel::table! {
    orders (order_id) {
        order_id -> Uuid,
        user_id -> Uuid,
        amount_minor -> BigInt,
        currency -> Text,
        state -> Text,
        cancel_reason -> Nullable<Text>,
        version -> BigInt,
        create_time -> Timestamptz,
        update_time -> Timestamptz,
    }
}
