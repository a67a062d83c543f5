//! The SQL that says what of an outbox is not as the relay needs it.

use crate::{config::Mapping, postgres::backlog::NULLABLE_COLUMNS};

/// A look at the database: a row, what is wrong and what to do about it, for each thing that is not
/// as it should be.
///
/// `:table`, `:xid` and `:seq` stand for names as strings, `:named` for rows of a setting and the column that it names,
/// `:numbers` for [`NUMBERS`], `:nullable` for [`NULLABLE_COLUMNS`], `:leaves` for [`LEAVES`]. A third column that is true
/// says that this could not be found out.
pub(super) struct Rule {
    /// What it means when there is no such row.
    pub(super) fine: &'static str,
    pub(super) sql: &'static str,
    /// Whether it can stay as it is.
    pub(super) is_optional: bool,
    /// Whether nothing else can be looked at if it isn't so.
    pub(super) is_basic: bool,
}

pub(super) const RULE: Rule = Rule {
    fine: "",
    sql: "",
    is_optional: false,
    is_basic: false,
};

impl Rule {
    /// The rule's SQL for a source's table.
    pub(super) fn sql(&self, mapping: &Mapping) -> String {
        let sql = fill_in(self.sql);
        mapping.fill_in(&sql)
    }
}

/// SQL with its fragments in place of their names.
pub(super) fn fill_in(sql: &str) -> String {
    sql.replace(":numbers", NUMBERS)
        .replace(":nullable", NULLABLE_COLUMNS)
        .replace(":leaves", LEAVES)
}

/// The sequences that number column `:seq`: of its default, or of the identity that it is.
const NUMBERS: &str = "
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

/// The tables that hold the rows of `:table`: its partitions, or itself.
const LEAVES: &str = "
    select coalesce(tree.relid, :table::regclass)
    from (values (1)) as one left join pg_partition_tree(:table) as tree on tree.isleaf";

/// Two changes of a key are numbered in the order in which they were made.
pub(super) const NUMBERED: Rule = Rule {
    fine: "seq rises from row to row",
    sql: "
        with numbers (id) as (:numbers)
        select 'sequence ' || id::regclass || ' ' || case
                when seqcache <> 1 then 'gives each session ' || seqcache
                    || ' numbers at once, so that two changes of a key can be numbered the wrong way round'
                when seqincrement < 0 then 'counts down, so that the newest change of a key comes first'
                else 'starts over at its end, so that new changes come before old ones'
            end,
            'alter sequence ' || id::regclass || case
                when seqcache <> 1 then ' cache 1'
                when seqincrement < 0 then format(
                    ' increment 1 maxvalue 9223372036854775807; select setval(%L, (select max(%I) from %s))',
                    id::regclass, :seq, :table)
                else ' no cycle'
            end, false
        from numbers join pg_sequence on seqrelid = id
        where seqcache <> 1 or seqincrement < 0 or seqcycle
        union all
        select 'column ' || quote_ident(:seq) || ' of ' || :table || ' is numbered by several sequences: '
                || string_agg(id::regclass::text, ', '),
            'let its default be nextval of one of them', false
        from numbers having count(*) > 1
        union all
        select 'could not check how column ' || quote_ident(:seq) || ' of ' || :table
                || ' is numbered: no sequence belongs to it',
            'see that its numbers rise from row to row, and come from no cached range', true
        where not exists (select from numbers)",
    ..RULE
};

/// A crash of Postgres empties a table that is not logged.
pub(super) const LOGGED: Rule = Rule {
    fine: "the outbox and the relay's own tables survive a crash of Postgres",
    sql: "
        select oid::regclass || ' is unlogged: a crash of Postgres ' || case relkind
                when 'S' then 'sets it back' else 'empties it' end,
            'alter ' || case relkind when 'S' then 'sequence ' else 'table ' end || oid::regclass || ' set logged'
        from pg_class
        where relpersistence = 'u' and oid in (
            :leaves
            union all
            :numbers
            union all
            select to_regclass(name)
            from unnest(array['relay_checkpoints', 'relay_parked', 'relay_dead_letters']) as name)
        order by 1",
    ..RULE
};

