-- Rewords the errors and hints of outbox_enqueue. Nothing else changes.
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
    reserved text;
begin
    if topic is null or topic !~ '^[a-zA-Z0-9._-]{1,249}$' or topic in ('.', '..') then
        raise invalid_parameter_value using
            message = format('outbox_enqueue: invalid topic %s', coalesce(quote_literal(topic), 'null')),
            hint = 'Use 1 to 249 of the characters a-z, A-Z, 0-9, ., _, -.';
    end if;
    if key is null or octet_length(key) not between 1 and 1024 then
        raise invalid_parameter_value using
            message = 'outbox_enqueue: key must be 1 to 1024 bytes, got ' || coalesce(octet_length(key)::text, 'null'),
            hint = 'Pass the id of the aggregate: events with the same key stay in order.';
    end if;
    if event_type is null or event_type = '' then
        raise invalid_parameter_value using
            message = 'outbox_enqueue: event_type must not be '
                || case when event_type is null then 'null' else 'empty' end,
            hint = 'Pass the type of the event, such as customer_renamed.';
    end if;
    if aggregate_version is null then
        raise invalid_parameter_value using
            message = 'outbox_enqueue: aggregate_version must not be null',
            hint = 'Pass the version of the aggregate after the change. It increases by one with each change.';
    end if;
    if headers is not null then
        if jsonb_typeof(headers) <> 'object'
            or jsonb_path_exists(headers, 'strict $.* ? (@.type() != "string")', '{}', true)
        then
            raise invalid_parameter_value using
                message = 'outbox_enqueue: headers must be a JSON object of strings',
                hint = 'Write {"tenant": "7"} instead of {"tenant": 7}. Without headers, pass null.';
        end if;
        select name into reserved from jsonb_object_keys(headers) as given (name)
        where name in ('ce_specversion', 'ce_source', 'content-type', 'ce_id', 'ce_type', 'ce_time',
            'ce_aggregateversion', 'traceparent') limit 1;
        if found then
            raise invalid_parameter_value using
                message = format('outbox_enqueue: header %s is reserved', reserved),
                hint = 'Remove it from headers. For the trace context, use the argument traceparent.';
        end if;
    end if;
    insert into outbox (event_id, topic, key, event_type, aggregate_version, payload, headers, traceparent)
    values (id, topic, key, event_type, aggregate_version, relay_payload(payload), headers, traceparent);
    return id;
end
$$;

comment on function outbox_enqueue is
    'Writes an event in the calling transaction and returns its id. Call it after the statement that changes the aggregate.';
