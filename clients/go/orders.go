package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	orderv1 "example.com/outbox/clients/go/gen/order/v1"
)

// order: with the token, order-service waits for the user's event.
func (s *scenario) order(ctx context.Context) (string, error) {
	if s.created == nil {
		return "", errors.New("the step create did not create a user")
	}
	order, err := s.placeOrder(ctx, s.created)
	if err != nil {
		return "", err
	}
	return "order " + order.GetOrderId(), nil
}

// metadata: an interceptor passes the token on; the calls do not mention it.
func (s *scenario) metadata(ctx context.Context) (string, error) {
	var session tokenSession
	following, err := dial(grpc.WithUnaryInterceptor(session.intercept))
	if err != nil {
		return "", err
	}
	defer following.close()
	created, err := following.users.CreateUser(ctx, newUser())
	if err != nil {
		return "", err
	}
	if token := session.token.Load(); token == nil || *token != created.GetConsistencyToken() {
		return "", fmt.Errorf("no %s in the metadata of CreateUser's response", tokenKey)
	}
	ordered, err := following.orders.CreateOrder(ctx, newOrder(created.GetUser().GetUserId(), euros(19, 90)))
	if err != nil {
		return "", err
	}
	// A rejection proves that the service reads the token.
	invalidToken := "no token"
	session.token.Store(&invalidToken)
	_, err = following.orders.CreateOrder(ctx, newOrder(created.GetUser().GetUserId(), euros(19, 90)))
	invalid, err := wantRejection(err, codes.InvalidArgument, "VALIDATION_FAILED")
	if err != nil {
		return "", err
	}
	if !slices.Equal(invalid.fields, []string{tokenKey}) {
		return "", fmt.Errorf("rejected because of %v", invalid.fields)
	}
	return "order " + ordered.GetOrder().GetOrderId() + ", token passed by an interceptor", nil
}

// page: pages of two orders, until there is no next page.
func (s *scenario) page(ctx context.Context) (string, error) {
	created, err := s.users.CreateUser(ctx, newUser())
	if err != nil {
		return "", err
	}
	var placed, listed []string
	for range 5 {
		order, err := s.placeOrder(ctx, created)
		if err != nil {
			return "", err
		}
		placed = append(placed, order.GetOrderId())
	}
	request := &orderv1.ListOrdersRequest{UserId: created.GetUser().GetUserId(), PageSize: 2}
	pages, token := 0, ""
	for {
		page, err := s.orders.ListOrders(ctx, request)
		if err != nil {
			return "", err
		}
		pages++
		for _, order := range page.GetOrders() {
			listed = append(listed, order.GetOrderId())
		}
		if page.GetNextPageToken() == "" {
			break
		}
		token = page.GetNextPageToken()
		request.PageToken = token
	}
	slices.Sort(placed)
	slices.Sort(listed)
	if !slices.Equal(placed, listed) {
		return "", fmt.Errorf("placed %v, listed %v", placed, listed)
	}
	for _, foreign := range []*orderv1.ListOrdersRequest{
		{UserId: request.UserId, PageSize: 2, PageToken: changeOne(token)},
		{UserId: uuid.NewString(), PageSize: 2, PageToken: token},
	} {
		_, err := s.orders.ListOrders(ctx, foreign)
		if _, err := wantRejection(err, codes.InvalidArgument, "PAGE_TOKEN_INVALID"); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d orders on %d pages", len(listed), pages), nil
}

// cancel: an order is cancelled once.
func (s *scenario) cancel(ctx context.Context) (string, error) {
	created, err := s.users.CreateUser(ctx, newUser())
	if err != nil {
		return "", err
	}
	placed, err := s.placeOrder(ctx, created)
	if err != nil {
		return "", err
	}
	cancel := func() (*orderv1.Order, error) {
		cancelled, err := s.orders.CancelOrder(ctx, &orderv1.CancelOrderRequest{
			OrderId:   placed.GetOrderId(),
			RequestId: uuid.NewString(),
		})
		return cancelled.GetOrder(), err
	}
	order, err := cancel()
	if err != nil {
		return "", err
	}
	if order.GetState() != orderv1.OrderState_ORDER_STATE_CANCELLED ||
		order.GetCancelReason() != orderv1.CancelReason_CANCEL_REASON_REQUESTED || order.GetVersion() != 2 {
		return "", fmt.Errorf("not cancelled as requested: %v", order)
	}
	_, err = cancel()
	if _, err := wantRejection(err, codes.FailedPrecondition, "ORDER_CANCELLED"); err != nil {
		return "", err
	}
	return "order " + order.GetOrderId(), nil
}

// repeat: a request that is sent twice is executed once.
func (s *scenario) repeat(ctx context.Context) (string, error) {
	created, err := s.users.CreateUser(ctx, newUser())
	if err != nil {
		return "", err
	}
	request := newOrder(created.GetUser().GetUserId(), euros(19, 90))
	request.ConsistencyToken = created.GetConsistencyToken()
	first, err := s.orders.CreateOrder(ctx, request)
	if err != nil {
		return "", err
	}
	second, err := s.orders.CreateOrder(ctx, request)
	if err != nil {
		return "", err
	}
	if !proto.Equal(first, second) {
		return "", fmt.Errorf("first %v, then %v", first, second)
	}
	request.Amount = euros(19, 91)
	_, err = s.orders.CreateOrder(ctx, request)
	if _, err := wantRejection(err, codes.InvalidArgument, "REQUEST_ID_REUSED"); err != nil {
		return "", err
	}
	return "order " + first.GetOrder().GetOrderId(), nil
}

// changeOne replaces the character in the middle.
func changeOne(token string) string {
	changed, middle := []byte(token), len(token)/2
	changed[middle] = 'A'
	if token[middle] == 'A' {
		changed[middle] = 'B'
	}
	return string(changed)
}
