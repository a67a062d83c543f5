-- Supports repeated seqs: a sequence that was set back, by setval or by a restore without sequences, repeats its numbers. The
-- event id distinguishes rows that share a seq.

-- The rows with seq = window_seq are published up to this event id, or all of them if it is null.
alter table relay_checkpoints
    add column window_event_id uuid,
    add constraint relay_checkpoints_window_event check (window_event_id is null or window_seq is not null);
alter table relay_parked
    drop constraint relay_parked_pkey,
    add constraint relay_parked_pkey primary key (source, seq, event_id);
alter table relay_dead_letters
    drop constraint relay_dead_letters_pkey,
    add constraint relay_dead_letters_pkey primary key (source, seq, event_id);
