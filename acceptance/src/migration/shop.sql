-- An outbox for Debezium's event router.
create table outboxevent (
    id uuid primary key,
    aggregatetype text not null,
    aggregateid text not null,
    type text not null,
    payload jsonb
);
create publication shop_outbox for table outboxevent with (publish = 'insert');

-- The aggregates whose changes are published.
create table aggregates (key text primary key, version bigint not null);
