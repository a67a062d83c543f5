-- A sequence can be set back, by a restore without sequences or by setval, and then gives out numbers that rows have
-- already. Rows that share a seq are told apart by their event id.

-- Of the rows whose seq is window_seq, those up to this event id are done; all of them if it is null.
alter table relay_checkpoints
    add column window_event_id uuid,
    add constraint relay_checkpoints_window_event check (window_event_id is null or window_seq is not null);
alter table relay_parked
    drop constraint relay_parked_pkey,
    add constraint relay_parked_pkey primary key (source, seq, event_id);
alter table relay_dead_letters
    drop constraint relay_dead_letters_pkey,
    add constraint relay_dead_letters_pkey primary key (source, seq, event_id);
