package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	orderv1 "example.com/outbox/clients/go/gen/order/v1"
)

// waitTimeout limits a watch, and the wait for what another service does asynchronously.
const waitTimeout = 10 * time.Second

// watch: a new stream resumes where the previous one ended.
func (s *scenario) watch(ctx context.Context) (string, error) {
	created, err := s.users.CreateUser(ctx, newUser())
	if err != nil {
		return "", err
	}
	place := func() (*orderv1.Order, error) { return s.placeOrder(ctx, created) }
	first, err1 := place()
	second, err2 := place()
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	userID := created.GetUser().GetUserId()
	seen, resumeToken, err := s.watchSome(ctx, 2, &orderv1.WatchOrdersRequest{UserId: userID})
	if err != nil {
		return "", err
	}
	placed := []string{first.GetOrderId(), second.GetOrderId()}
	slices.Sort(placed)
	slices.Sort(seen)
	if !slices.Equal(placed, seen) {
		return "", fmt.Errorf("placed %v, seen %v", placed, seen)
	}
	third, err := place()
	if err != nil {
		return "", err
	}
	seen, _, err = s.watchSome(ctx, 1, &orderv1.WatchOrdersRequest{UserId: userID, ResumeToken: resumeToken})
	if err != nil {
		return "", err
	}
	if seen[0] != third.GetOrderId() {
		return "", fmt.Errorf("resumed with %s, want %s", seen[0], third.GetOrderId())
	}
	return "two orders, then the third after resuming", nil
}

// watchSome reads count messages and ends the stream.
func (s *scenario) watchSome(ctx context.Context, count int, request *orderv1.WatchOrdersRequest) (
	orderIDs []string, resumeToken string, err error) {
	// Cancelling the context ends the stream. Without a timeout it lasts as long as the server allows.
	ctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	stream, err := s.orders.WatchOrders(ctx, request)
	if err != nil {
		return nil, "", err
	}
	for range count {
		message, err := stream.Recv()
		if err != nil {
			return nil, "", fmt.Errorf("after %d of %d messages: %w", len(orderIDs), count, err)
		}
		orderIDs = append(orderIDs, message.GetOrder().GetOrderId())
		resumeToken = message.GetResumeToken()
	}
	return orderIDs, resumeToken, nil
}
