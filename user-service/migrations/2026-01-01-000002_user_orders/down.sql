drop table user_order_summaries;
drop table user_orders;
