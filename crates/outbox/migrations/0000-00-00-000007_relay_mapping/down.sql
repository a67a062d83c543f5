drop function relay_payload(jsonb);
drop function relay_payload(json);
drop function relay_payload(text);
drop function relay_payload(bytea);
alter table relay_dead_letters
    alter column created_at set not null,
    alter column aggregate_version set not null;
alter table relay_parked
    alter column created_at set not null,
    alter column aggregate_version set not null;
