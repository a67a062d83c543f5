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
    aggregate_version bigint not null,
    payload bytea,
    headers jsonb,
    traceparent text,
    created_at timestamptz not null,
    -- Why Kafka rejected it; null for one that only waits behind another.
    error text,
    -- Somebody has asked for it to be tried once more. Those behind it follow by themselves.
    retry boolean not null default false,
    parked_at timestamptz not null default clock_timestamp(),
    constraint relay_parked_pkey primary key (source, seq)
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
    aggregate_version bigint not null,
    payload bytea,
    headers jsonb,
    traceparent text,
    created_at timestamptz not null,
    error text not null,
    -- What became of it in the dead letter topic, where one is configured: it can be rejected there as well.
    in_topic text not null default 'pending'
        constraint relay_dead_letters_in_topic check (in_topic in ('pending', 'sent', 'refused')),
    set_aside_at timestamptz not null default clock_timestamp(),
    constraint relay_dead_letters_pkey primary key (source, seq)
);
