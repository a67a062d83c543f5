-- What was erased stays so.
drop index dead_letters_kept_idx;
drop index dead_letters_key_idx;
alter table dead_letters drop column erased_at;