/// Where a publication covers it, Postgres refuses to change rows of a table without a replica identity that has what is
/// published, and what its row filter looks at.
pub(super) const REPAIRABLE: Rule = Rule {
    fine: "rows can be repaired by update and delete",
    sql: "
        select distinct class.oid::regclass || ' is in the publication ' || quote_ident(pubname) || case
                when not has_identity then ' and has no replica identity, so that Postgres refuses to repair its rows'
                when is_filtered then ', which has a row filter: could not check that its columns are in the replica '
                    || 'identity, without which Postgres refuses to repair rows'
                else ', which has a list of columns without the whole replica identity, so that Postgres refuses to '
                    || 'repair its rows'
            end,
            case
                when not has_identity then 'alter table ' || class.oid::regclass || ' replica identity full'
                when is_filtered then 'look at the row filter, or take the table out of the publication'
                else 'publish all columns, or take the table out of the publication'
            end, has_identity and is_filtered
        from pg_class as class
            join pg_class as listed
                on listed.oid = class.oid or listed.oid in (select pg_partition_ancestors(class.oid))
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
            ) as what_of_it (has_identity, is_filtered, is_cut)
        where class.oid in (:leaves) and (pubupdate or pubdelete)
            and (not has_identity or is_filtered or is_cut)
        order by 1",
    ..RULE
};

/// Rows that come by replication may bring transaction ids of the cluster where they were written.
pub(super) const WRITTEN_HERE: Rule = Rule {
    fine: "the outbox is not filled by replication",
    sql: "
        select 'could not check whose transaction ids the rows of ' || srrelid::regclass
                || ' have: a subscription fills it',
            'run the relay where the rows are written, or leave the columns ' || quote_ident(:xid) || ' and '
                || quote_ident(:seq) || ' out of the publication: a row with a foreign id may never be published', true
        from pg_subscription_rel
        where srrelid = :table::regclass
            or srrelid in (select relid from pg_partition_tree(:table))
            or srrelid in (select relid from pg_partition_ancestors(:table))
        order by 1",
    ..RULE
};

/// A row that the relay is not shown is one that it never publishes.
pub(super) const UNHIDDEN: Rule = Rule {
    fine: "no row is hidden from the role",
    sql: "
        select 'row-level security hides rows of ' || :table || ' from ' || current_user,
            format('as a superuser, alter role %I bypassrls', current_user)
        where row_security_active(:table)",
    ..RULE
};

/// What stands between an insert and the row that is read.
pub(super) const WRITTEN_AS_IT_IS: Rule = Rule {
    fine: "what is inserted is what is read",
    sql: "
        select 'could not check what the rule ' || quote_ident(rulename) || ' of ' || :table || ' makes of an insert',
            'take the rule away, or see that each row comes with the defaults of ' || quote_ident(:xid) || ' and '
                || quote_ident(:seq), true
        from pg_rules
        where format('%I.%I', schemaname, tablename)::regclass in (
            select :table::regclass union all select relid from pg_partition_tree(:table))
        union all
        select distinct 'could not check that the trigger ' || quote_ident(tgname) || ' of ' || :table
                || ' leaves the columns ' || quote_ident(:xid) || ' and ' || quote_ident(:seq) || ' as they are',
            'see that it does, and that it drops no row', true
        from pg_trigger
        where tgrelid in (select :table::regclass union all select relid from pg_partition_tree(:table))
            and not tgisinternal and tgenabled <> 'D'
            -- For each row, before an insert.
            and tgtype & 7 = 7
        union all
        select 'could not check the tables that inherit from ' || :table || ', among them ' || inhrelid::regclass,
            'use partitions', true
        from pg_inherits join pg_class on oid = inhparent
        where inhparent = :table::regclass and relkind <> 'p'
        order by 1",
    ..RULE
};

/// The relay writes its checkpoint.
pub(super) const WRITABLE: Rule = Rule {
    fine: "this Postgres takes writes",
    is_basic: true,
    sql: "
        select 'this Postgres is a standby, which takes no writes', 'give the primary in database_url'
        where pg_is_in_recovery()",
    ..RULE
};

