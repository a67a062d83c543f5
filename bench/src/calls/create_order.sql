-- The database work of CreateOrder as one statement: looks the user up, inserts the order and its event.
\set n random(1, :users)
with known as (
    select user_id from users_cache
    where user_id = (select user_id from bench_users where n = :n) and not deleted
), placed as (
    insert into orders (order_id, user_id, amount_minor, currency, state, version, create_time, update_time)
    select gen_random_uuid(), user_id, 1990, 'EUR', 'created', 1, now(), now() from known
    returning *
)
insert into outbox (topic, key, event_type, aggregate_version, payload)
select 'orders.v1', order_id::text, 'order_created', 1, convert_to(jsonb_build_object(
    'order_id', order_id, 'user_id', user_id, 'amount', '19.90', 'currency', currency, 'state', state,
    'version', version, 'create_time', create_time, 'update_time', update_time)::text, 'UTF8')
from placed;
