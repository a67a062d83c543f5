-- Stored responses of requests with a request_id, returned for retries. A row is written in the transaction of the change;
-- failed requests leave no row.
create table request_ids (
    method text not null,
    request_id uuid not null,
    -- SHA-256 of the request, to reject the same id with a different body.
    fingerprint bytea not null,
    response bytea not null,
    created_at timestamptz not null default now(),
    constraint request_ids_pkey primary key (method, request_id)
);

-- Finds expired rows.
create index request_ids_created_at_idx on request_ids (created_at);
