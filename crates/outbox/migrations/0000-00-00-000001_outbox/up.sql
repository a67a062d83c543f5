-- The transactional outbox: one row an event, inserted in the transaction that changes the domain, read and published by
-- outbox-relay. A row is never updated and never deleted; whole partitions are truncated after they were published.

-- Cache 1, because a cached range would be handed out by several sessions out of order: two changes of one row, made
-- one after the other in different sessions, could then be numbered the wrong way round.
create sequence outbox_seq as bigint cache 1;

create table outbox (
    -- The writing transaction. The relay compares it with snapshots to tell what became visible since it last looked.
    xid xid8 not null default pg_current_xact_id(),
    -- Orders the events of one key: both transactions hold the aggregate's row lock while they draw their number.
    -- Across keys it is no order of commits, and it has gaps where transactions were rolled back.
    seq bigint not null default nextval('outbox_seq') constraint outbox_seq_positive check (seq > 0),
    -- The event's identity in every copy that is ever made of it (header ce_id).
    event_id uuid not null default gen_random_uuid(),
    topic text not null constraint outbox_topic_named check (octet_length(topic) between 1 and 249),
    -- The aggregate's id: events of one key stay in order. It becomes the record's key.
    key text not null constraint outbox_key_named check (octet_length(key) between 1 and 1024),
    event_type text not null constraint outbox_event_type_named check (event_type <> ''),
    aggregate_version bigint not null,
    -- The record's value as it is; null makes a tombstone, which lets compaction forget the key.
    payload bytea,
    -- Further headers, an object of strings.
    headers jsonb constraint outbox_headers_strings check (
        jsonb_typeof(headers) = 'object'
        and not jsonb_path_exists(headers, 'strict $.* ? (@.type() != "string")', '{}', true)
    ),
    -- The W3C trace context of the request that wrote the row.
    traceparent text,
    created_at timestamptz not null default clock_timestamp(),
    -- Which partition: ten minutes each, by turns.
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
-- Rows of transactions that were still open at the last look are found by xid; seq beside it lets the index alone
-- leave out the new rows, which are many after a long absence.
create index outbox_xid_idx on outbox (xid, seq);
