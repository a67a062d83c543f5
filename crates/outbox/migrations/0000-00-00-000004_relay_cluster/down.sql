drop function outbox_adopt_foreign_rows();
alter table relay_checkpoints drop column system_identifier;
