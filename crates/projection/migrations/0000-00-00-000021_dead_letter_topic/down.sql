alter table projection_offsets drop column applied, drop column skipped, drop column set_aside;
drop index dead_letters_pending_idx;
alter table dead_letters drop column in_topic;
