-- A cache of users, which user-service owns: the latest version of each from its events. CreateOrder validates against
-- this table.
create table users_cache (
    user_id uuid constraint users_cache_pkey primary key,
    -- Null once the user is deleted: only the id and the version of a deleted user are kept.
    email text,
    name text,
    version bigint not null,
    -- The row of a deleted user stays, so that a stale record can't restore the user.
    deleted boolean not null,
    constraint users_cache_deleted check (deleted = (email is null) and deleted = (name is null))
);
