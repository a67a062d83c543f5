do $$
declare
    part regclass;
begin
    for part in select relid from pg_partition_tree('outbox') loop
        execute format('alter table %s replica identity default', part);
    end loop;
end
$$;
