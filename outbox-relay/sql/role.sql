-- Creates the role of outbox-relay with the minimum privileges. Run it in each database with an outbox, as the owner of the
-- tables. The owner needs CREATEROLE unless the role exists. Repeated runs have no effect. Set the role's password or certificate
-- yourself.
do $$
begin
    if to_regrole('outbox_relay') is null then
        create role outbox_relay login;
    end if;
end
$$;

grant usage on schema public to outbox_relay;
-- Rows are read from the partitioned table.
grant select on outbox to outbox_relay;
-- Partitions are truncated. The role can't insert, update or delete rows.
grant select, truncate on
    outbox_0, outbox_1, outbox_2, outbox_3, outbox_4, outbox_5, outbox_6, outbox_7
to outbox_relay;
-- `outbox-relay check` compares the sequence with the rows.
grant select on sequence outbox_seq to outbox_relay;
-- Checkpoints.
grant select, insert, update on relay_checkpoints to outbox_relay;
-- Rejected events.
grant select, insert, update, delete on relay_parked, relay_dead_letters to outbox_relay;
-- `outbox-relay reset` after a restore from a dump.
grant execute on function outbox_adopt_foreign_rows() to outbox_relay;
