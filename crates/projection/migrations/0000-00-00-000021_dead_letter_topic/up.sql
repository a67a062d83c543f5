-- If a dead-letter topic is configured, dead letters are copied to it after the transaction that inserts them.
alter table dead_letters add column in_topic boolean not null default false;
create index dead_letters_pending_idx on dead_letters (projection, dead_letter_id) where not in_topic;

-- The outcomes of the records before next_offset. Updated in the same transaction, so they are exact.
alter table projection_offsets
    -- Applied, including records that changed nothing.
    add column applied bigint not null default 0,
    -- Skipped: unknown types, tombstones.
    add column skipped bigint not null default 0,
    -- Dead-lettered.
    add column set_aside bigint not null default 0;
