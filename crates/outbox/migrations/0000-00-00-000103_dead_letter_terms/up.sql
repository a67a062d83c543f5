-- Uses the terms of the documentation: an event that Kafka will never accept is rejected, and then parked or dead-lettered.
-- The change is additive: the old column and the old value stay, so a relay of version 0.1 can lead during a rolling upgrade.
alter table relay_dead_letters
    add column dead_lettered_at timestamptz,
    drop constraint relay_dead_letters_in_topic,
    add constraint relay_dead_letters_in_topic check (in_topic in ('pending', 'sent', 'rejected', 'refused'));
update relay_dead_letters
set dead_lettered_at = set_aside_at,
    in_topic = case in_topic when 'refused' then 'rejected' else in_topic end;
alter table relay_dead_letters
    alter column dead_lettered_at set default clock_timestamp(),
    alter column dead_lettered_at set not null;

comment on column relay_dead_letters.set_aside_at is 'Deprecated: use dead_lettered_at.';
