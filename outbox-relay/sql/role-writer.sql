-- What a program needs that writes events, and nothing else: replace `shop_app` by its role. The columns that it may not set
-- are those from which the relay learns when a row was written and by which transaction: a row with another's `xid`, as
-- one that is copied back from a backup has, may never be published. A grant of the whole table, if there is one, stays: revoke it.
grant insert (event_id, topic, key, event_type, aggregate_version, payload, headers, traceparent) on outbox to shop_app;
grant usage on sequence outbox_seq to shop_app;
