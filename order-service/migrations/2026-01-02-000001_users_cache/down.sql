drop table users_cache;
