//! The rules for the tables in a source's database, as SQL.

use crate::{config::Mapping, postgres::backlog::NULLABLE_COLUMNS};

/// A rule: a query that returns a row for each violation, with the finding and the hint. A third column that is true means
/// that the rule could not be checked. A hint that is a statement can be executed as it is.
///
/// `:table`, `:xid` and `:seq` stand for names as strings, `:named` for rows of a setting and the column that it names,
/// `:sequences` for [`SEQUENCES`], `:nullable` for [`NULLABLE_COLUMNS`], `:leaves` for [`LEAF_TABLES`].
pub(super) struct Rule {
    /// The finding when the query returns no row.
    pub(super) passed: &'static str,
    pub(super) sql: &'static str,
    /// True if a violation is a note and not a failure.
    pub(super) is_optional: bool,
    /// True if a violation prevents all further checks.
    pub(super) is_prerequisite: bool,
}

impl Rule {
    /// The fields that most rules share.
    pub(super) const DEFAULT: Self = Self {
        passed: "",
        sql: "",
        is_optional: false,
        is_prerequisite: false,
    };

    /// Returns the SQL for the table of a source.
    pub(super) fn sql(&self, mapping: &Mapping) -> String {
        let sql = fill_in(self.sql);
        mapping.fill_in(&sql)
    }
}

/// Replaces the names of fragments in SQL.
pub(super) fn fill_in(sql: &str) -> String {
    sql.replace(":sequences", SEQUENCES)
        .replace(":nullable", NULLABLE_COLUMNS)
        .replace(":leaves", LEAF_TABLES)
}

/// The sequences of column `:seq`: those of its default, or of its identity.
const SEQUENCES: &str = "
    select refobjid
    from pg_attrdef as def join pg_attribute on attrelid = adrelid and attnum = adnum
        join pg_depend as dep on dep.classid = 'pg_attrdef'::regclass and objid = def.oid
            and refclassid = 'pg_class'::regclass
        join pg_sequence on seqrelid = refobjid
    where adrelid = :table::regclass and attname = :seq
    union
    select objid
    from pg_depend join pg_attribute on attrelid = refobjid and attnum = refobjsubid
        join pg_sequence on seqrelid = objid
    where classid = 'pg_class'::regclass and refclassid = 'pg_class'::regclass and deptype = 'i'
        and refobjid = :table::regclass and attname = :seq";

/// The tables that store the rows of `:table`: its partitions, or itself.
const LEAF_TABLES: &str = "
    select coalesce(tree.relid, :table::regclass)
    from (values (1)) as one left join pg_partition_tree(:table) as tree on tree.isleaf";

/// Detects migrations that were not run, by a column that each of them adds.
pub(super) const TABLES_ARE_MIGRATED: Rule = Rule {
    passed: "the relay's tables have all columns",
    is_prerequisite: true,
    sql: "
        select 'table ' || name || ' lacks column ' || column_name,
            'Run the new migrations of crates/outbox; for tables that sql/relay.sql created, see \"Upgrading\" in '
            || 'docs/operations/outbox-relay.md.'
        from (values
                ('relay_checkpoints', 'outbox'), ('relay_checkpoints', 'window_event_id'),
                ('relay_dead_letters', 'dead_lettered_at')
            ) as needed (name, column_name)
        where not exists (
            select from pg_attribute
            where attrelid = to_regclass(name) and attname = column_name and not attisdropped)",
    ..Rule::DEFAULT
};

/// A leader has three sessions. Truncation and the address monitor open another one each from time to time.
pub(super) const CONNECTIONS_SUFFICE: Rule = Rule {
    passed: "the connection limits permit the five connections that a source can need",
    sql: "
        select owner || ' permits ' || connections || ' connections, but a source can need five at once: truncation and '
            || 'measurements fail without them', statement
        from (
            select 'role ' || quote_ident(rolname), rolconnlimit, format('alter role %I connection limit -1', rolname)
            from pg_roles where rolname = current_user
            union all
            select 'database ' || quote_ident(datname), datconnlimit,
                format('alter database %I connection limit -1', datname)
            from pg_database where datname = current_database()
        ) as limits (owner, connections, statement)
        where connections between 0 and 4",
    ..Rule::DEFAULT
};

