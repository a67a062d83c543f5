-- Disables statistics on responses: Postgres' samples would keep personal data after the rows are deleted. No query filters
-- by this column.
alter table request_ids alter column response set statistics 0;
