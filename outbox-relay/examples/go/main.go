// Writes a customer and its event in one transaction.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"

	"github.com/jackc/pgx/v5"
)

func createCustomer(ctx context.Context, tx pgx.Tx, name string) (eventID string, err error) {
	// First the change: its row lock keeps the events of one customer in order.
	var id, version int64
	const insert = "insert into customers (name) values ($1) returning id, version"
	if err := tx.QueryRow(ctx, insert, name).Scan(&id, &version); err != nil {
		return "", err
	}
	// Then the event, with the whole state after the change.
	const enqueue = "select outbox_enqueue('customers.v1', $1, 'customer_created', $2, $3)::text"
	state := map[string]any{"id": id, "name": name}
	err = tx.QueryRow(ctx, enqueue, strconv.FormatInt(id, 10), version, state).Scan(&eventID)
	return eventID, err
}

func main() {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close(ctx)
	var eventID string
	if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		eventID, err = createCustomer(ctx, tx, "Ada")
		return err
	}); err != nil {
		log.Fatal(err)
	}
	errLater := errors.New("failure after the event")
	if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := createCustomer(ctx, tx, "Nobody")
		return errors.Join(err, errLater)
	}); !errors.Is(err, errLater) { // Rolled back: there is no such customer, and no event.
		log.Fatal(err)
	}
	fmt.Println(eventID)
}