/// Two changes of a key must be numbered in the order in which they were made.
pub(super) const SEQ_INCREASES: Rule = Rule {
    passed: "seq increases from row to row",
    sql: "
        with sequences (id) as (:sequences)
        select 'sequence ' || id::regclass || ' ' || case
                when seqcache <> 1 then 'caches ' || seqcache || ' numbers for each session, which '
                    || 'can number two changes of a key in the wrong order'
                when seqincrement < 0 then 'counts down, which publishes the newest change of a key first'
                else 'has CYCLE and restarts at its end, which publishes new changes before old ones'
            end,
            'alter sequence ' || id::regclass || case
                when seqcache <> 1 then ' cache 1'
                when seqincrement < 0 then format(
                    ' increment 1 maxvalue 9223372036854775807; select setval(%L, (select max(%I) from %s))',
                    id::regclass, :seq, :table)
                else ' no cycle'
            end, false
        from sequences join pg_sequence on seqrelid = id
        where seqcache <> 1 or seqincrement < 0 or seqcycle
        union all
        select 'column ' || quote_ident(:seq) || ' of ' || :table || ' gets its numbers from several sequences: '
                || string_agg(id::regclass::text, ', '),
            'Set its default to nextval of one of them.', false
        from sequences having count(*) > 1
        union all
        select 'could not check how column ' || quote_ident(:seq) || ' of ' || :table
                || ' gets its numbers: it has no sequence',
            'Ensure that its numbers increase from row to row and do not come from a cached range.', true
        where not exists (select from sequences)",
    ..Rule::DEFAULT
};

/// A crash of Postgres truncates an unlogged table.
pub(super) const TABLES_ARE_LOGGED: Rule = Rule {
    passed: "the outbox and the relay's tables are logged",
    sql: "
        select oid::regclass || ' is unlogged: a crash of Postgres ' || case relkind
                when 'S' then 'resets it' else 'truncates it' end,
            'alter ' || case relkind when 'S' then 'sequence ' else 'table ' end || oid::regclass || ' set logged'
        from pg_class
        where relpersistence = 'u' and oid in (
            :leaves
            union all
            :sequences
            union all
            select to_regclass(name)
            from unnest(array['relay_checkpoints', 'relay_parked', 'relay_dead_letters']) as name)
        order by 1",
    ..Rule::DEFAULT
};

/// Postgres rejects update and delete of a published table whose replica identity lacks a published column or a column of the
/// row filter.
pub(super) const PUBLICATIONS_PERMIT_UPDATE: Rule = Rule {
    passed: "no publication prevents update and delete of outbox rows",
    sql: "
        select distinct class.oid::regclass || ' is in the publication ' || quote_ident(pubname) || case
                when not has_identity then ' and has no replica identity, so that Postgres rejects update and delete'
                when is_filtered then ', which has a row filter: could not check that the replica identity contains its '
                    || 'columns, without which Postgres rejects update and delete'
                else ', which has a column list without the whole replica identity, so that Postgres rejects '
                    || 'update and delete'
            end,
            case
                when not has_identity then 'alter table ' || class.oid::regclass || ' replica identity full'
                when is_filtered then 'Add the columns of the row filter to the replica identity, or remove the table from the publication.'
                else 'Publish all columns, or remove the table from the publication.'
            end, has_identity and is_filtered
        from pg_class as class
            cross join lateral (select class.oid union select pg_partition_ancestors(class.oid)) as ancestors (relid)
            join pg_class as listed on listed.oid = ancestors.relid
            join pg_publication_tables as published
                on schemaname = listed.relnamespace::regnamespace::name and tablename = listed.relname
            join pg_publication using (pubname),
            lateral (
                select class.relreplident = 'f' or exists (
                        select from pg_index
                        where indrelid = class.oid and indisvalid and indimmediate
                            and case class.relreplident when 'd' then indisprimary else indisreplident end
                    ) and class.relreplident <> 'n',
                    class.relreplident <> 'f' and rowfilter is not null,
                    exists (
                        select from pg_attribute
                        where attrelid = class.oid and attnum > 0 and not attisdropped and attname <> all (attnames)
                            and (class.relreplident = 'f' or exists (
                                select from pg_index
                                where indrelid = class.oid and attnum = any (indkey)
                                    and case class.relreplident when 'd' then indisprimary else indisreplident end))
                    )
            ) as publication_facts (has_identity, is_filtered, omits_identity)
        where class.oid in (:leaves) and (pubupdate or pubdelete)
            and (not has_identity or is_filtered or omits_identity)
        order by 1",
    ..Rule::DEFAULT
};

