alter table orders drop column changed_xid, drop column cancel_reason;
