-- Checkpoints: the position up to which outbox-relay has published. One row per source, written only by its leader. They are in
-- the same database as the outbox, so both are backed up, restored and failed over together.
create table relay_checkpoints (
    source text constraint relay_checkpoints_pkey primary key,
    -- Distinguishes sources of the same name in different databases that publish to the same Kafka cluster.
    instance uuid not null default gen_random_uuid(),
    -- Increases with each leader. An update by a former leader finds a higher epoch and has no effect.
    epoch bigint not null,
    -- Everything visible in this snapshot was published and acknowledged.
    snapshot pg_snapshot not null,
    -- The highest seq visible in the snapshot.
    max_seq bigint not null,
    -- While a window is being published: the snapshot at its end, and the seq up to which it is published.
    window_snapshot pg_snapshot,
    window_seq bigint,
    -- The leader's last heartbeat by this database's clock. A successor waits until no record of the leader can still be in
    -- flight.
    heartbeat_at timestamptz not null,
    -- True if the leader resigned with nothing in flight. Then its successor does not wait.
    resigned boolean not null,
    constraint relay_checkpoints_window check ((window_snapshot is null) = (window_seq is null))
)
-- The row is updated several times per second. Free space on its page permits HOT updates.
with (fillfactor = 50);
