alter table relay_checkpoints drop column outbox;
