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

// rejection is what the services say of a call that they reject: the parts of its google.rpc.Status.
type rejection struct {
	code          codes.Code
	reason        string // what to branch on
	domain        string
	fields        []string // the bad fields, sorted
	preconditions []string // the types of what does not hold
	retryDelay    time.Duration
}

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

// wantRejection checks that a call was rejected, and for this reason.
func wantRejection(err error, code codes.Code, reason string) (rejection, error) {
	if err == nil {
		return rejection{}, fmt.Errorf("accepted, where %v %s was expected", code, reason)
	}
	rejected := readRejection(err)
	if rejected.code != code || rejected.reason != reason {
		return rejection{}, fmt.Errorf("want %v %s, got reason %q: %w", code, reason, rejected.reason, err)
	}
	return rejected, nil
}

// rejections: a rejection says what is wrong, all at once, and when to try again.
func (s *scenario) rejections(ctx context.Context) (string, error) {
	_, err := s.users.CreateUser(ctx, &userv1.CreateUserRequest{Email: "nobody", RequestId: uuid.NewString()})
	invalid, err := wantRejection(err, codes.InvalidArgument, "VALIDATION_FAILED")
	if err != nil {
		return "", err
	}
	if invalid.domain != "user-service" || !slices.Equal(invalid.fields, []string{"email", "name"}) {
		return "", fmt.Errorf("not what is wrong: %+v", invalid)
	}
	_, err = s.orders.CreateOrder(ctx, newOrder(uuid.NewString(), euros(1, 0)))
	unknown, err := wantRejection(err, codes.FailedPrecondition, "USER_UNKNOWN")
	if err != nil {
		return "", err
	}
	if unknown.retryDelay <= 0 || len(unknown.preconditions) == 0 {
		return "", fmt.Errorf("no delay or no precondition: %+v", unknown)
	}
	return fmt.Sprintf("bad fields %v; %v, again in %v", invalid.fields, unknown.preconditions, unknown.retryDelay), nil
}
