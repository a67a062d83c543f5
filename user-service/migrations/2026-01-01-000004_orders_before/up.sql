-- What the summary counts of an order is moved by the difference to what it counted before. That has to be read from the row
-- as it is locked for the change: a snapshot taken before the lock may not have seen what another replica has applied. Null
-- until the first change of an order.
alter table user_orders
    add column amount_before numeric(38, 9),
    add column cancelled_before boolean;
