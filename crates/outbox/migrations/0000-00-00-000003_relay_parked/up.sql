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
    aggregate_version bigint not null,
    payload bytea,
    headers jsonb,
    traceparent text,
    created_at timestamptz not null,
    -- The reason of the rejection. Null for a later event of the key.
    error text,
    -- True if an operator requested a retry. The later events of the key follow automatically.
    retry boolean not null default false,
    parked_at timestamptz not null default clock_timestamp(),
    constraint relay_parked_pkey primary key (source, seq)
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
    aggregate_version bigint not null,
    payload bytea,
    headers jsonb,
    traceparent text,
    created_at timestamptz not null,
    error text not null,
    -- The state of the copy in the dead letter topic, if one is configured. Kafka can reject the copy as well.
    in_topic text not null default 'pending'
        constraint relay_dead_letters_in_topic check (in_topic in ('pending', 'sent', 'refused')),
    set_aside_at timestamptz not null default clock_timestamp(),
    constraint relay_dead_letters_pkey primary key (source, seq)
);
