-- Permits manual repairs and outbox_adopt_foreign_rows() while a publication, such as one `for all tables`, covers the outbox:
-- Postgres rejects updates and deletes of a published table without a replica identity. Inserts don't become slower.
do $$
declare
    part regclass;
begin
    for part in select relid from pg_partition_tree('outbox') loop
        execute format('alter table %s replica identity full', part);
    end loop;
end
$$;
