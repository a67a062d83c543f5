-- Users, which this service owns.
create table users (
    user_id uuid constraint users_pkey primary key,
    -- As entered by the user.
    email text not null constraint users_email_length check (char_length(email) between 3 and 254),
    -- For comparison: case-folded by Unicode rules, independent of the database's locale.
    email_key text not null,
    name text not null constraint users_name_length check (char_length(name) between 1 and 200),
    version bigint not null constraint users_version_positive check (version > 0),
    create_time timestamptz not null,
    update_time timestamptz not null,
    -- Set when the user is deleted; the row stays.
    delete_time timestamptz
);

-- Unique among existing users: a deleted user's address can be used again.
create unique index users_email_key on users (email_key) where delete_time is null;
