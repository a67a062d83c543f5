-- The key that signs page tokens and resume tokens. It is in the database so that all replicas share it without
-- configuration. Replacing it invalidates all tokens that callers hold.
create table token_keys (
    -- One row only.
    one boolean not null default true constraint token_keys_pkey primary key constraint token_keys_one check (one),
    key bytea not null constraint token_keys_length check (octet_length(key) = 32)
);

-- Two random UUIDs have 244 random bits of 256, from Postgres' cryptographic generator.
insert into token_keys (key)
values (decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));