/// Only this tells a copy of a database from the database.
pub(super) const KNOWN_CLUSTER: Rule = Rule {
    fine: "a database that was restored from a dump would be noticed",
    is_optional: true,
    sql: "
        select current_user || ' may not execute pg_control_system(), so that a dump that is '
            || 'restored elsewhere is noticed by its transaction ids alone',
            'as a superuser, grant execute on function pg_control_system() to ' || quote_ident(current_user)
        where not has_function_privilege('pg_control_system()', 'execute')",
    ..RULE
};

/// Whoever may insert has to be given the number of the row as well.
pub(super) const WRITERS: Rule = Rule {
    fine: "whoever may insert into the outbox may number the row",
    sql: "
        with writer (id) as (
            select grantee from pg_class, aclexplode(relacl)
            where oid = :table::regclass and privilege_type = 'INSERT'
            union
            select grantee from pg_attribute, aclexplode(attacl)
            where attrelid = :table::regclass and privilege_type = 'INSERT'
        ), numbers (id) as (
            -- An identity needs no privilege.
            select id from (:numbers) as numbers (id)
            where not exists (select from pg_depend where objid = id and deptype = 'i')
        )
        select name || ' may insert into ' || :table || ', and may not use the sequence '
                || numbers.id::regclass || ' of its column ' || :seq,
            'grant usage on sequence ' || numbers.id::regclass || ' to ' || name
        from numbers, writer, lateral (
            select case writer.id when 0 then 'public' else quote_ident(pg_get_userbyid(writer.id)) end,
                case writer.id when 0 then has_sequence_privilege('public', numbers.id, 'usage, update')
                    else has_sequence_privilege(writer.id, numbers.id, 'usage, update') end
        ) as role (name, may)
        where not may order by 1",
    ..RULE
};

