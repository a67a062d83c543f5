-- The key that signs what callers carry for the service and give back: page tokens and resume tokens. It lives beside
-- the data, so that all replicas have the same one and none has to be configured. Whoever replaces it makes the tokens
-- worthless that are in callers' hands.
create table token_keys (
    -- One row only.
    one boolean not null default true constraint token_keys_pkey primary key constraint token_keys_one check (one),
    key bytea not null constraint token_keys_length check (octet_length(key) = 32)
);

-- Of the 256 bits of two random UUIDs 244 are random, from Postgres' generator for secrets.
insert into token_keys (key)
values (decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));
