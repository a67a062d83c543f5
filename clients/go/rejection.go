package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	userv1 "example.com/outbox/clients/go/gen/user/v1"
)

// rejection is the decoded google.rpc.Status of a rejected call.
type rejection struct {
	code          codes.Code
	reason        string // branch on this
	domain        string
	fields        []string // the invalid fields, sorted
	preconditions []string // the types of the failed preconditions
	retryDelay    time.Duration
}

// readRejection decodes the status of an error.
func readRejection(err error) rejection {
	rejected := rejection{code: status.Code(err)}
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			rejected.reason, rejected.domain = detail.GetReason(), detail.GetDomain()
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				rejected.fields = append(rejected.fields, violation.GetField())
			}
			slices.Sort(rejected.fields)
		case *errdetails.PreconditionFailure:
			for _, violation := range detail.GetViolations() {
				rejected.preconditions = append(rejected.preconditions, violation.GetType())
			}
		case *errdetails.RetryInfo:
			rejected.retryDelay = detail.GetRetryDelay().AsDuration()
		}
	}
	return rejected
}

// wantRejection checks that a call was rejected with this code and reason.
func wantRejection(err error, code codes.Code, reason string) (rejection, error) {
	if err == nil {
		return rejection{}, fmt.Errorf("accepted, want %v %s", code, reason)
	}
	rejected := readRejection(err)
	if rejected.code != code || rejected.reason != reason {
		return rejection{}, fmt.Errorf("want %v %s, got reason %q: %w", code, reason, rejected.reason, err)
	}
	return rejected, nil
}

// rejections: an error lists every invalid field and says when to retry.
func (s *scenario) rejections(ctx context.Context) (string, error) {
	_, err := s.users.CreateUser(ctx, &userv1.CreateUserRequest{Email: "nobody", RequestId: uuid.NewString()})
	invalid, err := wantRejection(err, codes.InvalidArgument, "VALIDATION_FAILED")
	if err != nil {
		return "", err
	}
	if invalid.domain != "user-service" || !slices.Equal(invalid.fields, []string{"email", "name"}) {
		return "", fmt.Errorf("want the fields email and name: %+v", invalid)
	}
	_, err = s.orders.CreateOrder(ctx, newOrder(uuid.NewString(), euros(1, 0)))
	unknown, err := wantRejection(err, codes.FailedPrecondition, "USER_UNKNOWN")
	if err != nil {
		return "", err
	}
	if unknown.retryDelay <= 0 || len(unknown.preconditions) == 0 {
		return "", fmt.Errorf("no retry delay or no precondition: %+v", unknown)
	}
	return fmt.Sprintf("invalid fields %v; %v, retry after %v", invalid.fields, unknown.preconditions, unknown.retryDelay), nil
}
