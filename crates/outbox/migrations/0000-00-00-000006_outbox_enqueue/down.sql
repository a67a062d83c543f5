drop function outbox_enqueue;
