-- Support CancelOrder and WatchOrders.
alter table orders
    add column cancel_reason text
        constraint orders_cancel_reason_known check (cancel_reason in ('requested', 'user_deleted')),
    add constraint orders_cancelled check ((state = 'cancelled') = (cancel_reason is not null)),
    -- The transaction that wrote this version. WatchOrders compares it with snapshots to find the rows that became visible
    -- since its last poll, as outbox-relay does with the outbox. No other column reflects the commit order.
    add column changed_xid xid8 not null default pg_current_xact_id();

-- Finds a user's changes by transaction id, which grows with time.
create index orders_changed_idx on orders (user_id, changed_xid, order_id);
