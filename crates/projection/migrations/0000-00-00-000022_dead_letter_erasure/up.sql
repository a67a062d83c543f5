-- What dead letters hold is erased: those of a key when whom it names is deleted, and all of them after a while. The row
-- stays, with where the record stood and what was wrong with it: nothing is dropped without a record.
alter table dead_letters add column erased_at timestamptz;

-- A deletion finds by their key what it has to erase. By a hash, because a key is whatever somebody has written, and a
-- btree rejects one of more than 2704 bytes.
create index dead_letters_key_idx on dead_letters using hash (key) where erased_at is null;
-- What was kept for long enough is found by its age.
create index dead_letters_kept_idx on dead_letters (set_aside_at) where erased_at is null;

-- Postgres samples the values of a column for its planner, and keeps the samples when all rows are gone. No query looks for
-- these values, and by a key only the index above does.
alter table dead_letters
    alter column key set statistics 0,
    alter column payload set statistics 0,
    alter column header_values set statistics 0;
