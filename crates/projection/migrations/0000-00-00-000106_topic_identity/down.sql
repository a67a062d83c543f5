alter table projection_offsets
    drop column topic_id,
    drop column leader_epoch,
    drop column epoch_offset;
