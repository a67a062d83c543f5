-- Supports mapped outbox tables, whose columns are named in the relay's configuration. They may lack these columns.
alter table relay_parked
    alter column aggregate_version drop not null,
    alter column created_at drop not null;
alter table relay_dead_letters
    alter column aggregate_version drop not null,
    alter column created_at drop not null;

-- Converts a payload column of one of these types to the value of a record.
create function relay_payload(bytea) returns bytea language sql immutable as 'select $1';
create function relay_payload(text) returns bytea language sql stable as $$select convert_to($1, 'UTF8')$$;
create function relay_payload(json) returns bytea language sql stable as $$select convert_to($1::text, 'UTF8')$$;
create function relay_payload(jsonb) returns bytea language sql stable as $$select convert_to($1::text, 'UTF8')$$;
