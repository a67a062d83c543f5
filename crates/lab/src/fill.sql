-- Writes a backlog, 1,000 rows per transaction. Payloads are slices of a random pool at varying offsets, because
-- compressible payloads would make large ones cheap.
create procedure fill_outbox(row_count bigint, topic_name text, payload_bytes int, further_headers jsonb)
language plpgsql as $$
declare
    pool constant bytea :=
        (select convert_to(string_agg(md5(n::text), ''), 'UTF8') from generate_series(1, 32768) n);
    aggregates constant bigint := 10000;
    rows_per_transaction constant bigint := 1000;
    first bigint := 0;
begin
    while first < row_count loop
        insert into outbox (topic, key, event_type, aggregate_version, payload, headers, traceparent)
        select
            topic_name,
            '00000000-0000-4000-8000-' || lpad(to_hex(n % aggregates), 12, '0'),
            'order_created',
            n / aggregates + 1,
            '{"data":"'::bytea
                || substr(pool, (n * 7919 % (1048576 - payload_bytes))::int + 1, payload_bytes - 11)
                || '"}'::bytea,
            further_headers,
            '00-' || md5(n::text) || '-00f067aa0ba902b7-01'
        from generate_series(first, least(first + rows_per_transaction, row_count) - 1) n;
        commit;
        first := first + rows_per_transaction;
    end loop;
end
$$;
