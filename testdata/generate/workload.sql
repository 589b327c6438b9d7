-- What the fixture servers do. One statement ends with a semicolon at the end
-- of a line. Directives hold for the next statement:
--   -- from 15      only on this major version and later
--   -- to 14        only up to this one
--   -- may fail     where the server was built without something
-- DIR stands for a scratch directory of the server's.

-- DDL and ordinary changes
create table t (id int primary key, v text);
insert into t select g, 'row ' || g from generate_series(1, 400) g;
create index t_v on t (v);
update t set v = v || '!' where id % 3 = 0;
delete from t where id % 5 = 0;
alter table t add column extra int default 7;
create sequence s;
select nextval('s') from generate_series(1, 40);
create unlogged table u (id int primary key);
insert into u values (1);
create table gone (id int);
insert into gone select generate_series(1, 50);
drop table gone;
create type mood as enum ('calm', 'hurried');
create materialized view mv as select * from t;
refresh materialized view mv;

-- the other index types
create table idx (a int, p point, txt text, arr int[]);
insert into idx select g, point(g, g), md5(g::text), array[g, g + 1] from generate_series(1, 300) g;
create index on idx using hash (a);
create index on idx using gist (p);
create index on idx using spgist (txt);
create index on idx using gin (arr);
create index on idx using brin (a);
insert into idx select g, point(g, g), md5(g::text), array[g, g + 1] from generate_series(301, 400) g;

-- subtransactions, also rolled back, and files made by a transaction that aborts
do $$ begin for i in 1..20 loop begin insert into t values (1000 + i, 'sub'); if i % 4 = 0 then raise exception 'back'; end if; exception when others then null; end; end loop; end $$;
begin;
create table never (id int primary key);
insert into never values (1);
rollback;
select 1 from t where id = 1 for share;

-- two-phase commits, with subtransactions and dropped files
create table drop_me (id int primary key);
begin;
insert into t values (2001, 'two-phase');
savepoint a;
insert into t values (2002, 'two-phase');
savepoint b;
drop table drop_me;
create table made_by_two_phase (id int);
prepare transaction 'tidemark one';
commit prepared 'tidemark one';
begin;
savepoint a;
insert into t values (2003, 'two-phase');
create table unmade (id int);
prepare transaction 'tidemark two';
rollback prepared 'tidemark two';

-- truncations
create table tr (id int primary key, filler text);
insert into tr select g, repeat('x', 500) from generate_series(1, 300) g;
delete from tr where id > 100;
vacuum tr;
truncate tr;
insert into tr select g, 'again' from generate_series(1, 10) g;
begin;
truncate tr;
insert into tr values (1, 'once more');
commit;

-- rewriting
vacuum full t;
cluster t using t_pkey;
reindex table t;
vacuum full pg_class;
vacuum (freeze, analyze) t;

-- records over several pages, and over more than one segment
select pg_logical_emit_message(false, 'tidemark', repeat('wide ', 6000));
select pg_logical_emit_message(true, 'tidemark', repeat('wider', 500000));

-- page images: each method, and those kept only for comparison
create table img (id int primary key, v text);
insert into img select g, md5(g::text) from generate_series(1, 2000) g;
checkpoint;
update img set v = 'plain' where id % 100 = 0;
set wal_compression = on;
checkpoint;
update img set v = 'pglz' where id % 100 = 1;
-- from 15
-- may fail
set wal_compression = lz4;
checkpoint;
update img set v = 'lz4' where id % 100 = 2;
-- from 15
-- may fail
set wal_compression = zstd;
checkpoint;
update img set v = 'zstd' where id % 100 = 3;
reset wal_compression;
set wal_consistency_checking = 'heap,btree';
insert into img select g, 'compared' from generate_series(2001, 2010) g;
reset wal_consistency_checking;
select count(*) from img;

-- replication origins
select pg_replication_origin_create('elsewhere');
select pg_replication_origin_session_setup('elsewhere');
begin;
select pg_replication_origin_xact_setup('0/ABCDEF0', '2024-02-29 12:34:56.789+00');
insert into t values (3001, 'from elsewhere');
commit;
select pg_replication_origin_session_reset();

-- tablespaces
create tablespace ts location 'DIR/ts';
create table in_ts (id int primary key) tablespace ts;
insert into in_ts select generate_series(1, 20);
alter table t set tablespace ts;
alter table t set tablespace pg_default;
drop table in_ts;
drop tablespace ts;
-- from 15
set allow_in_place_tablespaces = on;
-- from 15
create tablespace in_place location '';
-- from 15
create table in_place_t (id int) tablespace in_place;
-- from 15
drop table in_place_t;
-- from 15
drop tablespace in_place;

-- databases
-- to 14
create database copied;
-- from 15
create database copied strategy file_copy;
-- from 15
create database logged strategy wal_log;
drop database copied;
-- from 15
drop database logged;

-- settings that copying relies on
-- (each change shows in the log as soon as the checkpointer has seen it)
alter system set full_page_writes = off;
do $$ declare at pg_lsn := pg_current_wal_insert_lsn(); begin perform pg_reload_conf(); while pg_current_wal_insert_lsn() = at loop perform pg_sleep(0.01); end loop; end $$;
checkpoint;
alter system reset full_page_writes;
do $$ declare at pg_lsn := pg_current_wal_insert_lsn(); begin perform pg_reload_conf(); while pg_current_wal_insert_lsn() = at loop perform pg_sleep(0.01); end loop; end $$;
checkpoint;

-- backups, restore points, the end of a segment
-- to 14
select pg_start_backup('fixture', true, false);
-- from 15
select pg_backup_start('fixture', true);
insert into t values (4001, 'during a backup');
-- to 14
select pg_stop_backup(false, false);
-- from 15
select pg_backup_stop(false);
select pg_create_restore_point('before the mistake');
drop table idx;
select pg_switch_wal();
insert into t values (5001, 'after the switch');
