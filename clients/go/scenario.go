package main

import (
	"context"

	"github.com/google/uuid"

	moneyv1 "example.com/outbox/clients/go/gen/money/v1"
	orderv1 "example.com/outbox/clients/go/gen/order/v1"
	userv1 "example.com/outbox/clients/go/gen/user/v1"
)

type step struct {
	name string
	run  func(context.Context) (string, error)
}

type scenario struct {
	services
	created *userv1.CreateUserResponse // set by the step create, used by the step order
}

func (s *scenario) steps() []step {
	return []step{
		{"create", s.create},
		{"order", s.order},
		{"metadata", s.metadata},
		{"page", s.page},
		{"etag", s.etag},
		{"cancel", s.cancel},
		{"error", s.rejections},
		{"repeat", s.repeat},
		{"money", s.money},
		{"watch", s.watch},
		{"delete", s.delete},
		{"retry", s.retry},
	}
}

// placeOrder places an order for a user that order-service may not know yet.
func (s *scenario) placeOrder(ctx context.Context, user *userv1.CreateUserResponse) (*orderv1.Order, error) {
	request := newOrder(user.GetUser().GetUserId(), euros(19, 90))
	request.ConsistencyToken = user.GetConsistencyToken()
	ordered, err := s.orders.CreateOrder(ctx, request)
	return ordered.GetOrder(), err
}

func newUser() *userv1.CreateUserRequest {
	id := uuid.NewString()
	return &userv1.CreateUserRequest{Email: "ada+" + id + "@example.com", Name: "Ada Lovelace", RequestId: id}
}

func newOrder(userID string, amount *moneyv1.Money) *orderv1.CreateOrderRequest {
	return &orderv1.CreateOrderRequest{UserId: userID, Amount: amount, RequestId: uuid.NewString()}
}

func euros(units int64, cents int32) *moneyv1.Money {
	return &moneyv1.Money{CurrencyCode: "EUR", Units: units, Nanos: cents * 10_000_000}
}
