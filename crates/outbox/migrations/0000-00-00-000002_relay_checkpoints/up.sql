-- How far outbox-relay has published: one row a source, written by that source's leader only. It lives beside the outbox
-- so that both are backed up, restored and failed over together.
create table relay_checkpoints (
    source text constraint relay_checkpoints_pkey primary key,
    -- Tells this source from one of the same name in another database, where both publish to one Kafka.
    instance uuid not null default gen_random_uuid(),
    -- One more with every leader; an update by a leader of the past finds another epoch and changes nothing.
    epoch bigint not null,
    -- Everything visible in this snapshot was published and acknowledged ...
    snapshot pg_snapshot not null,
    -- ... and this is the highest seq among it.
    max_seq bigint not null,
    -- While a window is being published: what it reaches to, and the seq up to which it is done.
    window_snapshot pg_snapshot,
    window_seq bigint,
    -- The leader's last sign of life by this database's clock. A successor waits until it is older than any record
    -- that the leader can still have on its way.
    heartbeat_at timestamptz not null,
    -- The leader ended with nothing on its way, so its successor need not wait.
    resigned boolean not null,
    constraint relay_checkpoints_window check ((window_snapshot is null) = (window_seq is null))
)
-- The row is updated some times a second: room on its page keeps these updates in place.
with (fillfactor = 50);