pub(super) const RULES: [Rule; 16] = [
    WRITABLE,
    Rule {
        fine: "the outbox and the relay's own tables are there",
        is_basic: true,
        sql: "
            select 'there is no table ' || name || ' in the search path of ' || current_user,
                'make it in the database ' || current_database()
                || ', as crates/outbox/migrations does, and grant usage on its schema'
            from unnest(array['outbox', 'relay_checkpoints', 'relay_parked', 'relay_dead_letters'])
                as name
            where to_regclass(name) is null",
        ..RULE
    },
    Rule {
        fine: "the role may do all that the relay does",
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
                select rejections::regclass, privilege
                from unnest(array['relay_parked', 'relay_dead_letters']) as aside,
                    unnest(array['select', 'insert', 'update', 'delete']) as privilege
            ), missing (privilege, names) as (
                select privilege, string_agg(distinct of::text, ', ')
                from needed where not has_table_privilege(of, privilege) group by privilege
            )
            select current_user || ' may not ' || privilege || ' on ' || names,
                'grant ' || privilege || ' on ' || names || ' to ' || quote_ident(current_user)
            from missing order by 1",
        ..RULE
    },
    Rule {
        fine: "the outbox has its columns, with their types and defaults",
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
                select 'may be null', 'alter column ' || name || ' set not null'
                where is_required and not attnotnull
                union all
                select case found.value when '' then 'has no default' else 'has another default than ' || usual end,
                    'alter column ' || name || ' set default ' || usual
                where found.value not like expected.value
            ) as wrong (problem, statement)",
        ..RULE
    },
    Rule {
        fine: "rows are found by seq and by xid, in every partition",
        sql: "
            select 'there is no index on ' || name || ' in ' || string_agg(relid::text, ', '),
                'create index on outbox (' || columns || ')'
            from pg_partition_tree('outbox'), (values ('seq', 'seq'), ('xid', 'xid, seq'))
                as needed (name, columns)
            where isleaf and not exists (
                select from pg_index join pg_attribute
                    on attrelid = indrelid and attnum = indkey[0]
                where indrelid = relid and indisvalid and indpred is null and attname = name
            )
            group by name, columns order by 1",
        ..RULE
    },
    NUMBERED,
    WRITERS,
    WRITTEN_AS_IT_IS,
    UNHIDDEN,
    LOGGED,
    REPAIRABLE,
    WRITTEN_HERE,
    Rule {
        fine: "the outbox has partitions, which can be emptied by turns",
        is_optional: true,
        sql: "
            select 'the outbox has no partitions, so that it is never emptied',
                'partition it by bucket as crates/outbox/migrations does'
            where not exists (select from pg_inherits where inhparent = 'outbox'::regclass)
            union all
            select 'the outbox has a default partition, ' || partdefid::regclass
                || ', which is never emptied', 'alter table outbox detach partition ' || partdefid::regclass
            from pg_partitioned_table where partrelid = 'outbox'::regclass and partdefid <> 0
            union all
            select 'column bucket has not the default that goes from partition to partition',
                'alter table outbox alter column bucket set default '
                || '(date_part(''epoch'', clock_timestamp())::bigint / 600 % 8)::smallint'
            from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
            where attrelid = 'outbox'::regclass and attname = 'bucket'
                and coalesce(pg_get_expr(adbin, adrelid), '') not like '%clock_timestamp()%'
            union all
            select 'the schema ' || relnamespace::regnamespace || ' has checkpoints as well: what their sources have not '
                || 'published may be truncated', 'let all sources of an outbox use one table relay_checkpoints'
            from pg_class
            where relname = 'relay_checkpoints' and relkind = 'r' and oid <> to_regclass('relay_checkpoints')",
        ..RULE
    },
    Rule {
        fine: "each bucket has its partition",
        sql: "
            select 'no partition of the outbox takes bucket ' || bucket || ', so that inserts fail for ten minutes',
                format('create table outbox_%1$s partition of outbox for values in (%1$s)', bucket)
            from generate_series(0, 7) as bucket, pg_attribute
                left join pg_attrdef on adrelid = attrelid and adnum = attnum
            where attrelid = 'outbox'::regclass and attname = 'bucket'
                -- As this project's migrations have it.
                and pg_get_expr(adbin, adrelid) ~ '/ 600\\) % \\(?8\\)?[:)]'
                and not exists (select from pg_inherits, pg_class as child where inhparent = attrelid
                    and child.oid = inhrelid
                    and (pg_get_expr(relpartbound, child.oid) = 'DEFAULT'
                        or bucket::text = any (regexp_split_to_array(
                            substring(pg_get_expr(relpartbound, child.oid) from '\\((.*)\\)'), '[^0-9]+'))))",
        ..RULE
    },
    KNOWN_CLUSTER,
    Rule {
        fine: "the outbox could be reset after that",
        is_optional: true,
        sql: "
            select 'there is no function outbox_adopt_foreign_rows(), which `reset` needs',
                'make it as crates/outbox/migrations does'
            where to_regprocedure('outbox_adopt_foreign_rows()') is null
            union all
            select current_user || ' may not execute outbox_adopt_foreign_rows(), which `reset` needs',
                'grant execute on function outbox_adopt_foreign_rows() to ' || quote_ident(current_user)
            where not has_function_privilege(to_regprocedure('outbox_adopt_foreign_rows()'), 'execute')",
        ..RULE
    },
];

/// `$1` is the source, `$2` its table, and `$3` what names this cluster, if that is known: the instance, whether the checkpoint is of another time or
/// another cluster of databases, how old it is, and whether it is of another table.
pub(super) const CHECKPOINT: &str = "
    select instance::text, epoch, resigned,
        pg_snapshot_xmax(snapshot) > pg_snapshot_xmax(pg_current_snapshot())
            or coalesce(system_identifier <> $3, false),
        date_part('epoch', clock_timestamp() - heartbeat_at),
        coalesce(outbox <> to_regclass($2), false),
        (select oid from pg_database where datname = current_database())
    from relay_checkpoints where source = $1";

/// Topics and the largest row of each, in bytes, among the newest thousand rows and the thousand that
/// are published next. `$1` is the source.
pub(super) fn topics(outbox: &str) -> String {
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
    from (table next union all table newest) as looked_at
    group by topic order by topic";
