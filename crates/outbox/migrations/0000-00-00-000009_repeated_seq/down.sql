alter table relay_dead_letters
    drop constraint relay_dead_letters_pkey,
    add constraint relay_dead_letters_pkey primary key (source, seq);
alter table relay_parked
    drop constraint relay_parked_pkey,
    add constraint relay_parked_pkey primary key (source, seq);
alter table relay_checkpoints
    drop constraint relay_checkpoints_window_event,
    drop column window_event_id;
