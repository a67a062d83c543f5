-- Creates outbox-relay's own tables for a mapped outbox table. Run it once, in the database of the outbox and in the first
-- schema of the relay role's `search_path`. A second run fails without changes.

-- Checkpoints: the position up to which outbox-relay has published. One row per source, written only by its leader. They are in
-- the same database as the outbox, so both are backed up, restored and failed over together.
create table relay_checkpoints (
    source text constraint relay_checkpoints_pkey primary key,
    -- Distinguishes sources of the same name in different databases that publish to the same Kafka cluster.
    instance uuid not null default gen_random_uuid(),
    -- Increases with each leader. An update by a former leader finds a higher epoch and has no effect.
    epoch bigint not null,
    -- Everything visible in this snapshot was published and acknowledged.
    snapshot pg_snapshot not null,
    -- The highest seq visible in the snapshot.
    max_seq bigint not null,
    -- While a window is being published: the snapshot at its end, and the seq up to which it is published.
    window_snapshot pg_snapshot,
    window_seq bigint,
    -- The leader's last heartbeat by this database's clock. A successor waits until no record of the leader can still be in
    -- flight.
    heartbeat_at timestamptz not null,
    -- True if the leader resigned with nothing in flight. Then its successor does not wait.
    resigned boolean not null,
    -- The Postgres cluster of the snapshots (`pg_control_system()`). In another cluster, after a restore from a dump, they are
    -- meaningless. Null until a leader with the privilege has read it.
    system_identifier bigint,
    -- The outbox table of the checkpoint. The rows of another table would wrongly count as published. Null until the first
    -- leader.
    outbox oid,
    -- Rows share a seq if the sequence was set back. Those with seq = window_seq are published up to this event id, or all of
    -- them if it is null.
    window_event_id uuid,
    constraint relay_checkpoints_window_event check (window_event_id is null or window_seq is not null),
    constraint relay_checkpoints_window check ((window_snapshot is null) = (window_seq is null))
)
-- The row is updated several times per second. Free space on its page permits HOT updates.
with (fillfactor = 50);

-- Rejected events are copied out of the outbox, where they would block later events or be truncated.

-- Policy `park_key`: an event that Kafka rejected, and the later events of its key, in the order of seq. Other keys
-- continue.
create table relay_parked (
    source text not null,
    seq bigint not null,
    event_id uuid not null,
    topic text not null,
    key text not null,
    event_type text not null,
    aggregate_version bigint,
    payload bytea,
    headers jsonb,
    traceparent text,
    created_at timestamptz,
    -- The reason of the rejection. Null for a later event of the key.
    error text,
    -- True if an operator requested a retry. The later events of the key follow automatically.
    retry boolean not null default false,
    parked_at timestamptz not null default clock_timestamp(),
    constraint relay_parked_pkey primary key (source, seq, event_id)
);
create index relay_parked_key_idx on relay_parked (source, topic, key, seq);

-- Policy `dead_letter`: an event that Kafka rejected, while later events of its key continued. Also contains the events that an
-- operator dropped from `relay_parked`.
create table relay_dead_letters (
    source text not null,
    seq bigint not null,
    event_id uuid not null,
    topic text not null,
    key text not null,
    event_type text not null,
    aggregate_version bigint,
    payload bytea,
    headers jsonb,
    traceparent text,
    created_at timestamptz,
    error text not null,
    -- The state of the copy in the dead letter topic, if one is configured. Kafka can reject the copy as well.
    in_topic text not null default 'pending'
        constraint relay_dead_letters_in_topic check (in_topic in ('pending', 'sent', 'rejected', 'refused')),
    -- Deprecated, as is the state 'refused': a relay of version 0.1 uses both.
    set_aside_at timestamptz not null default clock_timestamp(),
    dead_lettered_at timestamptz not null default clock_timestamp(),
    constraint relay_dead_letters_pkey primary key (source, seq, event_id)
);
comment on column relay_dead_letters.set_aside_at is 'Deprecated: use dead_lettered_at.';

-- Disables statistics for payloads and headers: samples of their values, which may be personal data, would outlive the truncated
-- rows. No query filters by these columns.
alter table relay_parked
    alter column payload set statistics 0,
    alter column headers set statistics 0;
alter table relay_dead_letters
    alter column payload set statistics 0,
    alter column headers set statistics 0;

-- Converts a payload column of one of these types to the value of a record. JSON null makes a tombstone, like SQL null: many
-- drivers and ORMs write it for an absent value.
create function relay_payload(bytea) returns bytea language sql immutable as 'select $1';
create function relay_payload(text) returns bytea language sql stable as $$select convert_to($1, 'UTF8')$$;
create function relay_payload(json) returns bytea language sql stable as
    $$select case when json_typeof($1) <> 'null' then convert_to($1::text, 'UTF8') end$$;
create function relay_payload(jsonb) returns bytea language sql stable as
    $$select case when jsonb_typeof($1) <> 'null' then convert_to($1::text, 'UTF8') end$$;