/// Replicated rows may have transaction ids of the cluster where they were written.
pub(super) const NO_SUBSCRIPTION_WRITES: Rule = Rule {
    passed: "no subscription writes to the outbox",
    sql: "
        select 'could not check the transaction ids of ' || srrelid::regclass || ': a subscription writes to it',
            'Run the relay where the rows are written, or exclude the columns ' || quote_ident(:xid) || ' and '
                || quote_ident(:seq) || ' from the publication: a row with a foreign id may never be published.', true
        from pg_subscription_rel
        where srrelid = :table::regclass
            or srrelid in (select relid from pg_partition_tree(:table))
            or srrelid in (select relid from pg_partition_ancestors(:table))
        order by 1",
    ..Rule::DEFAULT
};

/// The relay never publishes a row that row-level security hides from it.
pub(super) const ALL_ROWS_ARE_VISIBLE: Rule = Rule {
    passed: "row-level security hides no rows from the role",
    sql: "
        select 'row-level security hides rows of ' || :table || ' from role ' || current_user,
            format('As a superuser, run `alter role %I bypassrls`.', current_user)
        where row_security_active(:table)",
    ..Rule::DEFAULT
};

/// Rules, triggers and inheritance can change or drop an inserted row.
pub(super) const INSERTS_ARE_UNCHANGED: Rule = Rule {
    passed: "no rule, trigger or inheritance changes inserted rows",
    sql: "
        select 'could not check how rule ' || quote_ident(rulename) || ' of ' || :table || ' changes an insert',
            'Drop the rule, or ensure that each row gets the defaults of ' || quote_ident(:xid) || ' and '
                || quote_ident(:seq) || '.', true
        from pg_rules
        where format('%I.%I', schemaname, tablename)::regclass in (
            select :table::regclass union all select relid from pg_partition_tree(:table))
        union all
        select distinct 'could not check that trigger ' || quote_ident(tgname) || ' of ' || :table
                || ' does not change the columns ' || quote_ident(:xid) || ' and ' || quote_ident(:seq),
            'Ensure that it does not change them and does not drop rows.', true
        from pg_trigger
        where tgrelid in (select :table::regclass union all select relid from pg_partition_tree(:table))
            and not tgisinternal and tgenabled <> 'D'
            -- For each row, before an insert.
            and tgtype & 7 = 7
        union all
        select 'could not check the tables that inherit from ' || :table || ', one of which is ' || inhrelid::regclass,
            'Use partitions instead of inheritance.', true
        from pg_inherits join pg_class on oid = inhparent
        where inhparent = :table::regclass and relkind <> 'p'
        order by 1",
    ..Rule::DEFAULT
};

/// The relay writes its checkpoint to this Postgres.
pub(super) const POSTGRES_ACCEPTS_WRITES: Rule = Rule {
    passed: "Postgres accepts writes",
    is_prerequisite: true,
    sql: "
        select 'Postgres is a standby and does not accept writes', 'Set the primary in database_url.'
        where pg_is_in_recovery()",
    ..Rule::DEFAULT
};

/// Only the system identifier distinguishes a database from its copy.
pub(super) const SYSTEM_IDENTIFIER_IS_READABLE: Rule = Rule {
    passed: "the role may read the system identifier, which detects a database restored from a dump",
    is_optional: true,
    sql: "
        select 'role ' || current_user || ' lacks EXECUTE on pg_control_system(), so that only transaction ids '
            || 'detect a database restored from a dump',
            'As a superuser, run `grant execute on function pg_control_system() to ' || quote_ident(current_user) || '`.'
        where not has_function_privilege('pg_control_system()', 'execute')",
    ..Rule::DEFAULT
};

/// A role with INSERT also needs the sequence, unless the column is an identity.
pub(super) const WRITERS_MAY_USE_SEQUENCE: Rule = Rule {
    passed: "every role with INSERT on the outbox has USAGE on its sequence",
    sql: "
        with writer (id) as (
            select grantee from pg_class, aclexplode(relacl)
            where oid = :table::regclass and privilege_type = 'INSERT'
            union
            select grantee from pg_attribute, aclexplode(attacl)
            where attrelid = :table::regclass and privilege_type = 'INSERT'
        ), sequences (id) as (
            -- An identity needs no privilege.
            select id from (:sequences) as all_sequences (id)
            where not exists (select from pg_depend where objid = id and deptype = 'i')
        )
        select 'role ' || name || ' has INSERT on ' || :table || ' but lacks USAGE on sequence '
                || sequences.id::regclass || ' of column ' || quote_ident(:seq),
            'grant usage on sequence ' || sequences.id::regclass || ' to ' || name
        from sequences, writer, lateral (
            select case writer.id when 0 then 'public' else quote_ident(pg_get_userbyid(writer.id)) end,
                case writer.id when 0 then has_sequence_privilege('public', sequences.id, 'usage, update')
                    else has_sequence_privilege(writer.id, sequences.id, 'usage, update') end
        ) as role (name, may)
        where not may order by 1",
    ..Rule::DEFAULT
};

