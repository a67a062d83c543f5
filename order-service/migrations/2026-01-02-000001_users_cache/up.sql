-- What this service has heard of users, which user-service owns: the newest version of each. CreateOrder validates
-- against this table and nothing else.
create table users_cache (
    user_id uuid constraint users_cache_pkey primary key,
    -- Null once the user is deleted: of a deleted user only the id and the version are kept.
    email text,
    name text,
    version bigint not null,
    -- A deleted user stays as a row, so that a stale record can't bring it back.
    deleted boolean not null,
    constraint users_cache_deleted check (deleted = (email is null) and deleted = (name is null))
);
