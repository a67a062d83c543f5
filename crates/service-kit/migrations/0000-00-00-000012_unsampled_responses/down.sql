alter table request_ids alter column response set statistics -1;
