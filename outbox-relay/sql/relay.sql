-- What outbox-relay keeps for itself, where the outbox is a table that others made. Run it in the schema that the relay's
-- role finds first (`search_path`), in the database with the outbox. Once: a second run changes nothing, and fails.

-- How far outbox-relay has published: one row a source, written by that source's leader only. It lives beside the outbox
-- so that both are backed up, restored and failed over together.
create table relay_checkpoints (
    source text constraint relay_checkpoints_pkey primary key,
    -- Tells this source from one of the same name in another database, where both publish to one Kafka.
    instance uuid not null default gen_random_uuid(),
    -- One more with every leader; an update by a leader of the past finds another epoch and changes nothing.
    epoch bigint not null,
    -- Everything visible in this snapshot was published and acknowledged ...
    snapshot pg_snapshot not null,
    -- ... and this is the highest seq among it.
    max_seq bigint not null,
    -- While a window is being published: what it reaches to, and the seq up to which it is done.
    window_snapshot pg_snapshot,
    window_seq bigint,
    -- The leader's last sign of life by this database's clock. A successor waits until it is older than any record
    -- that the leader can still have on its way.
    heartbeat_at timestamptz not null,
    -- The leader ended with nothing on its way, so its successor need not wait.
    resigned boolean not null,
    -- Which cluster of databases the snapshots are of (`pg_control_system()`): a dump that is restored elsewhere takes the
    -- row along, and transaction ids mean nothing there. Null until a leader may ask and has.
    system_identifier bigint,
    -- Which table they are of: they say nothing about the rows of another one, which could be taken for published. Null until a
    -- leader has come by.
    outbox oid,
    -- A sequence can be set back, and rows that share a seq are told apart by their event id. Of those whose seq is
    -- window_seq, the rows up to this event id are done; all of them if it is null.
    window_event_id uuid,
    constraint relay_checkpoints_window_event check (window_event_id is null or window_seq is not null),
    constraint relay_checkpoints_window check ((window_snapshot is null) = (window_seq is null))
)
-- The row is updated some times a second: room on its page keeps these updates in place.
with (fillfactor = 50);

-- Events that can't be published as they are, copied out of the outbox: there they would be in the way, or be cleared away.

-- Under the policy `park_key`: an event that Kafka rejected, and those of its key that came behind it. They wait in the
-- order of seq; other keys go on.
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
    -- Why Kafka rejected it; null for one that only waits behind another.
    error text,
    -- Somebody has asked for it to be tried once more. Those behind it follow by themselves.
    retry boolean not null default false,
    parked_at timestamptz not null default clock_timestamp(),
    constraint relay_parked_pkey primary key (source, seq, event_id)
);
create index relay_parked_key_idx on relay_parked (source, topic, key, seq);

-- Under the policy `dead_letter`: an event that Kafka rejected, while later ones of its key went on. Also whatever was
-- dropped from `relay_parked`: nothing disappears without a trace.
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
    -- What became of it in the dead letter topic, where one is configured: it can be rejected there as well.
    in_topic text not null default 'pending'
        constraint relay_dead_letters_in_topic check (in_topic in ('pending', 'sent', 'rejected')),
    dead_lettered_at timestamptz not null default clock_timestamp(),
    constraint relay_dead_letters_pkey primary key (source, seq, event_id)
);

-- Postgres samples the values of a column for its planner, and keeps the samples of a table that was emptied until it has
-- rows again: what an event says of people would outlive it. No query looks for these values.
alter table relay_parked
    alter column payload set statistics 0,
    alter column headers set statistics 0;
alter table relay_dead_letters
    alter column payload set statistics 0,
    alter column headers set statistics 0;

-- The value of a record, from a column of any of these types: Postgres picks the function by the column's. JSON null makes
-- a tombstone, as SQL's null does: many drivers and ORMs write it for a value that is absent.
create function relay_payload(bytea) returns bytea language sql immutable as 'select $1';
create function relay_payload(text) returns bytea language sql stable as $$select convert_to($1, 'UTF8')$$;
create function relay_payload(json) returns bytea language sql stable as
    $$select case when json_typeof($1) <> 'null' then convert_to($1::text, 'UTF8') end$$;
create function relay_payload(jsonb) returns bytea language sql stable as
    $$select case when jsonb_typeof($1) <> 'null' then convert_to($1::text, 'UTF8') end$$;
