-- Postgres samples the values of a column for its planner, and keeps the samples of a table that was emptied until it has
-- rows again: what an event says of people would outlive it. No query looks for these values.
alter table outbox
    alter column payload set statistics 0,
    alter column headers set statistics 0;
alter table relay_parked
    alter column payload set statistics 0,
    alter column headers set statistics 0;
alter table relay_dead_letters
    alter column payload set statistics 0,
    alter column headers set statistics 0;
