-- How far each projection has come. The offset moves in the transaction that applies the records before it, by
-- compare-and-set: whoever still believes an old offset changes nothing, and applies nothing.
create table projection_offsets (
    projection text not null,
    topic text not null,
    partition integer not null,
    -- The offset of the next record to apply.
    next_offset bigint not null constraint projection_offsets_from_0 check (next_offset >= 0),
    updated_at timestamptz not null default now(),
    constraint projection_offsets_pkey primary key (projection, topic, partition)
)
-- Updated with every batch: room on the page keeps these updates in place.
with (fillfactor = 50);

-- Records that could not be applied, as they were found. Later versions of their keys were applied all the same.
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
