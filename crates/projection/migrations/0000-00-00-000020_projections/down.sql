drop table dead_letters;
drop table projection_offsets;
