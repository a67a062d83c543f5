-- Orders can be cancelled, and followed.
alter table orders
    add column cancel_reason text
        constraint orders_cancel_reason_known check (cancel_reason in ('requested', 'user_deleted')),
    add constraint orders_cancelled check ((state = 'cancelled') = (cancel_reason is not null)),
    -- The transaction that wrote this version. WatchOrders compares it with snapshots, to tell what became visible since
    -- it last looked, as outbox-relay does with the outbox: there is no other column that orders commits.
    add column changed_xid xid8 not null default pg_current_xact_id();

-- A user's changes are found by their transactions, which grow with time.
create index orders_changed_idx on orders (user_id, changed_xid, order_id);
