-- The transactional outbox: one row per event, inserted in the transaction that changes the domain, and published by
-- outbox-relay. Rows are never updated or deleted. The relay truncates published partitions.

-- Cache 1 is required: with cached ranges, two sessions that change one row one after the other could draw their numbers in
-- reverse order.
create sequence outbox_seq as bigint cache 1;

create table outbox (
    -- The writing transaction. The relay compares it with snapshots to find the rows that became visible since the last poll.
    xid xid8 not null default pg_current_xact_id(),
    -- Orders the events of one key: a transaction holds the aggregate's row lock while it draws the number. Across keys it is
    -- not the order of commits. Rolled-back transactions leave gaps.
    seq bigint not null default nextval('outbox_seq') constraint outbox_seq_positive check (seq > 0),
    -- The event's id, the same in each copy of it (header ce_id).
    event_id uuid not null default gen_random_uuid(),
    topic text not null constraint outbox_topic_named check (octet_length(topic) between 1 and 249),
    -- The id of the aggregate, and the key of the record. Events with the same key stay in order.
    key text not null constraint outbox_key_named check (octet_length(key) between 1 and 1024),
    event_type text not null constraint outbox_event_type_named check (event_type <> ''),
    aggregate_version bigint not null,
    -- The value of the record. Null makes a tombstone, after which compaction removes the key.
    payload bytea,
    -- Additional headers, a JSON object of strings.
    headers jsonb constraint outbox_headers_strings check (
        jsonb_typeof(headers) = 'object'
        and not jsonb_path_exists(headers, 'strict $.* ? (@.type() != "string")', '{}', true)
    ),
    -- The W3C trace context of the request that wrote the row.
    traceparent text,
    created_at timestamptz not null default clock_timestamp(),
    -- The partition. New rows go to each partition for ten minutes in rotation.
    bucket smallint not null
        default (date_part('epoch', clock_timestamp())::bigint / 600 % 8)::smallint
) partition by list (bucket);

alter sequence outbox_seq owned by outbox.seq;

create table outbox_0 partition of outbox for values in (0);
create table outbox_1 partition of outbox for values in (1);
create table outbox_2 partition of outbox for values in (2);
create table outbox_3 partition of outbox for values in (3);
create table outbox_4 partition of outbox for values in (4);
create table outbox_5 partition of outbox for values in (5);
create table outbox_6 partition of outbox for values in (6);
create table outbox_7 partition of outbox for values in (7);

-- New rows are found by seq.
create index outbox_seq_idx on outbox (seq);
-- Late rows, whose transaction was open at the last poll, are found by xid. With seq in the index, an index-only scan skips the
-- new rows, which are many after a long downtime.
create index outbox_xid_idx on outbox (xid, seq);
