-- The answers that were given to requests with a request_id, so that a repeat gets the same one. A row is written in
-- the transaction whose answer it holds; failures leave none.
create table request_ids (
    method text not null,
    request_id uuid not null,
    -- SHA-256 of the request: the same id with another body is rejected.
    fingerprint bytea not null,
    response bytea not null,
    created_at timestamptz not null default now(),
    constraint request_ids_pkey primary key (method, request_id)
);

-- The sweep of old rows walks by age.
create index request_ids_created_at_idx on request_ids (created_at);
