create or replace function outbox_enqueue(
    topic text,
    key text,
    event_type text,
    aggregate_version bigint,
    payload jsonb,
    headers jsonb default null,
    traceparent text default null,
    event_id uuid default null
) returns uuid
language plpgsql set search_path from current as $$
#variable_conflict use_variable
declare
    id constant uuid := coalesce(event_id, gen_random_uuid());
    repeated text;
begin
    if topic is null or topic !~ '^[a-zA-Z0-9._-]{1,249}$' or topic in ('.', '..') then
        raise invalid_parameter_value using
            message = format('outbox_enqueue: no topic can be named %s', coalesce(quote_literal(topic), 'null')),
            hint = 'Use 1 to 249 of a-z, A-Z, 0-9, ., _, -';
    end if;
    if key is null or octet_length(key) not between 1 and 1024 then
        raise invalid_parameter_value using
            message = 'outbox_enqueue: key has to be 1 to 1024 bytes and is '
                || coalesce(octet_length(key)::text, 'null'),
            hint = 'Give the id of what has changed: events of one key stay in order';
    end if;
    if event_type is null or event_type = '' then
        raise invalid_parameter_value using
            message = 'outbox_enqueue: event_type is ' || case when event_type is null then 'null' else 'empty' end,
            hint = 'Say what has happened, as customer_renamed';
    end if;
    if aggregate_version is null then
        raise invalid_parameter_value using
            message = 'outbox_enqueue: aggregate_version is null',
            hint = 'Give the version of the aggregate after the change, one more with every change';
    end if;
    if headers is not null then
        if jsonb_typeof(headers) <> 'object'
            or jsonb_path_exists(headers, 'strict $.* ? (@.type() != "string")', '{}', true)
        then
            raise invalid_parameter_value using
                message = 'outbox_enqueue: headers is no object of strings',
                hint = 'Write {"tenant": "7"} and not {"tenant": 7}; null for none';
        end if;
        select name into repeated from jsonb_object_keys(headers) as given (name)
        where name in ('ce_specversion', 'ce_source', 'content-type', 'ce_id', 'ce_type', 'ce_time',
            'ce_aggregateversion', 'traceparent') limit 1;
        if found then
            raise invalid_parameter_value using
                message = format('outbox_enqueue: headers has %s, which every record has already', repeated),
                hint = 'Leave it out; for the trace context there is the argument traceparent';
        end if;
    end if;
    insert into outbox (event_id, topic, key, event_type, aggregate_version, payload, headers, traceparent)
    values (id, topic, key, event_type, aggregate_version, relay_payload(payload), headers, traceparent);
    return id;
end
$$;

comment on function outbox_enqueue is
    'Writes an event as part of the calling transaction, behind the change that it tells of; returns its id';
