update relay_dead_letters set in_topic = 'refused' where in_topic = 'rejected';
alter table relay_dead_letters
    drop column dead_lettered_at,
    drop constraint relay_dead_letters_in_topic,
    add constraint relay_dead_letters_in_topic check (in_topic in ('pending', 'sent', 'refused'));
comment on column relay_dead_letters.set_aside_at is null;
