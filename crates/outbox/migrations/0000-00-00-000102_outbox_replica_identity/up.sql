-- Rows of the outbox are changed by hand alone, when something has to be repaired, and by outbox_adopt_foreign_rows(). Where a
-- publication covers the table, as one `for all tables` does, Postgres rejects both to tables without a replica identity.
-- Inserts cost nothing more.
do $$
declare
    part regclass;
begin
    for part in select relid from pg_partition_tree('outbox') loop
        execute format('alter table %s replica identity full', part);
    end loop;
end
$$;
