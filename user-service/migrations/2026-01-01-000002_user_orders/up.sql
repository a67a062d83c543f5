-- Orders, which order-service owns: the latest version of each from its events.
create table user_orders (
    order_id uuid constraint user_orders_pkey primary key,
    user_id uuid not null,
    -- In the currency's units with its decimal places: 19.90.
    amount numeric(38, 9) not null,
    currency text not null constraint user_orders_currency_code check (currency ~ '^[A-Z]{3}$'),
    cancelled boolean not null,
    version bigint not null,
    update_time timestamptz not null
);

-- Totals by user and currency, updated in the transaction that changes user_orders.
create table user_order_summaries (
    user_id uuid not null,
    currency text not null,
    order_count bigint not null,
    cancelled_count bigint not null,
    -- Of the orders that are not cancelled.
    total numeric(38, 9) not null,
    as_of_time timestamptz not null,
    constraint user_order_summaries_pkey primary key (user_id, currency)
);
