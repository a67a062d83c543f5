-- Erased contents are not restored.
alter table dead_letters
    alter column key set statistics -1,
    alter column payload set statistics -1,
    alter column header_values set statistics -1;
drop index dead_letters_kept_idx;
drop index dead_letters_key_idx;
alter table dead_letters drop column erased_at;
