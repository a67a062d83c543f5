-- Postgres samples the values of a column for its planner, and keeps the samples when all rows are gone: what an answer
-- says of people would outlive it. No query looks for these values.
alter table request_ids alter column response set statistics 0;
