-- The relay's own role where the outbox is a table that others made: what outbox-relay needs, and nothing else. Replace
-- `app` and `events` by the table's schema and name, and `public` by the schema in which relay.sql was run. Run it as the
-- owner of these tables, who needs CREATEROLE unless the role is there; it can be run again. A password or a certificate is
-- for you to give it.
do $$
begin
    if to_regrole('outbox_relay') is null then
        create role outbox_relay login;
    end if;
end
$$;

grant usage on schema app, public to outbox_relay;
-- What is published.
grant select on app.events to outbox_relay;
-- For `outbox-relay check`, which sees whether the numbers are behind the rows. Put in the column's name if it isn't `seq`.
do $$
declare
    numbers text := pg_get_serial_sequence('app.events', 'seq');
begin
    if numbers is not null then
        execute format('grant select on sequence %s to outbox_relay', numbers);
    end if;
end
$$;
-- How far it has come.
grant select, insert, update on public.relay_checkpoints to outbox_relay;
-- What Kafka rejects.
grant select, insert, update, delete on public.relay_parked, public.relay_dead_letters to outbox_relay;
