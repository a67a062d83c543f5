-- Truncates published partitions of the outbox. It is one statement, so a partition is not locked during a round trip, and a relay
-- that is suspended meanwhile holds no lock. Each partition has a transaction of its own.
do $truncation$
declare
    retention constant interval := make_interval(secs => current_setting('outbox_relay.retention_s')::float8);
    report jsonb := '{"truncated": [], "blocked": []}';
    part record;
    is_in_use boolean;
    unpublished jsonb;
    is_young boolean;
    failure_code text;
    failure text;
begin
    for part in
        -- Each partition, its buckets, and the default of column `bucket`, which is the bucket of new rows.
        select child.oid::regclass as name,
            substring(pg_get_expr(child.relpartbound, child.oid) from '\((.*)\)') as buckets,
            (select pg_get_expr(def.adbin, def.adrelid)
             from pg_attrdef as def join pg_attribute as att
                 on att.attrelid = def.adrelid and att.attnum = def.adnum
             where def.adrelid = inherits.inhparent and att.attname = 'bucket') as current_bucket
        from pg_inherits as inherits join pg_class as child on child.oid = inherits.inhrelid
        where inherits.inhparent = 'outbox'::regclass
        order by 1
    loop
        begin
            -- The catalog quotes these names and expressions.
            execute format(
                'select %s in (%s) or not exists (select from %s)', part.current_bucket, part.buckets, part.name
            ) into is_in_use;
            -- Null without a default or buckets.
            continue when is_in_use is distinct from false;
            execute format('lock table only %s in access exclusive mode', part.name);
            -- Must follow the lock: a slow transaction may have written here until now. A row is needed while a checkpoint of
            -- this table does not include its transaction or its seq, as in the reader's `pending`.
            execute format(
                'select jsonb_build_object(''partition'', $1, ''source'', source,
                     ''idle_s'', date_part(''epoch'', clock_timestamp() - heartbeat_at))
                 from relay_checkpoints as checkpoint
                 where (outbox is null or outbox = ''outbox''::regclass) and (
                     exists (select from %1$s where seq > greatest(max_seq, window_seq))
                     or exists (select from %1$s where xid >= pg_snapshot_xmax(snapshot))
                     or exists (select from %1$s where xid = any (array(select pg_snapshot_xip(snapshot)))))
                 order by heartbeat_at limit 1', part.name
            ) into unpublished using part.name::text;
            -- A creation time in the future says nothing about a row's age.
            execute format(
                'select (select created_at from %s order by seq desc limit 1)
                     between clock_timestamp() - $1 and clock_timestamp()', part.name
            ) into is_young using retention;
            if unpublished is not null then
                report := jsonb_insert(report, '{blocked,-1}', unpublished, true);
            elsif not is_young then
                execute format('truncate only %s', part.name);
                report := jsonb_insert(report, '{truncated,-1}', to_jsonb(part.name::text), true);
            end if;
        exception
            when lock_not_available then
                null;
            when others then
                failure_code := coalesce(failure_code, sqlstate);
                failure := coalesce(failure, sqlerrm);
        end;
        perform set_config('outbox_relay.truncation_report', report::text, false);
        commit;
    end loop;
    if failure is not null then
        raise exception using errcode = failure_code, message = failure;
    end if;
end
$truncation$
