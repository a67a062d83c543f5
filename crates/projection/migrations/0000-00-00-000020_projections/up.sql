-- The progress of each projection. The transaction that applies records also advances the offset, by compare-and-set: a
-- consumer with an outdated offset changes nothing and applies nothing.
create table projection_offsets (
    projection text not null,
    topic text not null,
    partition integer not null,
    -- The offset of the next record to apply.
    next_offset bigint not null constraint projection_offsets_from_0 check (next_offset >= 0),
    updated_at timestamptz not null default now(),
    constraint projection_offsets_pkey primary key (projection, topic, partition)
)
-- Updated with every batch: free space on the page allows HOT updates.
with (fillfactor = 50);

-- Poison records, unchanged. Later versions of their keys were applied nevertheless.
create table dead_letters (
    dead_letter_id bigint generated always as identity constraint dead_letters_pkey primary key,
    projection text not null,
    topic text not null,
    partition integer not null,
    record_offset bigint not null,
    key bytea,
    payload bytea,
    header_names text[] not null,
    header_values bytea[] not null,
    error_class text not null,
    error text not null,
    set_aside_at timestamptz not null default now(),
    constraint dead_letters_once unique (projection, topic, partition, record_offset)
);
