-- The previous values of an order, by which its summary is updated. They must come from the locked row: a snapshot taken
-- before the lock can miss a version that another replica has applied. Null until the first change of an order.
alter table user_orders
    add column amount_before numeric(38, 9),
    add column cancelled_before boolean;
