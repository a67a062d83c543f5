-- The relay's own role: what outbox-relay needs, and nothing else. Run it in each database with an outbox, as the owner of its
-- tables, who needs CREATEROLE unless the role is there; it can be run again. A password or a certificate is for you to give it.
do $$
begin
    if to_regrole('outbox_relay') is null then
        create role outbox_relay login;
    end if;
end
$$;

grant usage on schema public to outbox_relay;
-- What is published is read by the parent's name ...
grant select on outbox to outbox_relay;
-- ... and emptied by partitions: it can't change a row, add one, or remove one alone.
grant select, truncate on
    outbox_0, outbox_1, outbox_2, outbox_3, outbox_4, outbox_5, outbox_6, outbox_7
to outbox_relay;
-- For `outbox-relay check`, which sees whether the numbers are behind the rows.
grant select on sequence outbox_seq to outbox_relay;
-- How far it has come.
grant select, insert, update on relay_checkpoints to outbox_relay;
-- What Kafka rejects.
grant select, insert, update, delete on relay_parked, relay_dead_letters to outbox_relay;
-- For `outbox-relay reset` after a restore from a dump.
grant execute on function outbox_adopt_foreign_rows() to outbox_relay;
