-- The users, which this service owns.
create table users (
    user_id uuid constraint users_pkey primary key,
    -- As the user wrote it.
    email text not null constraint users_email_length check (char_length(email) between 3 and 254),
    -- In lower case, by Unicode's rules and not by those of the database's locale: what is compared.
    email_key text not null,
    name text not null constraint users_name_length check (char_length(name) between 1 and 200),
    version bigint not null constraint users_version_positive check (version > 0),
    create_time timestamptz not null,
    update_time timestamptz not null,
    -- Set when the user is deleted; the row stays.
    delete_time timestamptz
);

-- Unique among the living: a deleted user's address is free again.
create unique index users_email_key on users (email_key) where delete_time is null;
