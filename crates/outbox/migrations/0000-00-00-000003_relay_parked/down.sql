drop table relay_dead_letters;
drop table relay_parked;
