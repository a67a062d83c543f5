-- Not valid: existing rows of deleted users violate the old constraints.
alter table users
    drop constraint users_email_length,
    drop constraint users_email_key_erased,
    drop constraint users_name_length,
    add constraint users_email_length check (char_length(email) between 3 and 254) not valid,
    add constraint users_name_length check (char_length(name) between 1 and 200) not valid;
