-- Identifies the log that next_offset belongs to. A name and an offset do not: a topic can be recreated, and an unclean
-- leader election replaces records. Null is unknown: a consumer then stores what it finds.
alter table projection_offsets
    -- The id of the topic (KIP-516).
    add column topic_id uuid,
    -- The records before epoch_offset have leader epochs up to leader_epoch (KIP-101).
    add column leader_epoch integer,
    add column epoch_offset bigint,
    add constraint projection_offsets_epoch_complete check ((leader_epoch is null) = (epoch_offset is null));
