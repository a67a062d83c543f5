-- Disables statistics for payloads and headers: samples of their values, which may be personal data, would outlive the truncated
-- rows. No query filters by these columns.
alter table outbox
    alter column payload set statistics 0,
    alter column headers set statistics 0;
alter table relay_parked
    alter column payload set statistics 0,
    alter column headers set statistics 0;
alter table relay_dead_letters
    alter column payload set statistics 0,
    alter column headers set statistics 0;
