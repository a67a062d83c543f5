package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	orderv1 "example.com/outbox/clients/go/gen/order/v1"
	userv1 "example.com/outbox/clients/go/gen/user/v1"
)

// create: the response has a consistency token, which lets calls to other services wait for this write.
func (s *scenario) create(ctx context.Context) (string, error) {
	var header metadata.MD
	created, err := s.users.CreateUser(ctx, newUser(), grpc.Header(&header))
	if err != nil {
		return "", err
	}
	user, token := created.GetUser(), created.GetConsistencyToken()
	if user.GetUserId() == "" || user.GetEtag() == "" || user.GetVersion() != 1 || token == "" {
		return "", fmt.Errorf("incomplete: %v", created)
	}
	if sent := header.Get(tokenKey); !slices.Equal(sent, []string{token}) {
		return "", fmt.Errorf("metadata %s is %q, consistency_token is %q", tokenKey, sent, token)
	}
	s.created = created
	return "user " + user.GetUserId(), nil
}

// etag: an update applies to the version that was read, or is rejected.
func (s *scenario) etag(ctx context.Context) (string, error) {
	created, err := s.users.CreateUser(ctx, newUser())
	if err != nil {
		return "", err
	}
	read := created.GetUser()
	rename := func(name string) (*userv1.User, error) {
		updated, err := s.users.UpdateUser(ctx, &userv1.UpdateUserRequest{
			User:       &userv1.User{UserId: read.GetUserId(), Etag: read.GetEtag(), Name: name},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
			RequestId:  uuid.NewString(),
		})
		return updated.GetUser(), err
	}
	user, err := rename("Ada King")
	if err != nil {
		return "", err
	}
	if user.GetName() != "Ada King" || user.GetEmail() != read.GetEmail() || user.GetVersion() != 2 {
		return "", fmt.Errorf("not updated as requested: %v", user)
	}
	_, err = rename("Ada Byron")
	if _, err := wantRejection(err, codes.Aborted, "ETAG_MISMATCH"); err != nil {
		return "", err
	}
	return fmt.Sprintf("etag %s became %s", read.GetEtag(), user.GetEtag()), nil
}

// delete: the user is deleted at once, and order-service then cancels its orders.
func (s *scenario) delete(ctx context.Context) (string, error) {
	created, err := s.users.CreateUser(ctx, newUser())
	if err != nil {
		return "", err
	}
	order, err := s.placeOrder(ctx, created)
	if err != nil {
		return "", err
	}
	userID := created.GetUser().GetUserId()
	deleted, err := s.users.DeleteUser(ctx, &userv1.DeleteUserRequest{UserId: userID, RequestId: uuid.NewString()})
	if err != nil {
		return "", err
	}
	user := deleted.GetUser()
	if user.GetDeleteTime() == nil || user.GetEmail() != "" || user.GetName() != "" {
		return "", fmt.Errorf("not deleted: %v", user)
	}
	request := newOrder(userID, euros(1, 0))
	request.ConsistencyToken = deleted.GetConsistencyToken()
	_, err = s.orders.CreateOrder(ctx, request)
	if _, err := wantRejection(err, codes.FailedPrecondition, "USER_DELETED"); err != nil {
		return "", err
	}
	for started := time.Now(); order.GetState() != orderv1.OrderState_ORDER_STATE_CANCELLED; time.Sleep(50 * time.Millisecond) {
		if time.Since(started) > waitTimeout {
			return "", fmt.Errorf("still open after %v: %v", waitTimeout, order)
		}
		got, err := s.orders.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: order.GetOrderId()})
		if err != nil {
			return "", err
		}
		order = got.GetOrder()
	}
	if order.GetCancelReason() != orderv1.CancelReason_CANCEL_REASON_USER_DELETED {
		return "", fmt.Errorf("cancelled for another reason: %v", order)
	}
	return "user " + userID + ", its open order was cancelled", nil
}
