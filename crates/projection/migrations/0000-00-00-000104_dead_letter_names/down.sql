update projection_offsets set set_aside = greatest(set_aside, dead_lettered);
alter table projection_offsets drop column dead_lettered;
drop index dead_letters_kept_idx;
create index dead_letters_kept_idx on dead_letters (set_aside_at) where erased_at is null;
alter table dead_letters drop column dead_lettered_at;
comment on column projection_offsets.set_aside is null;
comment on column dead_letters.set_aside_at is null;
