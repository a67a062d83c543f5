-- An outbox as Debezium's event router wants it, before anybody thought of another relay.
create table outboxevent (
    id uuid primary key,
    aggregatetype text not null,
    aggregateid text not null,
    type text not null,
    payload jsonb
);
create publication shop_outbox for table outboxevent with (publish = 'insert');

-- What the events tell of.
create table aggregates (key text primary key, version bigint not null);
