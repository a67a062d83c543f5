alter table user_orders
    drop column amount_before,
    drop column cancelled_before;
