-- A deleted user keeps no personal data: id, version and times stay, e-mail and name become empty.
alter table users
    drop constraint users_email_length,
    drop constraint users_name_length,
    add constraint users_email_length check (
        case when delete_time is null then char_length(email) between 3 and 254 else email = '' end
    ),
    add constraint users_email_key_erased check (delete_time is null or email_key = ''),
    add constraint users_name_length check (
        case when delete_time is null then char_length(name) between 1 and 200 else name = '' end
    );
