alter table outbox
    alter column payload set statistics -1,
    alter column headers set statistics -1;
alter table relay_parked
    alter column payload set statistics -1,
    alter column headers set statistics -1;
alter table relay_dead_letters
    alter column payload set statistics -1,
    alter column headers set statistics -1;
