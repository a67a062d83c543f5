-- Orders, which this service owns.
create table orders (
    order_id uuid constraint orders_pkey primary key,
    -- Not a foreign key to users_cache, because that table can be rebuilt.
    user_id uuid not null,
    -- In the currency's minor units: 1990 for 19.90 EUR.
    amount_minor bigint not null constraint orders_amount_positive check (amount_minor > 0),
    currency text not null constraint orders_currency_code check (currency ~ '^[A-Z]{3}$'),
    state text not null constraint orders_state_known check (state in ('created', 'cancelled')),
    version bigint not null constraint orders_version_positive check (version > 0),
    create_time timestamptz not null,
    update_time timestamptz not null
);

-- A user's orders by creation time: ids are UUIDv7, which start with a timestamp.
create index orders_user_id_idx on orders (user_id, order_id);
