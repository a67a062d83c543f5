alter table relay_checkpoints drop column system_identifier;
