-- One word for each concept: a record that cannot be applied is dead-lettered.
-- Additive, so that a service of version 0.1 still works during a rolling upgrade: the old columns stay.
alter table dead_letters add column dead_lettered_at timestamptz;
update dead_letters set dead_lettered_at = set_aside_at;
alter table dead_letters
    alter column dead_lettered_at set default now(),
    alter column dead_lettered_at set not null;
drop index dead_letters_kept_idx;
create index dead_letters_kept_idx on dead_letters (dead_lettered_at) where erased_at is null;
comment on column dead_letters.set_aside_at is 'Deprecated: use dead_lettered_at.';

-- The number of dead-lettered records before next_offset. During a rolling upgrade a service of version 0.1 counts its own
-- in set_aside only.
alter table projection_offsets add column dead_lettered bigint not null default 0;
update projection_offsets set dead_lettered = set_aside;
comment on column projection_offsets.set_aside is 'Deprecated: use dead_lettered.';
