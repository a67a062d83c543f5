-- Dead letters are also written to a topic, where one is configured, behind the transaction that sets them aside.
alter table dead_letters add column in_topic boolean not null default false;
create index dead_letters_pending_idx on dead_letters (projection, dead_letter_id) where not in_topic;

-- What became of the records before next_offset. Moved in the same transaction, so that they are exact.
alter table projection_offsets
    -- They changed something, or were known already.
    add column applied bigint not null default 0,
    -- They were of no concern: types that the projection does not know, tombstones.
    add column skipped bigint not null default 0,
    -- They went to dead_letters.
    add column set_aside bigint not null default 0;
