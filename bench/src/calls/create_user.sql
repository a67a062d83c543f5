-- The database work of CreateUser as one statement: inserts the user and its event.
with created as (
    insert into users (user_id, email, email_key, name, version, create_time, update_time)
    select id, id || '@example.com', id || '@example.com', 'Ada Lovelace', 1, now(), now()
    from gen_random_uuid() as id
    returning *
)
insert into outbox (topic, key, event_type, aggregate_version, payload)
select 'users.v1', user_id::text, 'user_created', 1, convert_to(jsonb_build_object(
    'user_id', user_id, 'email', email, 'name', name, 'version', version, 'deleted', false,
    'create_time', create_time, 'update_time', update_time)::text, 'UTF8')
from created;
