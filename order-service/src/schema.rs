diesel::table! {
    users_cache (user_id) {
        user_id -> Uuid,
        email -> Nullable<Text>,
        name -> Nullable<Text>,
        version -> BigInt,
        deleted -> Bool,
    }
}

// Without `changed_xid`, whose type diesel does not support.
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