/// The rules for the outbox of this project's migrations.
pub(super) const OUTBOX_RULES: [Rule; 18] = [
    POSTGRES_ACCEPTS_WRITES,
    CONNECTIONS_SUFFICE,
    Rule {
        passed: "the outbox and the relay's tables exist",
        is_prerequisite: true,
        sql: "
            select 'table ' || name || ' does not exist in the search path of role ' || current_user,
                'Create it in database ' || current_database()
                || ' as in crates/outbox/migrations, and grant usage on its schema.'
            from unnest(array['outbox', 'relay_checkpoints', 'relay_parked', 'relay_dead_letters'])
                as name
            where to_regclass(name) is null",
        ..Rule::DEFAULT
    },
    TABLES_ARE_MIGRATED,
    Rule {
        passed: "the role has all required privileges",
        sql: "
            with needed (of, privilege) as (
                select 'outbox'::regclass, 'select'
                union all
                select relid, privilege
                from pg_partition_tree('outbox'), unnest(array['select', 'truncate']) as privilege
                where isleaf
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
        passed: "every outbox column has the expected type and default",
        sql: "
            with expected (name, type, is_required, value, usual) as (values
                ('xid', 'xid8', true, 'pg_current_xact_id()', 'pg_current_xact_id()'),
                ('seq', 'bigint', true, 'nextval(''%''::regclass)', 'nextval(''outbox_seq'')'),
                ('event_id', 'uuid', true, '_%', 'gen_random_uuid()'),
                ('topic', 'text', true, '%', null),
                ('key', 'text', true, '%', null),
                ('event_type', 'text', true, '%', null),
                ('aggregate_version', 'bigint', true, '%', null),
                ('payload', 'bytea', false, '%', null),
                ('headers', 'jsonb', false, '%', null),
                ('traceparent', 'text', false, '%', null),
                ('created_at', 'timestamp with time zone', true, '_%', 'clock_timestamp()')
            ), found as (
                select attname, format_type(atttypid, null) as type, attnotnull,
                    coalesce(pg_get_expr(adbin, adrelid), '') as value
                from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
                where attrelid = 'outbox'::regclass and attnum > 0 and not attisdropped
            )
            select 'column ' || name || ' of outbox ' || problem, 'alter table outbox ' || statement
            from expected left join found on attname = name, lateral (
                select 'is missing', 'add column ' || name || ' ' || expected.type
                    || case when is_required then ' not null' else '' end || coalesce(' default ' || usual, '')
                where found.type is null
                union all
                select 'is of type ' || found.type, 'alter column ' || name || ' type ' || expected.type
                    || ' using ' || name || '::text::' || expected.type
                where found.type <> expected.type
                union all
                select 'is nullable', 'alter column ' || name || ' set not null'
                where is_required and not attnotnull
                union all
                select case found.value when '' then 'has no default' else 'has a default other than ' || usual end,
                    'alter column ' || name || ' set default ' || usual
                where found.value not like expected.value
            ) as wrong (problem, statement)",
        ..Rule::DEFAULT
    },
    Rule {
        passed: "every partition has indexes on seq and xid",
        sql: "
            select 'there is no index on ' || name || ' of ' || string_agg(relid::text, ', '),
                'create index on outbox (' || columns || ')'
            from pg_partition_tree('outbox'), (values ('seq', 'seq'), ('xid', 'xid, seq'))
                as needed (name, columns)
            where isleaf and not exists (
                select from pg_index join pg_attribute
                    on attrelid = indrelid and attnum = indkey[0]
                where indrelid = relid and indisvalid and indpred is null and attname = name
            )
            group by name, columns order by 1",
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
        passed: "the outbox has partitions that can be truncated",
        is_optional: true,
        sql: "
            select 'the outbox has no partitions and is never truncated',
                'Partition it by bucket as in crates/outbox/migrations.'
            where not exists (select from pg_inherits where inhparent = 'outbox'::regclass)
            union all
            select 'the outbox has default partition ' || partdefid::regclass
                || ', which is never truncated', 'alter table outbox detach partition ' || partdefid::regclass
            from pg_partitioned_table where partrelid = 'outbox'::regclass and partdefid <> 0
            union all
            select 'column bucket of outbox lacks the default that rotates through the partitions',
                'alter table outbox alter column bucket set default '
                || '(date_part(''epoch'', clock_timestamp())::bigint / 600 % 8)::smallint'
            from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
            where attrelid = 'outbox'::regclass and attname = 'bucket'
                and coalesce(pg_get_expr(adbin, adrelid), '') not like '%clock_timestamp()%'
            union all
            select 'schema ' || relnamespace::regnamespace || ' also has a table relay_checkpoints: rows that its sources have not '
                || 'published may be truncated', 'Use one table relay_checkpoints for all sources of an outbox.'
            from pg_class
            where relname = 'relay_checkpoints' and relkind = 'r' and oid <> to_regclass('relay_checkpoints')",
        ..Rule::DEFAULT
    },
    Rule {
        passed: "every bucket has a partition",
        sql: "
            select 'bucket ' || bucket || ' of outbox has no partition, so that inserts fail for ten minutes',
                format('create table outbox_%1$s partition of outbox for values in (%1$s)', bucket)
            from generate_series(0, 7) as bucket, pg_attribute
                left join pg_attrdef on adrelid = attrelid and adnum = attnum
            where attrelid = 'outbox'::regclass and attname = 'bucket'
                -- The default of this project's migrations.
                and pg_get_expr(adbin, adrelid) ~ '/ 600\\) % \\(?8\\)?[:)]'
                and not exists (select from pg_inherits, pg_class as child where inhparent = attrelid
                    and child.oid = inhrelid
                    and (pg_get_expr(relpartbound, child.oid) = 'DEFAULT'
                        or bucket::text = any (regexp_split_to_array(
                            substring(pg_get_expr(relpartbound, child.oid) from '\\((.*)\\)'), '[^0-9]+'))))",
        ..Rule::DEFAULT
    },
    SYSTEM_IDENTIFIER_IS_READABLE,
    Rule {
        passed: "`reset` can adopt rows restored from a dump",
        is_optional: true,
        sql: "
            select 'function outbox_adopt_foreign_rows(), which `reset` needs, does not exist',
                'Create it as in crates/outbox/migrations.'
            where to_regprocedure('outbox_adopt_foreign_rows()') is null
            union all
            select 'role ' || current_user || ' lacks EXECUTE on outbox_adopt_foreign_rows(), which `reset` needs',
                'grant execute on function outbox_adopt_foreign_rows() to ' || quote_ident(current_user)
            where not has_function_privilege(to_regprocedure('outbox_adopt_foreign_rows()'), 'execute')",
        ..Rule::DEFAULT
    },
];

/// Selects the checkpoint of source `$1` with table `$2`: its instance, epoch and whether the leader resigned; whether it is
/// ahead of this database or of another cluster than `$3`, the system identifier if known; its age; whether it is of another
/// table; the database's oid.
pub(super) const CHECKPOINT: &str = "
    select instance::text, epoch, resigned,
        pg_snapshot_xmax(snapshot) > pg_snapshot_xmax(pg_current_snapshot())
            or coalesce(system_identifier <> $3, false),
        date_part('epoch', clock_timestamp() - heartbeat_at),
        coalesce(outbox <> to_regclass($2), false),
        (select oid from pg_database where datname = current_database())
    from relay_checkpoints where source = $1";

/// Returns the SQL for the topics and the bytes of their largest row, among the newest 1,000 rows and the next 1,000 rows to
/// publish. `$1` is the source.
pub(super) fn select_topics(outbox: &str) -> String {
    TOPICS.replace(":outbox", outbox)
}

const TOPICS: &str = "
    with next as (
        select topic, key, payload, headers from :outbox
        where seq > coalesce((select greatest(max_seq, window_seq) from relay_checkpoints
            where source = $1), 0)
        order by seq limit 1000
    ), newest as (
        select topic, key, payload, headers from :outbox
        where seq is not null order by seq desc limit 1000
    )
    select topic, max(coalesce(octet_length(key), 0) + coalesce(octet_length(payload), 0)
        + coalesce(octet_length(headers::text), 0))::bigint
    from (table next union all table newest) as sampled
    group by topic order by topic";
