-- Creates the role of outbox-relay with the minimum privileges for a mapped outbox table. Replace `app` and `events` by the
-- table's schema and name, and `public` by the schema in which you ran relay.sql. Run it as the owner of these tables. The
-- owner needs CREATEROLE unless the role exists. Repeated runs have no effect. Set the role's password or certificate yourself.
do $$
begin
    if to_regrole('outbox_relay') is null then
        create role outbox_relay login;
    end if;
end
$$;

grant usage on schema app, public to outbox_relay;
-- Events.
grant select on app.events to outbox_relay;
-- `outbox-relay check` compares the sequence with the rows. Replace `seq` if the column has another name.
do $$
declare
    numbers text := pg_get_serial_sequence('app.events', 'seq');
begin
    if numbers is not null then
        execute format('grant select on sequence %s to outbox_relay', numbers);
    end if;
end
$$;
-- Checkpoints.
grant select, insert, update on public.relay_checkpoints to outbox_relay;
-- Rejected events.
grant select, insert, update, delete on public.relay_parked, public.relay_dead_letters to outbox_relay;
