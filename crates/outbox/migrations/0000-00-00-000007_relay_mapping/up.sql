-- For outboxes that others made, whose columns the relay's configuration names.

-- Theirs may lack these.
alter table relay_parked
    alter column aggregate_version drop not null,
    alter column created_at drop not null;
alter table relay_dead_letters
    alter column aggregate_version drop not null,
    alter column created_at drop not null;

-- The value of a record, from a column of any of these types: Postgres picks the function by the column's.
create function relay_payload(bytea) returns bytea language sql immutable as 'select $1';
create function relay_payload(text) returns bytea language sql stable as $$select convert_to($1, 'UTF8')$$;
create function relay_payload(json) returns bytea language sql stable as $$select convert_to($1::text, 'UTF8')$$;
create function relay_payload(jsonb) returns bytea language sql stable as $$select convert_to($1::text, 'UTF8')$$;
