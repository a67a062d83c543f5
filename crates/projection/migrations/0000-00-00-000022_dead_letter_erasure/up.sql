-- The contents of dead letters are erased: those of a key when its entity is deleted, and all of them after the retention.
-- The row stays, with the origin of the record and its error.
alter table dead_letters add column erased_at timestamptz;

-- A deletion finds dead letters by key. A hash index, because a key is arbitrary, and a btree rejects one of more than
-- 2704 bytes.
create index dead_letters_key_idx on dead_letters using hash (key) where erased_at is null;
-- The retention finds dead letters by age.
create index dead_letters_kept_idx on dead_letters (set_aside_at) where erased_at is null;

-- The planner's statistics contain samples of the values, and outlive the rows. No query needs statistics of these columns.
alter table dead_letters
    alter column key set statistics 0,
    alter column payload set statistics 0,
    alter column header_values set statistics 0;
