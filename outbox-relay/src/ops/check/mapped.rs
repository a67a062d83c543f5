//! The rules for a mapped outbox table. `:table`, `:xid` and `:seq` are filled in as strings, `:named` as rows of a setting
//! and the column that it names.

use super::tables::{
    ALL_ROWS_ARE_VISIBLE, CONNECTIONS_SUFFICE, INSERTS_ARE_UNCHANGED, NO_SUBSCRIPTION_WRITES,
    POSTGRES_ACCEPTS_WRITES, PUBLICATIONS_PERMIT_UPDATE, Rule, SEQ_INCREASES,
    SYSTEM_IDENTIFIER_IS_READABLE, TABLES_ARE_LOGGED, TABLES_ARE_MIGRATED,
    WRITERS_MAY_USE_SEQUENCE,
};

pub(super) const MAPPED_RULES: [Rule; 19] = [
    POSTGRES_ACCEPTS_WRITES,
    CONNECTIONS_SUFFICE,
    Rule {
        passed: "the role has USAGE on the schema of the outbox",
        is_prerequisite: true,
        sql: "
            select 'role ' || current_user || ' lacks USAGE on schema ' || quote_ident(nspname),
                format('grant usage on schema %I to %I', nspname, current_user)
            from parse_ident(:table) as name join pg_namespace on nspname = name[1]
            where cardinality(name) = 2 and not has_schema_privilege(pg_namespace.oid, 'usage')",
        ..Rule::DEFAULT
    },
    Rule {
        passed: "the outbox and the relay's tables exist",
        is_prerequisite: true,
        sql: "
            select 'table ' || :table || ' does not exist or is not visible to role ' || current_user,
                'Correct the setting table, or grant usage on its schema.'
            where to_regclass(:table) is null
            union all
            select 'table ' || name || ' does not exist in the search path of role ' || current_user,
                coalesce(
                    (select format('Use the one in schema %1$I: `grant usage on schema %1$I to %2$I; '
                            'alter role %2$I in database %3$I set search_path = %1$I`.',
                            relnamespace::regnamespace, current_user, current_database())
                     from pg_class where relname = name and relkind = 'r' limit 1),
                    'Run outbox-relay/sql/relay.sql in database ' || current_database() || '.')
            from unnest(array['relay_checkpoints', 'relay_parked', 'relay_dead_letters']) as name
            where to_regclass(name) is null
            union all
            select 'function relay_payload(jsonb) does not exist in the search path of role ' || current_user,
                'Run outbox-relay/sql/relay.sql in database ' || current_database() || '.'
            where to_regprocedure('relay_payload(jsonb)') is null",
        ..Rule::DEFAULT
    },
    TABLES_ARE_MIGRATED,
    Rule {
        passed: "every configured column exists",
        sql: "
            select 'column ' || quote_ident(name) || ' of ' || :table || ' does not exist',
                'Correct ' || string_agg(setting, ' and ') || '.'
            from (values :named) as named (setting, name)
            where not exists (
                select from pg_attribute
                where attrelid = :table::regclass and attname = name
                    and attnum > 0 and not attisdropped
            )
            group by name order by 1",
        ..Rule::DEFAULT
    },
    Rule {
        passed: "the columns for partition and timestamp have usable types",
        sql: "
            with usable (setting, types, hint) as (values
                ('source.columns.partition', array['smallint', 'integer', 'bigint'], 'an integer column'),
                ('source.columns.timestamp', array['timestamp with time zone', 'timestamp without time zone'],
                    'a column of type timestamptz or timestamp')
            )
            select 'column ' || quote_ident(name) || ' of ' || :table || ' is of type ' || found.type,
                'Set ' || setting || ' to ' || hint || '.'
            from (values :named) as named (setting, name) join usable using (setting)
                join (select attname as name, format_type(coalesce(nullif(typbasetype, 0), atttypid), null) as type
                      from pg_attribute join pg_type on pg_type.oid = atttypid
                      where attrelid = :table::regclass and attnum > 0 and not attisdropped) as found using (name)
            where found.type <> all (types) order by 1",
        ..Rule::DEFAULT
    },
    Rule {
        passed: "the role has all required privileges",
        sql: "
            with needed (of, privilege) as (
                select :table::regclass, 'select'
                union all
                select 'relay_checkpoints', unnest(array['select', 'insert', 'update'])
                union all
                select name::regclass, privilege
                from unnest(array['relay_parked', 'relay_dead_letters']) as name,
                    unnest(array['select', 'insert', 'update', 'delete']) as privilege
            ), missing (privilege, names) as (
                select privilege, string_agg(distinct of::text, ', ')
                from needed where not has_table_privilege(of, privilege) group by privilege
            )
            select 'role ' || current_user || ' lacks ' || upper(privilege) || ' on ' || names,
                'grant ' || privilege || ' on ' || names || ' to ' || quote_ident(current_user)
            from missing order by 1",
        ..Rule::DEFAULT
    },
    Rule {
        passed: "the columns for transaction id and seq have their defaults",
        sql: "
            with expected (name, type, value, hint) as (values
                (:xid, 'xid8', 'pg_current_xact_id()', 'pg_current_xact_id()'),
                (:seq, 'bigint', 'nextval(''%''::regclass)', 'nextval(...) of a sequence with cache 1')
            ), found as (
                select attname, format_type(atttypid, null) as type, attidentity,
                    coalesce(pg_get_expr(adbin, adrelid), '') as value
                from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
                where attrelid = :table::regclass and attnum > 0 and not attisdropped
            )
            select case
                    when is_unknown then 'could not check the default of column ' || name || ' of ' || :table
                        || ', which is ' || coalesce(nullif(value, ''), 'set by a trigger')
                    else 'column ' || name || ' of ' || :table || problem
                end,
                'Declare it as ' || type || ' default ' || hint || ', as in outbox-relay/sql/columns-online.sql.',
                is_unknown
            from (
                select name, expected.type, hint, found.value,
                    case
                        when found.type is null then ' is missing'
                        when found.type <> expected.type then ' is of type ' || found.type
                        else ' has no default'
                    end as problem,
                    found.type = expected.type and (found.value <> '' or exists (
                        select from pg_trigger
                        where tgrelid = :table::regclass and not tgisinternal
                            -- For each row, before an insert.
                            and tgtype & 7 = 7
                    )) as is_unknown
                from expected left join found on attname = name
                where found.type is distinct from expected.type
                    or attidentity = '' and found.value not like expected.value
            ) as unexpected",
        ..Rule::DEFAULT
    },
    Rule {
        passed: "rows without transaction id or seq are rejected",
        sql: "
            select case count(*) when 1 then 'column ' else 'columns ' end || string_agg(quote_ident(name), ' and ')
                    || ' of ' || :table || case count(*) when 1 then ' accepts' else ' accept' end
                    || ' null, and a row with null is never published',
                'alter table ' || :table || ' add constraint relay_columns check ('
                    || string_agg(quote_ident(name) || ' is not null', ' and ') || ') not valid'
            from (:nullable) as nullable (name) having count(*) > 0",
        ..Rule::DEFAULT
    },
    SEQ_INCREASES,
    WRITERS_MAY_USE_SEQUENCE,
    INSERTS_ARE_UNCHANGED,
    ALL_ROWS_ARE_VISIBLE,
    TABLES_ARE_LOGGED,
    PUBLICATIONS_PERMIT_UPDATE,
    NO_SUBSCRIPTION_WRITES,
    Rule {
        passed: "the outbox has indexes on seq and xid",
        sql: "
            select 'there is no index on ' || name || ' of ' || leaf,
                'create index concurrently on ' || leaf || ' ' || columns
            from (select coalesce(tree.relid, :table::regclass) as leaf
                  from (values (1)) as one
                      left join pg_partition_tree(:table) as tree on tree.isleaf) as leaves,
                (values (:seq, format('(%I)', :seq)), (:xid, format('(%I, %I)', :xid, :seq))) as needed (name, columns)
            where not exists (
                select from pg_index join pg_attribute
                    on attrelid = indrelid and attnum = indkey[0]
                where indrelid = leaf and indisvalid and indpred is null and attname = name
            )
            order by 1",
        ..Rule::DEFAULT
    },
    SYSTEM_IDENTIFIER_IS_READABLE,
];
