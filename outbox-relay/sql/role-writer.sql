-- Grants the minimum privileges to a program that writes events. Replace `shop_app` by its role. The program can't set the
-- columns with the time and the transaction of a row: a row with the `xid` of another transaction, such as one that is copied
-- back from a backup, may never be published. Revoke an existing INSERT privilege on the whole table.
grant insert (event_id, topic, key, event_type, aggregate_version, payload, headers, traceparent) on outbox to shop_app;
grant usage on sequence outbox_seq to shop_app;
